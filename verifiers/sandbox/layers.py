"""What can stand round code that must not be trusted, and which of it a run cannot do without."""

from __future__ import annotations

from collections.abc import Iterable

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
    """A layer that runs cannot do without, or one of several that serve."""

    any_of: tuple[str, ...]
    what_for: str
    how_to_get: str


LEAST_LANDLOCK = 3  # earlier ones let files be truncated

_NAMESPACES = (
    "user namespaces (sysctl user.max_user_namespaces above 0, and a container whose seccomp profile allows unshare "
    "and mount)"
)
NEEDS = (
    Need(("seccomp",), "no sockets, no tracing, no new processes", "a kernel with CONFIG_SECCOMP_FILTER, x86_64 or aarch64"),
    Need(
        ("landlock", "namespaces"),
        "no view of the host's files",
        f"Linux 6.2 with `landlock` in /sys/kernel/security/lsm, or {_NAMESPACES}",
    ),
)  # fmt: skip
_NEED_OF_PROGRAMS = Need(("namespaces",), "processes and a folder of its own", _NAMESPACES)


def names(layers: Layers) -> list[str]:
    """The layers that are there."""
    present = {
        "seccomp": layers.seccomp,
        "rlimits": True,
        "landlock": layers.landlock_abi >= LEAST_LANDLOCK,
        "namespaces": layers.namespaces,
        "cgroup": layers.cgroup,
    }
    return [name for name, there in present.items() if there]


def require(layers: Layers) -> None:
    """Raises UserError, naming what is missing and how to get it."""
    _require(layers, NEEDS)


def require_for_programs(layers: Layers) -> None:
    """The same for programs other than Python, which would write into the host's folders: nothing can take its place."""
    _require(layers, [_NEED_OF_PROGRAMS])


def _require(layers: Layers, needs: Iterable[Need]) -> None:
    unmet = [need for need in needs if not any(name in names(layers) for name in need.any_of)]
    if unmet:
        raise UserError("; ".join(_fault(layers, need) for need in unmet))


def _fault(layers: Layers, need: Need) -> str:
    reasons = "; ".join(f"{name}: {layers.missing[name]}" for name in need.any_of if name in layers.missing)
    return (
        f"the sandbox has no {' and no '.join(need.any_of)} here{f' ({reasons})' if reasons else ''}; without, code would "
        f"not run with {need.what_for}. It takes {need.how_to_get}"
    )
