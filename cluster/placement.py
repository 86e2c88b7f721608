"""What the job needs against what the cluster has, before anything starts.

Pools are placed by Ray's resources. A cluster whose nodes carry `headrace_rollout`, `headrace_verification` or
`headrace_learner` (deploy/rayjob.yaml gives each worker group its own) places each pool on its nodes; one without them
takes any node with room.
"""

from __future__ import annotations

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
        wanted = ", ".join(f"{amount:g} {name}" for name, amount in self.resources.items())
        return f"{self.member} ({wanted or 'nothing'})"


class Node(msgspec.Struct, frozen=True):
    name: str
    resources: dict[str, float]


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
    return [Node(node["NodeManagerAddress"], node["Resources"]) for node in described if node["Alive"]]


def free_nodes(described: list[dict[str, Any]], available: dict[str, dict[str, float]]) -> list[Node]:
    """The same with what is left of them; `available` is by node id."""
    return [Node(node["NodeManagerAddress"], available.get(node["NodeID"], {})) for node in described if node["Alive"]]


def custom_resources(nodes: list[Node]) -> frozenset[str]:
    return frozenset(name for node in nodes for name in node.resources if name.startswith("headrace_"))


def check_fits(wanted: list[Bundle], nodes: list[Node]) -> None:
    """Place the bundles, those bound to their pool's nodes first and then the largest first, each on the node with the least
    room that it fits on.

    Raises:
        UserError: a bundle fits nowhere; names it, and what each node has left.
    """
    left = {node.name: dict(node.resources) for node in nodes}
    for bundle in sorted(wanted, key=_hardest_first):
        fitting = [
            name
            for name, free in left.items()
            if all(free.get(resource, 0) >= amount - 1e-9 for resource, amount in bundle.resources.items())
        ]
        if not fitting:
            raise UserError(_does_not_fit(bundle, wanted, left))
        chosen = left[min(fitting, key=lambda name: (left[name].get("GPU", 0), left[name].get("CPU", 0)))]
        for resource, amount in bundle.resources.items():
            chosen[resource] -= amount


def _hardest_first(bundle: Bundle) -> tuple[bool, float, float]:
    bound = f"headrace_{bundle.pool}" in bundle.resources
    return not bound, -bundle.resources.get("GPU", 0), -bundle.resources.get("CPU", 0)


def _does_not_fit(bundle: Bundle, wanted: list[Bundle], left: dict[str, dict[str, float]]) -> str:
    totals: dict[str, float] = {}
    for each in wanted:
        for resource, amount in each.resources.items():
            totals[resource] = totals.get(resource, 0) + amount
    shown = "; ".join(
        f"node {name}: " + ", ".join(f"{free.get(resource, 0):g} {resource}" for resource in bundle.resources)
        for name, free in left.items()
    )
    needs = ", ".join(f"{amount:g} {resource}" for resource, amount in totals.items())
    return (
        f"the job does not fit the cluster: no place for {bundle}. Left once the rest is placed: {shown}. The whole job "
        f"needs {needs}. Start more nodes, or lower [{bundle.pool}] cpus, gpus or its number of members"
    )
