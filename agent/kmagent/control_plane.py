"""The control plane's static pods, started in order: what comes too early crash-loops."""

import asyncio
import logging

from kmagent.components import CONTROL_PLANE
from kmagent.etcd import METRICS_PORT
from kmagent.http import Client
from kmagent.paths import Paths
from kmagent.state import State
from kmplan.files import write_if_changed

log = logging.getLogger(__name__)

ETCD_STARTING_S = 0.2
ETCD_RUNNING_S = 5.0


def wanted_manifests(etcd: bool, api: bool, present: frozenset[str]) -> list[str]:
    """Return the components whose manifests are due: what is present stays, and the next one when its basis serves."""
    due = {"etcd", *present}
    if etcd:
        due.add("kube-apiserver")
    if api:
        due.update(("kube-controller-manager", "kube-scheduler"))
    return [name for name in CONTROL_PLANE if name in due]


def place(paths: Paths, etcd: bool, api: bool) -> list[str]:
    """Give kubelet the manifests that are due; returns those that were new or changed."""
    present = frozenset(path.stem for path in paths.manifests.glob("*.yaml"))
    placed = []
    for name in wanted_manifests(etcd, api, present):
        content = (paths.staged / f"{name}.yaml").read_text()
        if write_if_changed(paths.manifests / f"{name}.yaml", content, 0o600):
            placed.append(name)
    return placed


def withdraw(paths: Paths) -> list[str]:
    """Take the manifests away, so that kubelet ends what they are of; returns which there were."""
    found = [name for name in CONTROL_PLANE if (paths.manifests / f"{name}.yaml").exists()]
    for name in reversed(found):
        (paths.manifests / f"{name}.yaml").unlink()
    return found


async def run(state: State, paths: Paths) -> None:
    """Place manifests whenever something came up or was rendered again, and take them away when the fence is closed.

    A standby has an etcd, and no API server of its own.
    """
    assert state.facts is not None  # noqa: S101 - configured
    votes = state.facts.role == "voter"
    while True:
        changed = state.change()
        if state.fenced:
            if ended := await asyncio.to_thread(withdraw, paths):
                log.warning("%s ended: %s", ", ".join(ended), state.fenced)
            await changed.wait()
            continue
        etcd, api = (votes and state.conditions[name] for name in ("etcd", "api"))
        placed = await asyncio.to_thread(place, paths, etcd, api)
        if placed:
            log.info("kubelet was given %s", ", ".join(placed))
        await changed.wait()


async def watch_etcd(state: State, scale: float) -> None:
    """Keep the condition `etcd`: does the local member serve? A standby's lives, and is never ready by its own word."""
    assert state.facts is not None  # noqa: S101 - configured
    path = "/readyz" if state.facts.role == "voter" else "/livez"
    client = Client("127.0.0.1", METRICS_PORT, timeout_s=5 * scale)
    while True:
        state.set("etcd", await client.is_ok(path))
        await asyncio.sleep(scale * (ETCD_RUNNING_S if state.conditions["etcd"] else ETCD_STARTING_S))
