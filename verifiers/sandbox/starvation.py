"""Whether a run that came to its deadline had the processor at all.

On a machine with too much to do a program can wait for a core for longer than it computes. That is not its fault, and no
verdict on it. The kernel counts how long each thread has waited for a core (`schedstat`, Linux with CONFIG_SCHED_INFO;
`children` takes CONFIG_PROC_CHILDREN). What a run's own threads and processes take from each other is its own doing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

_NANO = 1e9


class Task(msgspec.Struct, frozen=True):
    """A process of a run, in seconds: how long its first thread has waited for a core and held one, what all its threads and
    the children that it has reaped have used, and its age."""

    waited: float
    first_thread: float
    used: float
    age: float


def waited_seconds(tasks: Sequence[Task], since_start: float) -> float:
    """For how long a run that was asked for `since_start` seconds ago was kept waiting by others.

    The time before its process was there counts, since somebody else's server was to fork it. Of a process's wait, what the
    run's other processes and threads have used meanwhile does not: it is what they have taken from it, at most.
    """
    if not tasks:
        return since_start
    late = max(0.0, since_start - max(task.age for task in tasks))
    total = sum(task.used for task in tasks)
    return late + max(0.0, *(task.waited - (total - task.first_thread) for task in tasks))


def tasks_below(server: int, *, nested: bool) -> list[Task] | None:
    """The processes of the runs below the server with process id `server`, or below its one child (`nested`); None where
    the kernel does not tell."""
    try:
        _schedule(server)
        first = _children(server)
        if nested:
            first = [below for child in first for below in _children(child)]
    except FileNotFoundError:
        return None
    return list(_descendants(first))


def _descendants(processes: Iterable[int]) -> Iterable[Task]:
    for process in processes:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            below = _children(process)
            yield _task(process)
            yield from _descendants(below)


def _children(process: int) -> list[int]:
    """Of all its threads."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def _schedule(process: int) -> tuple[float, float]:
    """Of the first thread: seconds with a core, and waiting for one."""
    held, waited, _ = Path(f"/proc/{process}/task/{process}/schedstat").read_text().split()
    return int(held) / _NANO, int(waited) / _NANO


def _task(process: int) -> Task:
    # The name in brackets may hold anything. Fields by number from `state`, which proc(5) calls the third.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    held, waited = _schedule(process)
    used = sum(int(field) for field in fields[11:15]) / ticks  # utime, stime, cutime, cstime
    started = int(fields[19]) / ticks
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    return Task(waited=waited, first_thread=held, used=max(used, held), age=age)
