from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from headrace.verifiers.sandbox.plan import BoxPlan, Limits
from headrace.verifiers.sandbox.programs import call_function
from headrace.verifiers.sandbox.sandbox import Sandbox
from headrace.verifiers.sandbox.starvation import Task, tasks_below, waited_seconds

SPIN = "def f():\n    while True: pass"


def task(waited: float = 0, held: float = 0, used: float | None = None, age: float = 10) -> Task:
    return Task(waited=waited, first_thread=held, used=held if used is None else used, age=age)


def test_what_others_kept_the_processor_from_is_waiting():
    assert waited_seconds([task(waited=8, held=2)], since_start=10) == pytest.approx(8)


def test_a_sleeper_does_not_wait():
    assert waited_seconds([task()], since_start=10) == 0


def test_what_a_program_takes_from_itself_does_not_count():
    # Its threads have used six seconds while the first of them waited for eight.
    assert waited_seconds([task(waited=8, held=2, used=8)], since_start=10) == pytest.approx(2)
    # Its children have.
    assert waited_seconds([task(waited=8, held=2), task(held=7)], since_start=10) == pytest.approx(1)
    assert waited_seconds([task(waited=3, held=2), task(held=70)], since_start=10) == 0


def test_the_one_of_several_that_waited_longest_counts():
    assert waited_seconds([task(waited=1, held=1), task(waited=7, held=2)], since_start=10) == pytest.approx(6)


def test_the_time_before_its_process_was_there_is_waiting():
    assert waited_seconds([], since_start=10) == 10
    assert waited_seconds([task(age=3)], since_start=10) == pytest.approx(7)


def test_nobody_below_means_nobody_waits():
    child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
    try:
        assert tasks_below(child.pid, nested=False) == []
        assert min(found.age for found in tasks_below(os.getpid(), nested=False) or ()) < 20
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def crowded():
    """A box whose runs have one core, and that only when nobody else wants it; somebody always does."""
    if tasks_below(os.getpid(), nested=False) is None:
        pytest.skip("this kernel does not tell how long a task has waited")
    core = {min(os.sched_getaffinity(0))}
    sandbox = Sandbox(BoxPlan(Limits(wall_seconds=1.5, cpu_seconds=60)))
    with sandbox.box() as box:
        first = box.pid
        for pid in (first, *(child.pid for child in psutil.Process(first).children())):
            os.sched_setaffinity(pid, core)
            os.setpriority(os.PRIO_PROCESS, pid, 19)
        spin = [sys.executable, "-I", "-S", "-c", "while True: pass"]
        busy = [subprocess.Popen(spin, start_new_session=True) for _ in range(3)]  # the kernel shares by sessions
        for process in busy:
            os.sched_setaffinity(process.pid, core)
        yield box
        for process in busy:
            process.kill()
            process.wait()
    sandbox.close()


def test_a_run_that_had_no_processor_is_not_to_blame(crowded):
    assert call_function(crowded, SPIN, "f", [[]]).reason == "starved"


def test_a_run_that_sleeps_is_to_blame_on_a_busy_machine_too(crowded):
    assert call_function(crowded, "import time\ndef f(): time.sleep(60)", "f", [[]]).reason == "timeout"
