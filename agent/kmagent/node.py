"""This node's object in Kubernetes: what the agent adds to it, and whether it is Ready."""

import asyncio
import datetime
import logging
import time
from typing import Any

from kmagent import kubernetes_api
from kmagent.facts import Facts
from kmagent.http import Client
from kmagent.paths import Paths
from kmagent.state import State, boot_seconds
from kmplan.run import run_async

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


def is_ready(node: dict[str, Any], booted: float) -> bool:
    """Tell whether a node is Ready, by what its kubelet said after `booted` (seconds since 1970).

    For a while after a power cut the API still shows what was said before it.
    """
    conditions = node.get("status", {}).get("conditions", [])
    ready = next((condition for condition in conditions if condition["type"] == "Ready"), None)
    if ready is None or ready["status"] != "True":
        return False
    return datetime.datetime.fromisoformat(ready["lastHeartbeatTime"]).timestamp() >= int(booted)


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


async def hurry_kubelet(state: State, paths: Paths) -> None:
    """Start kubelet anew, once a boot, when the API that this node itself had to start is announced.

    Until then kubelet has found no API and waits longer from try to try: up to 7 s to register, 19 s for its CSINode,
    a minute for its own node object, without which a node is not Ready. A fresh one connects at once; running pods do
    not notice. (An API address that keeps clients waiting instead would stop kubelet from mounting anything.)
    """
    await state.wait_for("announced")
    if state.conditions["ready"] or paths.hurried.exists():
        return
    paths.hurried.touch()
    await run_async(["systemctl", "try-restart", "kubelet.service"], check=False)


async def _look(client: Client, facts: Facts) -> bool:
    path = f"/api/v1/nodes/{facts.name}"
    node = await kubernetes_api.get(client, path)
    if node is None:
        return False
    patch = missing(node, facts)
    if patch:
        node = await kubernetes_api.merge(client, path, patch)
    return is_ready(node, time.time() - boot_seconds())
