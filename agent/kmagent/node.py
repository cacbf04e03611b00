"""This node's object in Kubernetes: what the agent adds to it, and whether it is Ready."""

import asyncio
import datetime
import logging
import time
from typing import Any

from kmagent import kubernetes_api
from kmagent.http import Client
from kmagent.paths import Paths
from kmagent.programs import restart_kubelet, run_async
from kmagent.registry import Node
from kmagent.state import State, boot_seconds

log = logging.getLogger(__name__)

WAITING_S = 0.5
READY_S = 10.0
MISSES = 3
CONTROL_PLANE_LABEL = "node-role.kubernetes.io/control-plane"
# A person's word that a node shall never vote.
BARRED_LABEL, BARRED = "kubermesh.io/control-plane", "never"


def missing(item: dict[str, Any], node: Node, pods: list[str]) -> dict[str, Any]:
    """Return the patch that a node object needs: its role, and its pods' prefixes for those who look for them there."""
    patch: dict[str, Any] = {}
    labelled = CONTROL_PLANE_LABEL in item["metadata"].get("labels", {})
    if labelled != (node.role == "voter"):
        patch["metadata"] = {"labels": {CONTROL_PLANE_LABEL: None if labelled else ""}}
    if not item["spec"].get("podCIDRs"):
        patch["spec"] = {"podCIDR": pods[0], "podCIDRs": pods}
    return patch


def is_barred(item: dict[str, Any] | None) -> bool:
    """Tell whether a node's object has the label that keeps it out of the control plane."""
    return item is not None and item["metadata"].get("labels", {}).get(BARRED_LABEL) == BARRED


def is_ready_now(item: dict[str, Any]) -> bool:
    """Tell whether Kubernetes takes a node for Ready."""
    condition = _ready_condition(item)
    return condition is not None and condition["status"] == "True"


def is_ready(node: dict[str, Any], booted: float) -> bool:
    """Tell whether a node is Ready, by what its kubelet said after `booted` (seconds since 1970).

    For a while after a power cut the API still shows what was said before it.
    """
    ready = _ready_condition(node)
    if ready is None or ready["status"] != "True":
        return False
    return datetime.datetime.fromisoformat(ready["lastHeartbeatTime"]).timestamp() >= int(booted)


def _ready_condition(item: dict[str, Any]) -> dict[str, Any] | None:
    conditions = item.get("status", {}).get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == "Ready"), None)


async def run(state: State, client: Client) -> None:
    """Keep the condition `ready`. While the API is away nothing is known and nothing changes."""
    facts = state.facts
    assert facts is not None  # noqa: S101 - configured
    while True:
        await state.wait_for("api")
        try:
            item = await kubernetes_api.get(client, f"/api/v1/nodes/{facts.name}")
            state.set("ready", item is not None and is_ready(item, time.time() - boot_seconds()))
        except OSError as error:
            log.warning("%s", error)
        await asyncio.sleep(facts.probe_scale * (READY_S if state.conditions["ready"] else WAITING_S))


async def reach_api(state: State, paths: Paths, client: Client) -> None:
    """Keep the condition `api` on a node without an API server of its own, and start kubelet once there is one to talk to.

    kubelet that finds no API waits longer from try to try, and has nothing to do before.
    """
    facts = state.facts
    assert facts is not None  # noqa: S101 - configured
    misses = 0
    while True:
        ok = (paths.pki / "kubelet/client.crt").exists() and await client.is_ok("/readyz")
        misses = 0 if ok else misses + 1
        if ok or misses >= MISSES:
            state.set("api", ok)
        if ok and not paths.kubelet_start.exists():
            await start_kubelet(paths)
        await asyncio.sleep(facts.probe_scale * (READY_S if state.conditions["api"] and not misses else WAITING_S))


async def start_kubelet(paths: Paths) -> None:
    """Let kubelet start; it goes on where it was if it runs."""
    paths.kubelet_start.touch()
    await run_async(["systemctl", "start", "--no-block", "kubelet.service"], check=False)


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
    await restart_kubelet()
