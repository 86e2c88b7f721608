"""A control group of a box's own: memory and processes of all that runs in it, counted together. v1 or v2."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_PREFIX = "headrace-"
_LEAF = f"{_PREFIX}host"  # for the processes of a group that gets groups beneath it (v2)
_ROUNDS = 10  # of moving them: they may start others meanwhile
_REMOVE_SECONDS = 2.0  # until the kernel has let go of processes that were killed


class CgroupMissing(Exception):
    """This host does not let us have one; the message says why."""


class Cgroup:
    """One folder for each controller (v1), or one for all (v2)."""

    def __init__(self, memory: Path, processes: Path, unified: bool) -> None:
        self._memory = memory
        self._processes = processes
        self._unified = unified

    @classmethod
    def create(cls, name: str) -> Cgroup:
        """Beneath this process's own. Raises CgroupMissing."""
        own = dict(_own_groups())
        try:
            if "memory" in own and "pids" in own:
                folders = [_ROOT / controller / own[controller].lstrip("/") for controller in ("memory", "pids")]
                for folder in folders:
                    _sweep(folder)
                made = cls(*[_make(folder, name) for folder in folders], unified=False)
            elif "" in own:
                parent = _ROOT / own[""].lstrip("/")
                if parent.name == _LEAF:  # moved there before, by this process or one that has started it
                    parent = parent.parent
                _share_out(parent)
                _sweep(parent)
                folder = _make(parent, name)
                made = cls(folder, folder, unified=True)
            else:
                raise CgroupMissing("this process belongs to no control group with memory and pids")
        except OSError as error:
            raise CgroupMissing(f"{error.filename}: {error.strerror}") from error
        return made

    def limit(self, memory_bytes: int, processes: int) -> None:
        """Raises OSError."""
        if self._unified:
            _write(self._memory / "memory.max", str(memory_bytes))
            _write_where_there_is(self._memory / "memory.swap.max", "0")
        else:
            _write(self._memory / "memory.limit_in_bytes", str(memory_bytes))
            _write_where_there_is(self._memory / "memory.memsw.limit_in_bytes", str(memory_bytes))
        _write(self._processes / "pids.max", str(processes))

    def add(self, pid: int) -> None:
        """With all that it will start. Raises OSError."""
        for folder in {self._memory, self._processes}:
            _write(folder / "cgroup.procs", str(pid))

    def kills(self) -> int:
        """Processes that the kernel has ended for want of memory."""
        file = self._memory / ("memory.events" if self._unified else "memory.oom_control")
        counts = dict(line.split() for line in file.read_text().splitlines())
        return int(counts.get("oom_kill", 0))

    def remove(self) -> None:
        """Once nothing is left in it. Raises OSError where something is."""
        for folder in {self._memory, self._processes}:
            deadline = time.monotonic() + _REMOVE_SECONDS
            while True:
                try:
                    folder.rmdir()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    os.sched_yield()


def _own_groups() -> list[tuple[str, str]]:
    """(controller, path) of this process; the unified hierarchy's controller is the empty string."""
    groups = []
    with contextlib.suppress(FileNotFoundError):
        for line in _OWN.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            groups += [(controller, path) for controller in controllers.split(",")]
    return groups


def _share_out(group: Path) -> None:
    """Let groups beneath `group` (v2) have limits of their own. The kernel refuses that (EBUSY) while there are processes in
    the group itself: then they go into a group beneath it, which changes nothing for them. Raises OSError."""
    control = group / "cgroup.subtree_control"
    try:
        _write(control, "+memory +pids")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _move_processes(group, group / _LEAF)
        _write(control, "+memory +pids")


def _move_processes(group: Path, leaf: Path) -> None:
    leaf.mkdir(exist_ok=True)
    for _ in range(_ROUNDS):
        pids = (group / "cgroup.procs").read_text().split()
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # over in the meantime
                _write(leaf / "cgroup.procs", pid)


def _sweep(parent: Path) -> None:
    """Remove what processes have left that were killed: their servers are gone with them, the folders are not."""
    for folder in parent.glob(f"{_PREFIX}*-*"):
        if not Path("/proc", folder.name.removeprefix(_PREFIX).partition("-")[0]).exists():
            with contextlib.suppress(OSError):  # not empty yet, or another was faster
                folder.rmdir()


def _make(parent: Path, name: str) -> Path:
    folder = parent / f"{_PREFIX}{os.getpid()}-{name}"
    folder.mkdir()
    return folder


def _write_where_there_is(file: Path, text: str) -> None:
    """Accounting of swap is a kernel option; without it there is nothing to limit."""
    if file.exists():
        _write(file, text)


def _write(file: Path, text: str) -> None:
    """Raises OSError with the file's name, which the kernel's refusal of a text does not have by itself."""
    try:
        file.write_text(text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error
