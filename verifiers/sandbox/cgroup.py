"""A control group of a box's own: memory and processes of all that runs in it, counted together. v1 or v2."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_PREFIX = "headrace-"
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
                (parent / "cgroup.subtree_control").write_text("+memory +pids")
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
            (self._memory / "memory.max").write_text(str(memory_bytes))
            _write_where_there_is(self._memory / "memory.swap.max", "0")
        else:
            (self._memory / "memory.limit_in_bytes").write_text(str(memory_bytes))
            _write_where_there_is(self._memory / "memory.memsw.limit_in_bytes", str(memory_bytes))
        (self._processes / "pids.max").write_text(str(processes))

    def add(self, pid: int) -> None:
        """With all that it will start. Raises OSError."""
        for folder in {self._memory, self._processes}:
            (folder / "cgroup.procs").write_text(str(pid))

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
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            groups += [(controller, path) for controller in controllers.split(",")]
    return groups


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
        file.write_text(text)
