"""The shared memory that an engine's processes hold: who dies by SIGKILL cannot give it back, so others do it for them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")


def segments_of(pid: int) -> list[str]:
    """Names of the segments that the process and its descendants have mapped."""
    process = psutil.Process(pid)
    return sorted(_mapped(each.pid for each in (process, *process.children(recursive=True))))


def release(names: Iterable[str]) -> list[str]:
    """Remove those of the segments that no living process has mapped; the names of the ones removed."""
    removed = []
    for name in set(names) - _mapped(psutil.pids()):
        try:
            os.unlink(SHARED_MEMORY / name)
        except FileNotFoundError:
            continue  # its owner did it
        removed.append(name)
    return sorted(removed)


def _mapped(pids: Iterable[int]) -> set[str]:
    """By inode: a semaphore is mapped under a name that is gone by the time it has its own."""
    inodes: set[int] = set()
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended between the listing and the look, or is another user's and so maps none of ours
        inodes |= {int(line.split()[4]) for line in lines if f" {SHARED_MEMORY}/" in line}
    return {entry.name for entry in os.scandir(SHARED_MEMORY) if entry.inode() in inodes}
