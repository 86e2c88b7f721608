"""What the job needs against what the cluster has: all of it before anything starts, and new members before they do.

Pools are placed by Ray's resources. A cluster whose nodes carry `headrace_rollout`, `headrace_verification` or
`headrace_learner` (deploy/rayjob.yaml gives each worker group its own) places each pool on its nodes; one without them
takes any node with room.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from headrace.cluster.config import JobConfig
from headrace.cluster.run_records import Pool
from headrace.verifiers.errors import UserError

MARKER = 0.001  # how much of a pool's custom resource one member takes: it names a place and is no quantity


class Bundle(msgspec.Struct, frozen=True):
    """The resources of one member, by Ray's names (memory in bytes)."""

    member: str
    pool: Pool
    resources: dict[str, float]

    def __str__(self) -> str:
        return f"{self.member} ({describe(self.resources)})"


def describe(resources: dict[str, float]) -> str:
    """
    >>> describe({"CPU": 2.0, "GPU": 0.5})
    '2 CPU, 0.5 GPU'
    """
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "nothing"


class Node(msgspec.Struct, frozen=True):
    name: str  # its address, which other nodes may share
    resources: dict[str, float]
    id: str = ""  # Ray's


def member_resources(job: JobConfig, pool: Pool, custom: frozenset[str]) -> dict[str, float]:
    """What one member of a pool asks of Ray. `custom`: the custom resources that the cluster has."""
    section = {Pool.ROLLOUT: job.rollout, Pool.LEARNER: job.learner, Pool.VERIFICATION: job.verification}[pool]
    wanted = {
        "CPU": section.cpus,
        "GPU": getattr(section, "gpus", 0.0),
        "memory": float(getattr(section, "memory_bytes", 0)),
    }
    if f"headrace_{pool}" in custom:
        wanted[f"headrace_{pool}"] = MARKER
    if pool is Pool.ROLLOUT and job.rollout.engines_per_node is not None:
        # A share of what each rollout node has 1 of; where no node has any, the job does not fit, and says so.
        wanted["headrace_rollout"] = 1 / job.rollout.engines_per_node
    return {name: amount for name, amount in wanted.items() if amount > 0}


def bundles(job: JobConfig, custom: frozenset[str]) -> list[Bundle]:
    """Everything that the job starts with."""
    counts = {
        Pool.LEARNER: job.learner.ranks,
        Pool.ROLLOUT: job.rollout.generators,
        Pool.VERIFICATION: job.verification.workers,
    }
    return [
        Bundle(f"{pool}-{index}", pool, member_resources(job, pool, custom))
        for pool, count in counts.items()
        for index in range(count)
    ]


def ray_nodes(described: list[dict[str, Any]]) -> list[Node]:
    """The living nodes of `ray.nodes()`."""
    return [Node(node["NodeManagerAddress"], node["Resources"], node["NodeID"]) for node in described if node["Alive"]]


def free_nodes(described: list[dict[str, Any]], available: dict[str, dict[str, float]]) -> list[Node]:
    """The same with what is left of them; `available` is by node id."""
    return [msgspec.structs.replace(node, resources=available.get(node.id, {})) for node in ray_nodes(described)]


def with_released(nodes: list[Node], released: Iterable[tuple[str, dict[str, float]]]) -> list[Node]:
    """The nodes with what is given back to them: (node id, resources) each; one that is gone gives nothing back."""
    grown = [msgspec.structs.replace(node, resources=dict(node.resources)) for node in nodes]
    by_id = {node.id: node.resources for node in grown}
    for node_id, resources in released:
        free = by_id.get(node_id, {})
        for resource, amount in resources.items():
            free[resource] = free.get(resource, 0) + amount
    return grown


def custom_resources(nodes: list[Node]) -> frozenset[str]:
    return frozenset(name for node in nodes for name in node.resources if name.startswith("headrace_"))


def check_fits(wanted: list[Bundle], nodes: list[Node]) -> None:
    """Whether the whole job has room.

    Raises:
        UserError: a bundle fits nowhere; names it, and what each node has left.
    """
    if (found := place(wanted, nodes)) is None:
        return
    totals: dict[str, float] = {}
    for each in wanted:
        for resource, amount in each.resources.items():
            totals[resource] = totals.get(resource, 0) + amount
    raise UserError(
        f"the job does not fit the cluster: no place for {found.bundle}. Left once the rest is placed: {found.left}. The "
        f"whole job needs {describe(totals)}. Start more nodes, or lower [{found.bundle.pool}] cpus, gpus or its number "
        "of members"
    )


def check_growth(wanted: list[Bundle], nodes: list[Node]) -> None:
    """Whether new members have room in what is free now.

    Raises:
        UserError: the same.
    """
    if (found := place(wanted, nodes)) is not None:
        raise UserError(
            f"no place now for {found.bundle}, of {len(wanted)} new member(s). Free once the others are placed: "
            f"{found.left}. The cluster is large enough, but this run and other jobs hold the rest of it. Wait for those, "
            "start more nodes, or ask for fewer members"
        )


class Unplaced(msgspec.Struct, frozen=True):
    bundle: Bundle
    left: str  # what each node has of what the bundle asks for


def place(wanted: list[Bundle], nodes: list[Node]) -> Unplaced | None:
    """Place the bundles, those bound to their pool's nodes first and then the largest first, each on the node with the least
    room that it fits on; the first that fits nowhere."""
    left = [(node.name, dict(node.resources)) for node in nodes]
    for bundle in sorted(wanted, key=_hardest_first):
        fitting = [
            free
            for _, free in left
            if all(free.get(resource, 0) >= amount - 1e-9 for resource, amount in bundle.resources.items())
        ]
        if not fitting:
            shown = [
                f"node {name}: {describe({resource: free.get(resource, 0) for resource in bundle.resources})}"
                for name, free in left
            ]
            return Unplaced(bundle, "; ".join(shown))
        chosen = min(fitting, key=lambda free: (free.get("GPU", 0), free.get("CPU", 0)))
        for resource, amount in bundle.resources.items():
            chosen[resource] -= amount
    return None


def _hardest_first(bundle: Bundle) -> tuple[bool, float, float]:
    bound = f"headrace_{bundle.pool}" in bundle.resources
    return not bound, -bundle.resources.get("GPU", 0), -bundle.resources.get("CPU", 0)
