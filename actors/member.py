"""What every member of a pool says of itself when it is up."""

from __future__ import annotations

import msgspec


class MemberReport(msgspec.Struct, frozen=True):
    """Of a verification worker all there is to say; the other pools' members add to it."""

    pid: int
    node: str  # its address in the cluster, which other nodes may share
    metrics_url: str
    node_id: str = ""  # Ray's; empty outside a cluster


class GeneratorReport(MemberReport, frozen=True, kw_only=True):
    shared_memory: list[str]  # segments that its processes hold, by name: to be released if it is killed
