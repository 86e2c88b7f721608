"""Which layers this host has; found out by trying, once a process."""

from __future__ import annotations

from functools import cache

from headrace.verifiers.sandbox import landlock, syscalls
from headrace.verifiers.sandbox.box import Box, BoxFailed
from headrace.verifiers.sandbox.cgroup import Cgroup, CgroupMissing
from headrace.verifiers.sandbox.layers import LEAST_LANDLOCK, Layers
from headrace.verifiers.sandbox.plan import BoxPlan


@cache
def probe() -> Layers:
    """What is there, by trying it."""
    missing: dict[str, str] = {}
    if not syscalls.supported():
        reason = "only Linux on x86_64 and aarch64 is supported"
        return Layers(False, 0, False, False, dict.fromkeys(("seccomp", "landlock", "namespaces", "cgroup"), reason))
    try:
        syscalls.libc("prctl", 21, 0, 0, 0, 0)  # PR_GET_SECCOMP
        seccomp = True
    except OSError as error:
        seccomp, missing["seccomp"] = False, str(error)
    abi = landlock.abi()
    if abi < LEAST_LANDLOCK:
        missing["landlock"] = f"ABI {abi}, it takes {LEAST_LANDLOCK}" if abi else "the kernel does not offer it"
    fault = _namespaces_fault()
    if fault:
        missing["namespaces"] = fault
    try:
        Cgroup.create("probe").remove()
        cgroup = True
    except CgroupMissing as error:
        cgroup, missing["cgroup"] = False, str(error)
    return Layers(seccomp, abi, not fault, cgroup, missing)


def _namespaces_fault() -> str:
    """Why a box in namespaces cannot be made here; empty when it can."""
    only_namespaces = Layers(seccomp=True, landlock_abi=0, namespaces=True, cgroup=False)
    try:
        Box(BoxPlan(), only_namespaces).close()
    except BoxFailed as error:
        return str(error)
    return ""
