"""What can stand round code that must not be trusted, and which of it a run cannot do without."""

from __future__ import annotations

import msgspec

from headrace.verifiers.errors import UserError


class Layers(msgspec.Struct, frozen=True):
    """Which layers there are. A reason stands in `missing` for each that is not there, by its name."""

    seccomp: bool
    landlock_abi: int  # 0: none
    namespaces: bool
    cgroup: bool
    missing: dict[str, str] = {}


class Need(msgspec.Struct, frozen=True):
    """A layer that a run cannot do without, or one of several that serve."""

    any_of: tuple[str, ...]
    what_for: str
    how_to_get: str


NEEDS = (
    Need(("seccomp",), "no sockets, no tracing, no new processes", "a kernel with CONFIG_SECCOMP_FILTER, x86_64 or aarch64"),
    Need(
        ("landlock", "namespaces"),
        "no view of the host's files",
        "Linux 5.13 with `landlock` in /sys/kernel/security/lsm, or user namespaces (sysctl user.max_user_namespaces, and a "
        "container whose seccomp profile allows unshare)",
    ),
)  # fmt: skip


def names(layers: Layers) -> list[str]:
    """The layers that are there."""
    present = {
        "seccomp": layers.seccomp,
        "rlimits": True,
        "landlock": layers.landlock_abi > 0,
        "namespaces": layers.namespaces,
        "cgroup": layers.cgroup,
    }
    return [name for name, there in present.items() if there]


def require(layers: Layers) -> None:
    """Raises UserError, naming what is missing and how to get it."""
    there = names(layers)
    for need in NEEDS:
        if not any(name in there for name in need.any_of):
            reasons = "; ".join(f"{name}: {layers.missing[name]}" for name in need.any_of if name in layers.missing)
            raise UserError(
                f"the sandbox has no {' and no '.join(need.any_of)} here ({reasons}); without, code would not run with "
                f"{need.what_for}. It takes {need.how_to_get}"
            )
