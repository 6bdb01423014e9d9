"""The nodes of the Ray cluster, as far as it is cheap to ask."""

from typing import Any, cast

import ray
from ray import _raylet
from ray._private.state import available_resources_per_node

from trimtab.api.answers import NodeHealth, ResourceHealth

HEAD = "node:__internal_head__"  # the resource that marks it


def nodes() -> list[NodeHealth]:
    """The nodes that are alive, the head first. Waits for Ray's control store."""
    gcs = cast(Any, _raylet).GcsClient(address=ray.get_runtime_context().gcs_address)
    draining = {node if isinstance(node, str) else node.hex() for node in gcs.get_draining_nodes()}
    free = available_resources_per_node()
    found = [_node(node, draining, free.get(node["NodeID"], {})) for node in ray.nodes() if node["Alive"]]
    return sorted(found, key=lambda node: (not node.head, node.host, node.id))


def _node(node: dict[str, Any], draining: set[str], free: dict[str, float]) -> NodeHealth:
    return NodeHealth(
        id=node["NodeID"],
        host=node["NodeManagerHostname"],
        address=node["NodeManagerAddress"],
        head=HEAD in node["Resources"],
        draining=node["NodeID"] in draining,
        resources={
            name: ResourceHealth(total=total, free=free.get(name, 0.0))
            for name, total in sorted(node["Resources"].items())
            if not name.startswith("node:")
        },
    )
