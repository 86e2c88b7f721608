"""Attacks on the host: its files, processes, network and secrets, and whatever would outlive the run."""

# ruff: noqa: E501 (a program a line)
from __future__ import annotations

from headrace.verifiers.sandbox.seccomp import ATTACKS, SERVER_PRIVILEGED
from headrace.verifiers.sandbox.syscalls import numbers
from tests.verifiers.sandbox.attacks import LIBC, attack, function, refused

# Reading, writing and finding out. In the box these paths do not exist, and by Landlock they cannot be opened.
_PATHS = ("@FOLDER@/canary", "/etc/passwd", "/etc/shadow", "/proc/self/environ", "/proc/1/environ", "/proc/@HOST@/environ",
          "/proc/self/maps", "/proc/self/mem", "/proc/@HOST@/mem", "/sys/kernel/security/lsm", "/dev/mem", "/dev/kmsg",
          "@PROJECT@/pyproject.toml")  # fmt: skip
_TRY = '''
import os
def tries(*actions):
    """What the first action that works gives; the rest has to be refused."""
    for action in actions:
        try:
            return "BREACH", repr(action())[:200]
        except (OSError, NotImplementedError) as error:
            last = error
    raise last
'''

FILES = [
    attack("calls", "files_read", "forbidden_call exception",
           _TRY + function(f"return tries(*[lambda p=p: open(p, 'rb').read(64) for p in {_PATHS!r}])")),
    attack("calls", "files_written", "forbidden_call exception",
           _TRY + function("return tries(*[lambda m=m: open('@FOLDER@/canary', m).write('x') for m in ('w', 'a', 'r+', 'x')])")),
    attack("calls", "files_truncated_on_open", "forbidden_call exception",
           _TRY + function("return tries(lambda: os.open('@FOLDER@/canary', os.O_RDONLY | os.O_TRUNC))")),
    attack("calls", "files_truncated", "forbidden_call exception",
           _TRY + function("return tries(lambda: os.truncate('@FOLDER@/canary', 0))")),
    attack("calls", "files_removed", "forbidden_call exception",
           _TRY + function("return tries(lambda: os.unlink('@FOLDER@/canary'), lambda: os.rename('@FOLDER@/canary', 'x'))")),
    attack("calls", "files_created", "forbidden_call exception", _TRY + function(
        "return tries(*[lambda d=d: open(d + '/headrace-breach', 'w') for d in ('@FOLDER@', '/tmp', '/var/tmp', '/dev/shm', '/',"
        " '/python', '/usr/lib', '/run', '/root')])")),
    attack("calls", "files_given_another_mode", "forbidden_call exception",
           _TRY + function("return tries(lambda: os.chmod('@FOLDER@/canary', 0), lambda: os.chmod('@FOLDER@', 0))")),
    attack("calls", "files_given_another_time", "forbidden_call exception",
           _TRY + function("return tries(lambda: os.utime('@FOLDER@/canary', (0, 0)), lambda: os.utime('@FOLDER@/canary'))")),
    attack("calls", "files_given_another_owner", "forbidden_call exception",
           _TRY + function("return tries(lambda: os.chown('@FOLDER@/canary', 65534, 65534))")),
    attack("calls", "files_marked", "forbidden_call exception", _TRY + function(
        "return tries(lambda: os.setxattr('@FOLDER@/canary', 'user.m', b'1'), lambda: os.setxattr('.', 'user.m', b'1'))")),
    attack("calls", "files_linked", "forbidden_call exception", _TRY + function(
        "return tries(lambda: os.link('@FOLDER@/canary', 'l'), lambda: os.link('/python/os.py', '/work/run/l'))")),
    attack("calls", "files_through_a_symlink", "forbidden_call exception", _TRY + function(
        "try: os.symlink('@FOLDER@/canary', 'l')\nexcept OSError: pass\n"
        "return tries(lambda: open('l').read(), lambda: open('l', 'w').write('x'))")),
    attack("calls", "folders_listed", "forbidden_call exception", _TRY + function(
        "return tries(*[lambda p=p: os.listdir(p) for p in ('@FOLDER@', '/root', '/proc', '/tmp', '/etc', '/home', '@PROJECT@')])")),
    attack("calls", "site_packages_listed", "wrong_answer exception", function(
        "import os, sys\nfound = []\nfor top in {*sys.path, '/python', '/lib', '/lib64', '/usr', '/opt'}:\n"
        "    for folder, _, _ in os.walk(top):\n"
        "        if {'site-packages', 'dist-packages'} & {*folder.split('/')} and os.listdir(folder):\n"
        "            found.append(folder)\nreturn 'BREACH ' + repr(found) if found else 0"), needs_namespaces=True),
    attack("calls", "site_packages_read", "forbidden_call exception", _TRY + function(
        "host, box = '@PACKAGE_FILE@', '/python/' + '@PACKAGE_FILE@'.partition('/python')[2].partition('/')[2]\n"
        "return tries(*[lambda p=p: open(p, 'rb').read() for p in (host, box)])")),
    attack("calls", "site_packages_imported", "exception forbidden_call", function("import pip\nreturn 'BREACH'", "import sys\n"
        "sys.path += ['/python/site-packages', '/usr/lib/python3/dist-packages', '@PACKAGES@']")),
    attack("calls", "other_software_listed", "wrong_answer exception", function(
        "import os\nseen = [f'{top}/{name}' for top in ('/lib', '/usr/lib', '/lib64', '/usr/lib64') if os.path.isdir(top)\n"
        "        for name in os.listdir(top) if '-linux-' not in name and name not in ('locale', 'glibc-hwcaps')]\n"
        "found = [path for path in seen if os.path.isdir(path) and not os.path.islink(path) and os.listdir(path)]\n"
        "return 'BREACH ' + repr(found) if found else 0"), needs_namespaces=True),
    attack("calls", "library_changed", "forbidden_call exception", _TRY + function(
        "import json\nfile = json.__file__\n"
        "return tries(lambda: open(file, 'a'), lambda: os.chmod(file, 0o777), lambda: os.utime(file), lambda: os.unlink(file),"
        " lambda: os.fchmod(os.open(file, os.O_RDONLY), 0o777), lambda: os.utime(os.open(file, os.O_RDONLY)))")),
    attack("calls", "null_device_marked", "forbidden_call exception wrong_answer", function(
        "import os\nbefore = os.stat('/dev/null')\nfor act in (os.utime, lambda p: os.chmod(p, 0o666)):\n    try: act('/dev/null')\n"
        "    except OSError: pass\nafter = os.stat('/dev/null')\n"
        "return 'BREACH' if (before.st_mtime_ns, before.st_ctime_ns) != (after.st_mtime_ns, after.st_ctime_ns) else 0")),
    attack("calls", "device_made", "forbidden_call exception",
           _TRY + function("import stat\nreturn tries(lambda: os.mknod('d', stat.S_IFBLK | 0o666, os.makedev(254, 0)),"
                           " lambda: os.mknod('c', stat.S_IFCHR | 0o666, os.makedev(1, 1)))")),
    attack("calls", "setuid_program_made", "forbidden_call exception wrong_answer", function(
        "import os\nfd = os.open('s', os.O_CREAT | os.O_WRONLY, 0o755)\nos.write(fd, b'#!/bin/sh')\nos.fchmod(fd, 0o6755)\n"
        "os.execv('s', ['s'])", "")),
    attack("calls", "root_left_by_descriptor", "forbidden_call exception", _TRY + function(
        "d = os.open('/', os.O_RDONLY | os.O_DIRECTORY)\n"
        "return tries(lambda: os.open('../../../../@FOLDER@/canary', os.O_RDONLY, dir_fd=d), lambda: os.chroot('/'),"
        " lambda: os.open('../etc/passwd', os.O_RDONLY, dir_fd=d))")),
    attack("calls", "lease_on_a_library", "forbidden_call exception", refused(
        "fcntl.fcntl(os.open(json.__file__, os.O_RDONLY), 1024, 0)", "import fcntl, json, os")),
    attack("calls", "lock_on_a_library", "forbidden_call exception wrong_answer", function(
        "import fcntl, json\nfcntl.flock(open(json.__file__), fcntl.LOCK_EX)\nreturn 'locked'")),
]  # fmt: skip

SECRETS = [
    attack("calls", "environment", "wrong_answer", function("import os\nreturn 'BREACH' if os.environ else 0")),
    attack("calls", "environment_of_c", "wrong_answer", function(
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.getenv.restype = ctypes.c_char_p\n"
        "names = [b'PATH', b'HOME', b'HEADRACE_CANARY', b'LD_BIND_NOW', b'USER']\n"
        "found = [n for n in names if libc.getenv(n)]\nreturn 'BREACH' if found else 0")),
    attack("calls", "arguments", "wrong_answer", function("import sys\nreturn [sys.argv, sys.orig_argv]")),
    attack("calls", "descriptors", "wrong_answer", function(
        "import os\nheld = []\nfor d in range(3, 4096):\n    try: held.append((d, os.fstat(d).st_mode))\n    except OSError: pass\n"
        "return 'BREACH' if len(held) != 1 else 0")),
    attack("calls", "peer_of_the_socket", "forbidden_call", LIBC + function(
        "buffer, length = ctypes.create_string_buffer(64), ctypes.c_int(64)\nfor d in range(3, 64):\n    for option in (17, 77, 31):\n"
        "        if libc.getsockopt(d, 1, option, buffer, ctypes.byref(length)) == 0: return 'BREACH'\nraise PermissionError")),
    attack("calls", "processes_seen", "wrong_answer forbidden_call exception", _TRY + function(
        "return tries(lambda: open('/proc/@HOST@/cmdline').read(), lambda: os.readlink('/proc/@HOST@/exe'),"
        " lambda: os.listdir('/proc/@HOST@/fd'))")),
    attack("calls", "parent_is_nobody", "wrong_answer", function("import os\nreturn 'BREACH' if os.getppid() else 0"),
           needs_namespaces=True),
    attack("calls", "name_of_the_host", "wrong_answer", function("import os\nreturn 'BREACH' if os.uname().nodename != 'box' else 0"),
           needs_namespaces=True),
    attack("calls", "privileges", "wrong_answer exception forbidden_call", LIBC + function(
        "import struct\nheader, data = struct.pack('=Ii', 0x20080522, 0), ctypes.create_string_buffer(24)\n"
        "if hasattr(os, 'getresuid') and 0 in os.getresuid() and '@LEVEL@' not in ('no_namespaces', 'seccomp_landlock'): return 'BREACH'\n"
        "for action in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0), lambda: os.setgroups([0])):\n"
        "    try:\n        action()\n        return 'BREACH'\n    except OSError: pass\nreturn 0")),
    attack("command", "environment_of_a_program", "wrong_answer", "env | grep -v -e ^PATH= -e ^PWD= -e ^OLDPWD= -e ^SHLVL= -e ^_= -e ^LANG= -e ^HOME= && echo BREACH; true"),
    attack("command", "files_of_the_host_by_a_program", "wrong_answer exception",
           "cat @FOLDER@/canary /etc/shadow /proc/self/environ /proc/1/environ && echo BREACH; ls /root /proc && echo BREACH; true"),
    attack("command", "processes_of_the_host_by_a_program", "wrong_answer exception", "kill -USR1 @HOST@ && echo BREACH; kill -9 @VICTIM@ && echo BREACH; true"),
]  # fmt: skip

_SOCKETS = {
    "tcp_loopback": "s = socket.socket(); s.connect(('127.0.0.1', @PORT@)); s.send(b'x')",
    "tcp_loopback_6": "s = socket.socket(socket.AF_INET6); s.connect(('::1', @PORT@))",
    "tcp_listening": "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()",
    "udp_loopback": "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', @PORT@))",
    "unix_socket": "s = socket.socket(socket.AF_UNIX); s.connect('@FOLDER@/listener')",
    "unix_datagram": "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.sendto(b'x', '@FOLDER@/listener')",
    "abstract_socket": "s = socket.socket(socket.AF_UNIX); s.connect('\\0@ABSTRACT@')",
    "netlink_socket": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "packet_socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)",
    "vsock_socket": "socket.socket(socket.AF_VSOCK).connect((2, 1024))",
    "crypto_socket": "socket.socket(38, 5, 0)",
    "web_page": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:@PORT@/').read()",
}
NETWORK = [
    attack("calls", name, "forbidden_call", function(f"{action}\nreturn 'BREACH'", "import socket"))
    for name, action in _SOCKETS.items()
]  # fmt: skip
NETWORK += [
    attack("calls", "datagram_pair", "forbidden_call", refused("socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)", "import socket")),
    attack("calls", "internet_pair", "forbidden_call", refused("socket.socketpair(socket.AF_INET, socket.SOCK_STREAM)", "import socket")),
    attack("calls", "pair_that_sends_to_others", "forbidden_call exception", refused(
        "socket.socketpair()[0].sendto(b'x', '\\0@ABSTRACT@')", "import socket")),
    attack("calls", "descriptor_passed_on", "forbidden_call exception", refused(
        "socket.send_fds(socket.socketpair()[0], [b'x'], [0])", "import socket")),
    attack("calls", "shared_memory_of_the_host", "forbidden_call exception missing_function", LIBC + function(
        "r = [call(n, 4242, 4096, 0o1666) for n in (29, 64, 68)]\nif all(a == -1 for a, _ in r): raise PermissionError\nreturn 'BREACH'")),
]  # fmt: skip
NETWORK += [
    attack("command", f"{name}_by_a_program", "wrong_answer exception",
           f"{program} && echo BREACH; true")
    for name, program in {
        "tcp_of_bash": "bash -c 'echo x > /dev/tcp/127.0.0.1/@PORT@'",
        "unix_of_perl": "perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Peer => \"@FOLDER@/listener\") or exit 1'",
    }.items()
]  # fmt: skip

PROCESSES = [
    attack("calls", "fork", "forbidden_call", refused("os.fork()")),
    attack("calls", "vfork", "forbidden_call exception", LIBC + function("r, e = call(58 if os.uname().machine == 'x86_64' else 1071)\nif r < 0: raise PermissionError\nreturn 'BREACH'")),
    attack("calls", "double_fork", "forbidden_call", function(
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        import time; time.sleep(100)\n    os._exit(0)\nreturn 'BREACH'", "import os")),
    attack("calls", "new_session", "forbidden_call exception", refused("os.setsid()")),
    attack("calls", "subprocess", "forbidden_call exception", refused("subprocess.run(['/bin/true'])", "import subprocess")),
    attack("calls", "system", "wrong_answer forbidden_call", function("return 'BREACH' if os.system('true') == 0 else 0", "import os")),
    attack("calls", "spawn", "forbidden_call exception", refused("os.posix_spawn('/bin/true', ['true'], {})")),
    attack("calls", "execute", "forbidden_call exception", refused("os.execv('/bin/true', ['true'])")),
    attack("calls", "execute_from_memory", "forbidden_call exception missing_function", refused(
        "os.execve(os.memfd_create('x'), ['x'], {})")),
    attack("calls", "multiprocessing", "forbidden_call exception", refused(
        "multiprocessing.get_context('fork').Process(target=print).start()", "import multiprocessing")),
    attack("calls", "process_pool", "forbidden_call exception early_exit", refused(
        "list(concurrent.futures.ProcessPoolExecutor(2).map(abs, [1]))", "import concurrent.futures")),
    attack("calls", "clone_a_process", "forbidden_call", LIBC + function(
        "r, e = call(56 if os.uname().machine == 'x86_64' else 220, 17, 0, 0, 0, 0)\nif r < 0: raise PermissionError(e)\nreturn 'BREACH'")),
    attack("calls", "clone_a_user_namespace", "forbidden_call", LIBC + function(
        "call(56 if os.uname().machine == 'x86_64' else 220, 0x10000000 | 17, 0, 0, 0, 0)\nreturn 'BREACH'")),
    attack("calls", "clone3", "wrong_answer", LIBC + function(
        "r, e = call(435, ctypes.create_string_buffer(88), 88)\nreturn 'BREACH' if r >= 0 or e != errno.ENOSYS else 0")),
    attack("calls", "signal_to_the_host", "forbidden_call exception", refused("os.kill(@HOST@, 10)")),
    attack("calls", "signal_to_the_server", "forbidden_call exception", refused("os.kill(os.getppid() or 1, 9)")),
    attack("calls", "signal_to_all", "forbidden_call exception", refused("os.kill(-1, 9)")),
    attack("calls", "signal_to_the_group", "forbidden_call exception", refused("os.killpg(0, 9)")),
    attack("calls", "signal_to_a_thread_of_the_host", "forbidden_call exception", LIBC + function(
        "n = 234 if os.uname().machine == 'x86_64' else 131\nfor target in (@HOST@, @VICTIM@, os.getppid()):\n"
        "    if call(n, target, target, 10)[0] == 0: return 'BREACH'\nraise PermissionError")),
    attack("calls", "signal_by_descriptor", "forbidden_call exception", refused(
        "signal.pidfd_send_signal(os.pidfd_open(@HOST@), 10)", "import os, signal")),
    attack("calls", "signal_with_data", "forbidden_call exception", LIBC + function(
        "n = 129 if os.uname().machine == 'x86_64' else 138\nif call(n, @HOST@, 10, ctypes.create_string_buffer(128))[0] == 0: return 'BREACH'\nraise PermissionError")),
    attack("calls", "signal_by_owned_descriptor", "forbidden_call exception", refused(
        "fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, @HOST@)", "import fcntl, os")),
    attack("calls", "kills_itself", "crash wrong_answer", function("import signal\nsignal.raise_signal(9)\nreturn x")),
    attack("calls", "aborts", "crash", function("import os\nos.abort()")),
    attack("calls", "reads_nothing", "crash", LIBC + function("ctypes.string_at(8)")),
    attack("calls", "divides_by_zero_in_machine_code", "crash forbidden_call exception wrong_answer", LIBC + function(
        "import mmap\nif os.uname().machine != 'x86_64': return 0\nm = mmap.mmap(-1, 4096, prot=7)\n"
        "m.write(b'\\x31\\xc9\\xf7\\xf9')\nctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()")),
    attack("calls", "calls_of_another_architecture", "forbidden_call wrong_answer", LIBC + function(
        "import mmap\nif os.uname().machine != 'x86_64': return 0\nm = mmap.mmap(-1, 4096, prot=7)\n"
        "m.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')\n"
        "return 'BREACH', ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()")),
    attack("calls", "calls_of_x32", "forbidden_call", LIBC + function("return 'BREACH', call(0x40000000 | 39)")),
    attack("calls", "calls_below_zero", "forbidden_call", LIBC + function("return 'BREACH', call(-5)")),
    attack("calls", "made_traceable", "forbidden_call exception", LIBC + function(
        "if any(libc.prctl(option, @HOST@, 0, 0, 0) == 0 for option in (0x59616D61, 4, 22, 1, 36, 38, 8)): return 'BREACH'\nraise PermissionError")),
    attack("calls", "own_filter", "forbidden_call exception", LIBC + function(
        "n = 317 if os.uname().machine == 'x86_64' else 277\nif call(n, 0, 0, None)[1] != errno.EPERM: return 'BREACH'\nraise PermissionError")),
    attack("calls", "terminal_input", "forbidden_call exception", refused("[fcntl.ioctl(d, 0x5412, b'x') for d in (0, 1, 2)]", "import fcntl")),
    attack("calls", "limits_raised", "forbidden_call exception", refused(
        "[resource.setrlimit(k, (-1, -1)) for k in (resource.RLIMIT_CPU, resource.RLIMIT_AS)]", "import resource")),
    attack("calls", "limits_of_the_host", "forbidden_call exception", refused(
        "resource.prlimit(@HOST@, resource.RLIMIT_NOFILE, (1, 1))", "import resource")),
    attack("calls", "priority", "forbidden_call exception", refused("os.setpriority(os.PRIO_PROCESS, 0, 19)")),
    attack("calls", "scheduler", "forbidden_call exception", refused("os.sched_setscheduler(0, 5, os.sched_param(0))")),
    attack("calls", "processors", "forbidden_call exception", refused("os.sched_setaffinity(0, {0})")),
    attack("command", "daemon", "wrong_answer", "(setsid sh -c 'sleep 100; echo x > @FOLDER@/daemon' &) &\nexit 0"),
    attack("command", "daemon_that_ignores_signals", "wrong_answer exception", "(trap '' TERM INT HUP QUIT USR1; setsid sleep 100 & setsid sh -c \"trap '' TERM HUP; sleep 100\" &) > /dev/null 2>&1 < /dev/null &\necho x"),
    attack("command", "kills_process_one", "wrong_answer exception crash", "kill -9 1; kill -9 -1; echo x"),
    attack("command", "fork_bomb", "wrong_answer exception timeout starved output_flood crash memory", "f() { f | f & }\nf 2> /dev/null", hangs=True),
    attack("command", "waits_for_ever_behind_traps", "timeout starved", "trap '' TERM INT HUP QUIT ALRM XCPU\nwhile :; do sleep 1; done", hangs=True),
]  # fmt: skip

# Call by call: those that only an attack has a use for end the process.
CALLS = [
    attack("calls", f"call_{name}", "forbidden_call", LIBC + function(f"return 'BREACH', call({numbers()[name]}, 0, 0, 0, 0, 0, 0)"))
    for name in (*ATTACKS.split(), *SERVER_PRIVILEGED.split())
    if name in numbers()
]  # fmt: skip
# And on x86_64 those that are on no list at all: refused, and nothing more.
_UNLISTED = {
    "memfd_create": 319, "personality": 135, "shmget": 29, "shmat": 30, "semget": 64, "msgget": 68, "mq_open": 240,
    "timer_create": 222, "timerfd_create": 283, "signalfd4": 289, "inotify_init1": 294, "splice": 275, "vmsplice": 278, "tee": 276,
    "setns_free_setpgid": 109, "setsid": 112, "setuid": 105, "setgid": 106, "setgroups": 116, "capset": 126, "capget": 125,
    "chown": 92, "setxattr": 188, "mknod": 133, "mlock": 149, "mlockall": 151, "memfd_secret": 447, "process_mrelease": 448,
    "clock_settime": 227, "settimeofday": 164, "sethostname": 170, "setpriority": 141, "sched_setattr": 314, "ioprio_set": 251,
    "modify_ldt": 154, "sendmsg": 46, "recvmsg": 47, "recvmmsg": 299, "sendmmsg": 307, "pidfd_open": 434, "pidfd_send_signal": 424,
    "landlock_restrict_self": 446, "landlock_create_ruleset": 444, "seccomp": 317, "setrlimit": 160, "kill": 62, "tkill": 200,
    "fork": 57, "execve": 59, "execveat": 322, "wait4": 61, "waitid": 247, "setsockopt": 54, "getpeername": 52, "mbind": 237,
    "move_pages": 279, "migrate_pages": 256, "set_mempolicy": 238, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "link": 86,
    "openat2": 437, "fchmodat2": 452, "mount_setattr_free_lsm_set_self_attr": 460, "cachestat": 451,
}  # fmt: skip
CALLS += [
    attack("calls", "calls_on_no_list", "wrong_answer", LIBC + function(
        "if os.uname().machine != 'x86_64': return 0\n"
        f"bad = [name for name, number in {_UNLISTED!r}.items() if call(number, 0, 0, 0, 0, 0, 0) != (-1, errno.EPERM)]\n"
        "return 'BREACH ' + repr(bad) if bad else 0")),
]  # fmt: skip
