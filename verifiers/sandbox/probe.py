"""Which layers this host has; found out by trying, once a process."""

from __future__ import annotations

from functools import cache

from headrace.verifiers.sandbox import landlock, syscalls
from headrace.verifiers.sandbox.box import Box, BoxFailed
from headrace.verifiers.sandbox.cgroup import Cgroup, CgroupMissing
from headrace.verifiers.sandbox.layers import LEAST_LANDLOCK, Layers
from headrace.verifiers.sandbox.plan import BoxPlan
from headrace.verifiers.sandbox.programs import call_function


@cache
def probe() -> Layers:
    """What is there, by trying it."""
    missing: dict[str, str] = {}
    if not syscalls.supported():
        reason = "only Linux on x86_64 and aarch64 is supported"
        return Layers(False, 0, False, False, dict.fromkeys(("seccomp", "landlock", "namespaces", "cgroup"), reason))
    # Filters, by putting one on: a kernel that knows of seccomp, and a container, may all the same refuse them.
    seccomp_fault = _fault(seccomp=True, namespaces=False)
    if seccomp_fault:
        missing["seccomp"] = seccomp_fault
    abi = landlock.abi()
    if abi < LEAST_LANDLOCK:
        missing["landlock"] = f"ABI {abi}, it takes {LEAST_LANDLOCK}" if abi else "the kernel does not offer it"
    namespaces_fault = _fault(seccomp=False, namespaces=True)
    if namespaces_fault:
        missing["namespaces"] = namespaces_fault
    try:
        Cgroup.create("probe").remove()
        cgroup = True
    except CgroupMissing as error:
        cgroup, missing["cgroup"] = False, str(error)
    return Layers(not seccomp_fault, abi, not namespaces_fault, cgroup, missing)


def _fault(*, seccomp: bool, namespaces: bool) -> str:
    """Why a box of this one layer, with a run in it, cannot be made here; empty when it can."""
    layers = Layers(seccomp=seccomp, landlock_abi=0, namespaces=namespaces, cgroup=False)
    box = None
    try:
        box = Box(BoxPlan(), layers)
        call_function(box, "def f(): return 0", "f", [[]])  # a run puts on more than the server does
    except BoxFailed as error:
        return str(error)
    finally:
        if box is not None:
            box.close()
    return ""
