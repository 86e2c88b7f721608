"""Under which address the other members reach this process's node."""

from __future__ import annotations

import ray


def node_address() -> str:
    """The address that this node has in the Ray cluster: loopback in one that a run starts for itself.

    `ray.util.get_node_ip_address` asks the routing table instead, and would have us listen on the machine's own network.
    """
    node_id = ray.get_runtime_context().get_node_id()
    return next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == node_id)
