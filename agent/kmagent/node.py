"""This node's object in Kubernetes: what the agent adds to it, and whether it is Ready."""

import asyncio
import logging
from typing import Any

from kmagent import kubernetes_api
from kmagent.facts import Facts
from kmagent.http import Client
from kmagent.state import State

log = logging.getLogger(__name__)

WAITING_S = 0.5
READY_S = 10.0
CONTROL_PLANE_LABEL = "node-role.kubernetes.io/control-plane"


def missing(node: dict[str, Any], facts: Facts) -> dict[str, Any]:
    """Return the patch that a node object needs: its role, and its pods' prefixes for those who look for them there."""
    patch: dict[str, Any] = {}
    if facts.role == "voter" and CONTROL_PLANE_LABEL not in node["metadata"].get("labels", {}):
        patch["metadata"] = {"labels": {CONTROL_PLANE_LABEL: ""}}
    if not node["spec"].get("podCIDRs"):
        patch["spec"] = {"podCIDR": facts.pods, "podCIDRs": [facts.pods, facts.pods4]}
    return patch


def is_ready(node: dict[str, Any]) -> bool:
    """Tell whether Kubernetes calls a node Ready."""
    conditions = node.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


async def run(state: State, client: Client) -> None:
    """Keep the condition `ready`. While the API is away nothing is known and nothing changes."""
    facts = state.facts
    assert facts is not None  # noqa: S101 - configured
    while True:
        await state.wait_for("api")
        try:
            state.set("ready", await _look(client, facts))
        except OSError as error:
            log.warning("%s", error)
        await asyncio.sleep(facts.probe_scale * (READY_S if state.conditions["ready"] else WAITING_S))


async def _look(client: Client, facts: Facts) -> bool:
    path = f"/api/v1/nodes/{facts.name}"
    node = await kubernetes_api.get(client, path)
    if node is None:
        return False
    patch = missing(node, facts)
    if patch:
        node = await kubernetes_api.merge(client, path, patch)
    return is_ready(node)
