"""Attacks on what a run may use: time, memory, processes, disk and output; and on what is left for the next one."""

# ruff: noqa: E501 (a program a line)
from __future__ import annotations

from tests.verifiers.sandbox.attacks import LIBC, SPEAK, attack, function

TIME = [
    attack("calls", "sleeps_for_ever", "timeout", function("import time\ntime.sleep(1e6)"), hangs=True),
    attack("calls", "loops_for_ever", "timeout starved", function("while True: pass"), hangs=True),
    attack("calls", "loops_on_load", "timeout starved", "while True: pass\ndef f(x): return x", hangs=True),
    attack("calls", "catches_everything", "timeout starved", function(
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass"), hangs=True),
    attack("calls", "ignores_all_signals", "timeout starved", function(
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "while True: pass"), hangs=True),
    attack("calls", "blocks_all_signals", "timeout", function(
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nsignal.pause()"), hangs=True),
    attack("calls", "stops_itself", "timeout wrong_answer", function("import signal\nsignal.raise_signal(signal.SIGSTOP)\nreturn x"), hangs=True),
    attack("calls", "waits_for_a_lock", "timeout", function("import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()"),
           hangs=True),
    attack("calls", "power_tower", "timeout starved memory", function("return 9 ** 9 ** 9"), hangs=True),
    attack("calls", "regular_expression", "timeout starved", function("import re\nreturn bool(re.match('(a+)+$', 'a' * 64 + 'b'))"), hangs=True),
    attack("calls", "threads_that_compute", "timeout starved", function(
        "import threading, hashlib\nfor _ in range(4):\n"
        "    threading.Thread(target=hashlib.pbkdf2_hmac, args=('sha256', b'', b'', 10 ** 9)).start()\nthreading.Event().wait()"), hangs=True),
    attack("calls", "slow_text_of_an_exception", "timeout starved", "class E(Exception):\n    def __str__(self):\n        while True: pass\n"
           "def f(x): raise E", hangs=True),
    attack("calls", "never_ready_to_read", "timeout starved", function("import select\nselect.select([], [], [])"), hangs=True),
    attack("script", "script_sleeps", "timeout", "import time\nprint('7')\ntime.sleep(1e6)", hangs=True),
    attack("script", "thread_that_never_ends", "timeout", "import threading\nprint('7')\nthreading.Thread(target=threading.Event().wait).start()", hangs=True),
    attack("test", "test_is_kept_waiting", "timeout", function("import time\ntime.sleep(1e6)"), hangs=True),
    attack("test", "test_is_kept_waiting_on_load", "timeout", "import time\ntime.sleep(1e6)\ndef f(x): return x", hangs=True),
    attack("test", "test_is_shut_out", "timeout", function("import time\nos.close(speaker()._descriptor)\ntime.sleep(1e6)", SPEAK), hangs=True),
]  # fmt: skip

MEMORY = [
    attack("calls", "bytes_at_once", "memory", function("return len(bytearray(1 << 34))")),
    attack("calls", "bytes_by_and_by", "memory", function("kept = []\nwhile True: kept.append(bytearray(1 << 22))")),
    attack("calls", "list_that_grows", "memory", function("kept = [0] * 1000\nwhile True: kept += kept")),
    attack("calls", "text_multiplied", "memory", function("return len('a' * (1 << 36))")),
    attack("calls", "integer_shifted", "memory", function("return (1 << (1 << 34)) & 1")),
    attack("calls", "shared_mapping", "exception memory", function("import mmap\nmaps = []\nwhile True: maps.append(mmap.mmap(-1, 1 << 24))")),
    attack("calls", "private_mapping", "exception memory", function("import mmap\nmaps = []\nwhile True: maps.append(mmap.mmap(-1, 1 << 24, mmap.MAP_PRIVATE))")),
    attack("calls", "reserved_mapping", "wrong_answer", LIBC + function(
        "libc.mmap.restype = ctypes.c_void_p\nr = libc.mmap(None, ctypes.c_size_t(1 << 40), 0, 0x4022, -1, 0)\n"
        "return 'BREACH' if r not in (None, ctypes.c_void_p(-1).value) else 0")),
    attack("calls", "memory_files", "forbidden_call exception", function("import os\nkept = []\nwhile True:\n    kept.append(os.memfd_create('x'))\n    os.write(kept[-1], bytes(1 << 20))")),
    attack("calls", "shared_memory_module", "forbidden_call exception missing_function", function(
        "from multiprocessing import shared_memory\nkept = []\nwhile True: kept.append(shared_memory.SharedMemory(create=True, size=1 << 24))")),
    attack("calls", "pipes_full", "exception wrong_answer", function(
        "import os\nwhile True:\n    r, w = os.pipe()\n    os.set_blocking(w, False)\n    try: os.write(w, bytes(1 << 20))\n    except OSError: pass")),
    attack("calls", "pipes_made_larger", "forbidden_call exception", function("import fcntl, os\nfcntl.fcntl(os.pipe()[0], 1031, 1 << 20)\nreturn 'BREACH'")),
    attack("calls", "socket_pairs_full", "exception", function(
        "import socket\nkept = []\nwhile True:\n    kept.append(socket.socketpair())\n    kept[-1][0].setblocking(False)\n"
        "    try:\n        while True: kept[-1][0].send(bytes(65536))\n    except BlockingIOError: pass")),
    attack("calls", "recursion", "exception crash memory", function("return f(x)")),
    attack("calls", "recursion_without_limit", "crash memory exception timeout starved",
           function("import sys\nsys.setrecursionlimit(10 ** 9)\nreturn [f(x)]"), hangs=True),
    attack("calls", "recursion_in_c", "crash memory exception not_plain timeout starved", function(
        "import sys\nsys.setrecursionlimit(10 ** 9)\na = []\nfor _ in range(10 ** 6): a = [a]\nreturn repr(a)[:1]"), hangs=True),
    attack("calls", "threads_without_end", "exception timeout starved wrong_answer memory crash", function(
        "import threading\nthreading.stack_size(32768)\nstop = threading.Event()\n"
        "for n in range(10 ** 6):\n    threading.Thread(target=stop.wait, daemon=True).start()\nreturn 'BREACH'"), hangs=True),
    attack("calls", "descriptors_without_end", "exception", function("import os\nwhile True: os.dup(0)")),
    attack("test", "test_is_left_no_processes", "wrong_answer", (
        "import _thread, time\n_thread.stack_size(32768)\nstarted = 0\ntry:\n    while True:\n        _thread.start_new_thread(time.sleep, (1e6,))\n        started += 1\n"
        "except RuntimeError: pass\ndef f(x): return x"), needs_namespaces=True),
    attack("test", "test_gets_a_bomb_to_print", "wrong_answer exception memory output_flood not_plain", function("return 'x' * 30000")),
    attack("command", "memory_of_many_processes", "memory exception wrong_answer timeout starved crash",
           "for i in 1 2 3 4 5 6; do (perl -e '$x = \"x\" x 40000000; sleep 5' &) ; done; perl -e '$x = \"x\" x 4000000000'", hangs=True),
]  # fmt: skip

DISK = [
    attack("script", "disk_full", "exception forbidden_call", "i = 0\nwhile True:\n    i += 1\n    open(str(i), 'wb').write(bytes(1 << 16))"),
    attack("script", "one_file_too_large", "exception forbidden_call", "f = open('f', 'wb')\nwhile True:\n    f.write(bytes(1 << 16)); f.flush()"),
    attack("script", "one_sparse_file", "exception forbidden_call", "import os\nf = open('f', 'wb')\nos.truncate(f.fileno(), 1 << 40)"),
    attack("script", "allocated_file", "exception forbidden_call", "import os\nf = open('f', 'wb')\nos.posix_fallocate(f.fileno(), 0, 1 << 24)"),
    attack("script", "inodes_full", "exception forbidden_call", "i = 0\nwhile True:\n    i += 1\n    open(str(i), 'wb').close()"),
    attack("script", "folders_in_folders", "exception forbidden_call", "import os\nwhile True:\n    os.mkdir('d'); os.chdir('d')"),
    attack("script", "links_to_links", "exception forbidden_call", "import os\nfor i in range(200): os.symlink(str(i + 1), str(i))\nopen('0')"),
    attack("script", "folder_without_rights", "wrong_answer forbidden_call", "import os\nos.mkdir('d')\nopen('d/f', 'w').close()\nos.chmod('d/f', 0)\nos.chmod('d', 0)"),
    attack("script", "odd_names", "wrong_answer forbidden_call", "import os\nfor name in (b'\\xff', b'-rf', b'a\\nb', b' ', b'\\\\'):\n    os.mkdir(name)"),
    attack("script", "file_without_a_name", "wrong_answer forbidden_call exception", "import os\nfd = os.open('.', os.O_TMPFILE | os.O_RDWR)\nos.write(fd, b'7')"),
    attack("script", "pipe_with_a_name", "exception forbidden_call", "import os\nos.mkfifo('p')"),
    attack("script", "work_folder_removed", "exception forbidden_call wrong_answer", "import os\nos.chdir('/')\nos.rmdir('/work/run')"),
    attack("script", "work_folder_renamed", "exception forbidden_call wrong_answer", "import os\nos.rename('/work/run', '/work/other')"),
    attack("script", "stdin_written", "wrong_answer exception forbidden_call", "import os\nos.write(0, b'x' * 65536)"),
]  # fmt: skip

# What a run might leave for the next; the witness of suite.py looks.
MESSAGES = [
    attack("script", "message_in_a_file", "wrong_answer forbidden_call", "open('m', 'w').write('7')"),
    *[
        attack(how, f"message_by_an_absolute_path_in_{how}", "wrong_answer exception forbidden_call", function(
            "import os\nos.mkdir('/work/run/d')\nopen('/work/run/d/m', 'w').write('7')\nreturn x"))
        for how in ("calls", "test")
    ],
    attack("test", "message_by_an_absolute_path_on_load", "wrong_answer exception forbidden_call",
           "open('/work/run/m', 'w').write('7')\ndef f(x): return x"),
    attack("test", "message_by_a_changed_folder", "wrong_answer exception forbidden_call", function(
        "import os\nos.chdir('/work/run')\nos.symlink('7', 'm')\nreturn x")),
    attack("command", "message_of_a_program", "wrong_answer exception", "mkdir -p d/e && echo 7 > d/e/m; echo 7 > /work/run/m"),
    attack("script", "message_in_a_file_removed", "wrong_answer forbidden_call", "import os\nfor i in range(9):\n    open('m', 'w').close(); os.unlink('m')"),
    attack("script", "message_in_times", "wrong_answer forbidden_call exception", "import os\nos.utime('.', (7, 7))"),
    attack("script", "message_in_a_mode", "wrong_answer forbidden_call exception", "import os\nos.chmod('.', 0o700)"),
    attack("script", "message_in_access_times", "wrong_answer forbidden_call", "import os\nos.listdir('.')"),
    attack("script", "message_in_attributes", "wrong_answer forbidden_call exception", "import os\nos.setxattr('.', 'user.m', b'7')"),
    attack("script", "message_in_the_library", "wrong_answer forbidden_call exception", "import os\nos.utime('/python/os.py', (7, 7))"),
    attack("script", "message_in_a_lock", "wrong_answer forbidden_call exception", "import fcntl\nfcntl.flock(open('/dev/null'), fcntl.LOCK_EX)"),
    attack("script", "message_in_the_interpreter", "wrong_answer", "import builtins, sys, math\nbuiltins.seven = 7\nmath.seven = 7\nsys.path.append('7')"),
    attack("script", "message_in_the_environment", "wrong_answer", "import os\nos.environ['SEVEN'] = '7'\nos.putenv('SEVEN', '7')"),
    attack("script", "message_in_the_umask", "wrong_answer forbidden_call exception", "import os\nos.umask(0o777)"),
]  # fmt: skip

OUTPUT = [
    attack("script", "floods_stdout", "output_flood", "while True: print('x' * 1000)"),
    attack("script", "floods_stderr", "output_flood", "import sys\nwhile True: print('x' * 1000, file=sys.stderr)"),
    attack("script", "floods_without_a_line_end", "output_flood", "import sys\nwhile True: sys.stdout.write('x' * 10000)"),
    attack("script", "one_long_write", "output_flood", "import os\nos.write(1, bytes(1 << 22))\nwhile True: os.write(1, bytes(1 << 16))"),
    attack("script", "prints_what_is_no_text", "wrong_answer", "import os\nos.write(1, bytes(range(256)))"),
    attack("script", "drips", "timeout starved output_flood", "import os\nwhile True: os.write(1, b'x')", hangs=True),
    attack("script", "raises_a_long_text", "exception", "raise ValueError('x' * 10 ** 6)"),
    attack("script", "raises_in_a_long_type", "exception output_flood", "raise type('E' * 10 ** 6, (Exception,), {})"),
    attack("calls", "floods_the_way_to_the_host", "output_flood bad_answer", function("while True: os.write(speaker()._descriptor, bytes(65536))", SPEAK)),
    attack("calls", "floods_in_a_function", "output_flood", function("while True: print('x' * 1000)")),
    attack("command", "floods_by_a_program", "output_flood", "yes"),
    attack("command", "floods_in_the_background", "output_flood wrong_answer", "yes & yes & sleep 0.3"),
]  # fmt: skip
