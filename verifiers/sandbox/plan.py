"""What a box is for and what a run in it may use."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

import msgspec

from headrace.verifiers.sandbox.layers import Layers

_INTERPRETER_BYTES = 64 << 20  # address space of a bare interpreter; more than that is the program's own
_SERVER_TASKS = 4
_PACKAGES = ("site-packages", "dist-packages")
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_OF_THE_LOADER = ("*-linux-*", "glibc-hwcaps", "locale")  # folders in these that the C library reads

MODULES = (
    "bisect", "collections", "copy", "datetime", "decimal", "enum", "fractions", "functools", "heapq",
    "itertools", "json", "math", "operator", "re", "string", "typing",
)  # fmt: skip
"""Loaded before the first run, so that none has to; the rest of the standard library is read when it is wanted.

Not `threading` and what needs it, nor `random`: what they do after each fork costs a run a third of its time.
"""


class Limits(msgspec.Struct, frozen=True):
    """What one run may use. Sizes are bytes, times seconds."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 5  # of the processor, whole ones
    memory_bytes: int = 512 << 20  # address space of a process, beyond the interpreter's own
    processes: int = 16  # threads count
    file_bytes: int = 16 << 20  # one file
    scratch_bytes: int = 32 << 20  # all files together
    open_files: int = 64
    output_bytes: int = 1 << 20  # of each: what it prints, and what it answers


class BoxPlan(msgspec.Struct, frozen=True):
    """What a box is for. `programs`: runs may start other programs; `readable`: host paths that they see, read-only."""

    limits: Limits = Limits()
    programs: bool = False
    readable: tuple[str, ...] = ()
    modules: tuple[str, ...] = MODULES


def cgroup_limits(plan: BoxPlan) -> tuple[int, int]:
    """Bytes and tasks that a box may have at once: one run and the server, and the test that calls the run if it may be
    called by one. A run that starts programs has no test in its box."""
    limits, runs = plan.limits, 1 if plan.programs else 2
    return (
        runs * (limits.memory_bytes + limits.scratch_bytes) + _INTERPRETER_BYTES,
        runs * limits.processes + _SERVER_TASKS,
    )


def server_plan(plan: BoxPlan, layers: Layers) -> dict[str, Any]:
    """What the server is told at its start, in JSON's types."""
    limits = plan.limits
    library = sysconfig.get_path("stdlib")
    libraries = [path for path in _LIBRARIES if os.path.isdir(path)]
    others = [path for path in ("/usr/share/zoneinfo",) if os.path.isdir(path)] + list(plan.readable)
    hidden = {path: _hidden(path, plan.readable) for path in libraries}
    hidden["/python"] = [name for name in _folders(library) if name in _PACKAGES]
    rlimits = {
        "RLIMIT_AS": limits.memory_bytes + _INTERPRETER_BYTES,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        # 0 would keep a core from being a file, but not from being piped to a helper of the host's; 1 does both.
        "RLIMIT_CORE": 1,
    }
    if layers.namespaces:  # elsewhere it would count all processes of the user
        rlimits["RLIMIT_NPROC"] = cgroup_limits(plan)[1]
    return {
        "namespaces": layers.namespaces,
        "two_users": False,
        "landlock": layers.landlock_abi > 0,
        "seccomp": layers.seccomp,
        "readable": [
            (library, "/python"),
            *((path, path) for path in (*libraries, *others)),
        ],  # host path, path in the box
        "hidden": hidden,  # by path in the box: names of folders in there
        "path": ["/python", "/python/lib-dynload"],
        "modules": list(plan.modules),
        "programs": plan.programs,
        "scratch_bytes": limits.scratch_bytes,
        "rlimits": rlimits,
        "cpu_seconds": limits.cpu_seconds,
    }


def _hidden(folder: str, readable: Iterable[str]) -> list[str]:
    """Which folders in a folder of shared libraries no run sees: all but the loader's own, and those that were asked for.
    They hold the packages of this and of other interpreters, and whatever else a host has installed."""
    wanted = [os.path.realpath(path) for path in readable]
    return [
        name
        for name in _folders(folder)
        if not any(fnmatch(name, pattern) for pattern in _OF_THE_LOADER)
        and not any(_share_a_path(os.path.realpath(os.path.join(folder, name)), path) for path in wanted)
    ]


def _share_a_path(one: str, other: str) -> bool:
    """Whether one of two paths holds the other."""
    return os.path.commonpath((one, other)) in (one, other)


def _folders(folder: str) -> list[str]:
    """The names of the folders in it; not of links: what they lead to is not there, or has a name of its own."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
