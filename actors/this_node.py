"""Which node of the Ray cluster this process is on, and under which address the other members reach it."""

from __future__ import annotations

from typing import NamedTuple

import ray

from headrace.verifiers.telemetry import LOOPBACK


class ThisNode(NamedTuple):
    id: str  # Ray's; empty outside a cluster
    address: str


def this_node() -> ThisNode:
    """The address is the one that the node has in the cluster: loopback in one that a run starts for itself.

    `ray.util.get_node_ip_address` asks the routing table instead, and would have us listen on the machine's own network.
    """
    if not ray.is_initialized():  # to ask would start a cluster
        return ThisNode("", LOOPBACK)
    node_id = ray.get_runtime_context().get_node_id()
    return ThisNode(node_id, next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == node_id))
