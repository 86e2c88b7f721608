"""Each limit by itself, with its reason; and that what keeps to them works."""

# ruff: noqa: E501 (a program a line)
from __future__ import annotations

import time

import msgspec
import pytest

from headrace.verifiers.sandbox.plan import BoxPlan, Limits
from headrace.verifiers.sandbox.probe import probe
from headrace.verifiers.sandbox.programs import call_function, run_command, run_script, run_test
from headrace.verifiers.sandbox.sandbox import Sandbox
from tests.verifiers.sandbox.attacks import SPEAK

LIMITS = Limits(
    wall_seconds=10, cpu_seconds=1, memory_bytes=96 << 20, processes=6, file_bytes=1 << 20, scratch_bytes=2 << 20, open_files=20,
    output_bytes=1 << 16,
)  # fmt: skip
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


@pytest.fixture(scope="module")
def box():
    sandbox = Sandbox(BoxPlan(LIMITS))
    with sandbox.box() as box:
        yield box
    sandbox.close()


@pytest.fixture(scope="module")
def programs():
    if not probe().namespaces:
        pytest.skip("other programs need namespaces")
    sandbox = Sandbox(BoxPlan(LIMITS, programs=True, readable=("/usr", "/bin")))
    with sandbox.box() as box:
        yield box
    sandbox.close()


def reason(box, body: str) -> str:
    """Of `f` with this body; empty when it gave an answer."""
    lines = "\n".join("    " + line for line in body.splitlines())
    result = call_function(box, f"def f():\n{lines}\n", "f", [[]])
    return result.answers[0].reason if result.answers else result.reason


def shell(box, script: str):
    return run_command(box, ["/bin/sh", "main.sh"], {"main.sh": script}, "", ENVIRONMENT)


def test_processor_time_ends_a_loop_long_before_the_wall_does(box):
    started = time.monotonic()
    result = call_function(box, "def f():\n    while True: pass", "f", [[]])
    assert result.reason == "timeout" and "s of processor time" in result.message
    assert time.monotonic() - started < LIMITS.wall_seconds


def test_the_wall_ends_what_sleeps():
    sandbox = Sandbox(BoxPlan(msgspec.structs.replace(LIMITS, wall_seconds=0.2)))
    with sandbox.box() as box:
        assert reason(box, "import time\ntime.sleep(60)") == "timeout"
        assert reason(box, "return 1") == ""  # the next one has all of its time
    sandbox.close()


def test_memory_is_what_a_program_may_have_and_no_more(box):
    assert reason(box, "return len(bytearray(64 << 20))") == ""
    assert reason(box, "return len(bytearray(160 << 20))") == "memory"


def test_files_are_limited_one_by_one_and_together(box):
    if not probe().namespaces:
        pytest.skip("no files to write without namespaces")
    assert reason(box, "open('f', 'wb').write(bytes(1 << 20))") == ""
    assert reason(box, "f = open('f', 'wb')\nf.write(bytes((1 << 20) + 1))\nf.flush()") == "exception"
    assert reason(box, "for i in range(4):\n    with open(str(i), 'wb') as f: f.write(bytes(1 << 19))\nreturn 1") == ""
    assert (
        reason(box, "for i in range(5):\n    with open(str(i), 'wb') as f: f.write(bytes(1 << 19))\nreturn 1")
        == "exception"
    )


def test_threads_are_counted(box):
    if not (probe().namespaces or probe().cgroup):
        pytest.skip("nothing counts them here")
    start = "import threading\nstop = threading.Event()\nthreads = [threading.Thread(target=stop.wait) for _ in range({})]\n" \
            "[t.start() for t in threads]\nstop.set()\n[t.join() for t in threads]\nreturn 1"  # fmt: skip
    assert reason(box, start.format(4)) == ""
    assert reason(box, start.format(40)) in ("exception", "timeout")  # those that have been started wait for `stop`


def test_open_files_are_counted(box):
    assert reason(box, "import os\nkept = [os.dup(0) for _ in range(10)]\nreturn 1") == ""
    assert reason(box, "import os\nkept = [os.dup(0) for _ in range(20)]\nreturn 1") == "exception"


def test_output_is_counted_on_each_way_out(box):
    assert run_script(box, "print('x' * 60000)", "").reason == ""
    assert run_script(box, "print('x' * 70000)", "").reason == "output_flood"
    assert run_script(box, "import sys\nprint('x' * 70000, file=sys.stderr)", "").reason == "output_flood"
    assert reason(box, "return 'x' * 60000") == ""
    assert reason(box, "return 'x' * 70000") == "output_flood"


def test_memory_of_other_programs_is_counted_together(programs):
    if not probe().cgroup:
        pytest.skip("without a cgroup they are counted one by one")
    grow = "perl -e '$x = \"x\" x {}; print length $x' & "
    assert shell(programs, grow.format(20_000_000) + "wait").reason == ""
    assert shell(programs, grow.format(60_000_000) * 4 + "wait; exit 1").reason == "memory"


def test_the_memory_of_one_run_is_not_held_against_the_next(programs):
    if not probe().cgroup:
        pytest.skip("without a cgroup nobody is ended for it")
    shell(programs, "for i in 1 2 3 4; do perl -e '$x = \"x\" x 60000000; sleep 1' & done; wait")
    result = shell(programs, "exit 3")
    assert (result.reason, result.status) == ("", 3)


def test_processes_of_other_programs_are_counted(programs):
    assert "x" in shell(programs, "sleep 0.1 & sleep 0.1 & echo x").out
    assert "fork" in shell(programs, "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 0.2 & done; wait").err


LEGITIMATE = {
    "modules": "import random, statistics, decimal, fractions, heapq, bisect, string, unittest, dataclasses, sqlite3, hashlib\nprint(7)",
    "codecs": "print('\u00e9'.encode('utf-16-le').decode('utf-16-le') and '\u00e9'.encode('cp1252') and 'x'.encode('idna') and 7)",
    "recursion": "import sys\nsys.setrecursionlimit(20000)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(15000) - 14993)",
    "deep recursion in a thread": "import sys, threading\nthreading.stack_size(32 << 20)\nsys.setrecursionlimit(10 ** 6)\n"
                                  "def f(n): return 0 if n == 0 else 1 + f(n - 1)\n"
                                  "t = threading.Thread(target=lambda: print(f(10000) - 9993))\nt.start()\nt.join()",
    "thread pool": "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(3) as pool: print(sum(pool.map(int, '223')))",
    "event loop": "import asyncio\nasync def main():\n    await asyncio.sleep(0.001)\n    return 7\nprint(asyncio.run(main()))",
    "a pair of sockets": "import socket\na, b = socket.socketpair()\na.sendall(b'7')\nprint(b.recv(1).decode())",
    "a home that is not there": "import os, sysconfig\nprint(os.path.expanduser('~') and 7)",
    "input": "print(sum(map(int, open(0).read().split())))",
    "time zone": "import zoneinfo\nprint(zoneinfo.ZoneInfo('Europe/Berlin') and 7)",
    "signals": "import signal\nsignal.signal(signal.SIGALRM, lambda *a: print(7))\nsignal.setitimer(signal.ITIMER_REAL, 0.01)\nsignal.pause()",
    "the null device": "import os\nprint('x', file=open(os.devnull, 'w'))\nprint(7, len(os.urandom(3)) * '')",
    "dunder main": "if __name__ == '__main__': print(7)",
    "exit": "print(7)\nexit()",
    "a last thread": "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), print(7))).start()",
    "regular expressions": "import re\nprint(re.sub(r'\\D', '', 'a7b'))",
}  # fmt: skip
WITH_FILES = {
    "files": "import os, tempfile, shutil\nos.mkdir('d')\nopen('d/f', 'w').write('7')\nos.rename('d/f', 'g')\nos.symlink('g', 'h')\n"
             "with tempfile.TemporaryFile(dir='.') as t: t.write(b'7')\nprint(open('h').read())\nshutil.rmtree('d')",
    "a database": "import sqlite3\nc = sqlite3.connect('x.db')\nc.execute('create table t (x)')\nc.execute('insert into t values (7)')\n"
                  "c.commit()\nprint(*c.execute('select x from t').fetchone())",
}  # fmt: skip


@pytest.mark.parametrize("layer_off", ["nothing", "landlock_abi", "namespaces", "cgroup"])
def test_ordinary_programs_run_as_ever(layer_off):
    layers = (
        probe()
        if layer_off == "nothing"
        else msgspec.structs.replace(probe(), **{layer_off: 0 if layer_off == "landlock_abi" else False})
    )
    programs = LEGITIMATE | (WITH_FILES if layers.namespaces else {})
    sandbox = Sandbox(BoxPlan(Limits(wall_seconds=30)), layers=layers)
    printed = {}
    for name, source in programs.items():
        with sandbox.box() as box:
            result = run_script(box, source, "3 4")
            printed[name] = result.out.strip() or result
    sandbox.close()
    assert printed == dict.fromkeys(programs, "7")


def test_arguments_that_a_function_changes_are_changed_for_the_test(box):
    test = "def check(f):\n    a = [3, 1, 2]\n    assert f(a) is None\n    assert a == [1, 2, 3]"
    assert run_test(box, "def f(a): a.sort()", "f", "", test).passed
    assert run_test(box, "def f(a): pass", "f", "", test).reason == "wrong_answer"


def test_exceptions_of_a_function_reach_the_test(box):
    test = "def check(f):\n    try:\n        f(0)\n    except ZeroDivisionError as error:\n        assert 'zero' in str(error)\n        return\n" \
           "    raise AssertionError"  # fmt: skip
    assert run_test(box, "def f(x): return 1 / x", "f", "", test).passed
    assert run_test(box, "def f(x): return x", "f", "", test).reason == "wrong_answer"
    assert run_test(box, "def f(x): raise KeyError('zero')", "f", "", test).reason == "exception"


@pytest.mark.parametrize(
    ("test", "fault"),
    [
        ("def check(f): pass", "never calls"),
        ("def check(f): unknown(f(1))", "NameError"),
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        ("def check(f): f(object())", "object"),
        ("import os\nos._exit(0)", "before it had an answer"),
        ("def check(f):\n    while True: pass", "before it had an answer: timeout"),
        ("import sys\nsys.exit(0)", "SystemExit"),
    ],
)  # fmt: skip
def test_a_test_that_is_wrong_itself_is_not_held_against_the_code(box, test, fault):
    result = run_test(box, "def f(x): return x", "f", "", test)
    assert not result.passed and not result.reason
    assert fault in result.test_fault


LATE = "import threading\ndef f(x): return x\ndef soon(work): threading.Timer(0.1, work).start()\n"


@pytest.mark.parametrize(
    ("leaving", "reason"),
    [
        ("import os\nsoon(lambda: os._exit(0))", "early_exit"),
        (SPEAK + "host = speaker()\nsoon(lambda: os.write(host._descriptor, b'\\0\\0\\0\\2no'))", "bad_answer"),
        (SPEAK + "host = speaker()\nsoon(lambda: os.close(host._descriptor) or os._exit(3))", "early_exit"),
        ("def burn():\n    while True: pass\nsoon(burn)", "timeout"),
        ("import ctypes\nsoon(lambda: ctypes.string_at(8))", "crash"),
    ],
)  # fmt: skip
def test_code_that_breaks_off_before_it_is_called_cannot_put_it_on_the_test(box, leaving, reason):
    test = "import time\ntime.sleep(4)\ndef check(f): assert f(1) == 1"
    result = run_test(box, LATE + leaving, "f", "", test)
    assert not result.passed and not result.test_fault
    assert result.reason == reason


@pytest.mark.parametrize("bomb", ["10 ** 12", "'x' * 40000"])
def test_an_answer_that_breaks_the_test_is_held_against_the_code(box, bomb):
    test = "def check(f):\n    for _ in range(3): print(f(1))\n    for _ in range(f(1)): pass\n    assert f(1) == 2"
    result = run_test(box, f"def f(x): return {bomb}", "f", "", test)
    assert not result.passed and not result.test_fault
    assert result.reason in ("timeout", "output_flood")
