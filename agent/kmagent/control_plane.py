"""The control plane's static pods, started in order: what comes too early crash-loops."""

import asyncio
import logging
from collections.abc import Callable

from kmagent import anycast, end_etcd
from kmagent.components import CONTROL_PLANE
from kmagent.etcd import METRICS_PORT
from kmagent.http import Client
from kmagent.paths import Paths
from kmagent.state import State
from kmplan.errors import UserError
from kmplan.files import write

log = logging.getLogger(__name__)

ETCD_STARTING_S = 0.2
ETCD_RUNNING_S = 5.0
# Before it serves anybody, etcd asks every other member for a hash of its data, and waits 7 s for one that has just been started
# as well: that is worth it where others serve. Where all start at once none is told anything (etcd, server/embed/etcd.go).
CHECKED, UNCHECKED = "InitialCorruptCheck=true", "InitialCorruptCheck=false"
# What the API needs here, and how long kubelet may take to end it when it was given another manifest.
SERVING, KUBELET_S = ("etcd", "kube-apiserver"), 3.0


def wanted_manifests(etcd: bool, api: bool, present: frozenset[str]) -> list[str]:
    """Return the components whose manifests are due: what is present stays, and the next one when its basis serves."""
    due = {"etcd", *present}
    if etcd:
        due.add("kube-apiserver")
    if api:
        due.update(("kube-controller-manager", "kube-scheduler"))
    return [name for name in CONTROL_PLANE if name in due]


def changes(paths: Paths, etcd: bool, api: bool) -> dict[str, str]:
    """Return the manifests that are due and that kubelet does not have as they are now, by component."""
    given = {path.stem: path.read_text() for path in paths.manifests.glob("*.yaml")}
    wanted = wanted_manifests(etcd, api, frozenset(given))
    staged = {name: (paths.staged / f"{name}.yaml").read_text() for name in wanted}
    if paths.cold_start.exists():
        staged["etcd"] = staged["etcd"].replace(CHECKED, UNCHECKED)
    return {name: text for name, text in staged.items() if given.get(name) != text}


def note_start(paths: Paths, *, served: bool) -> None:
    """Note whether etcd starts where no other one serves (`served`), unless kubelet has it already."""
    if (paths.manifests / "etcd.yaml").exists():
        return
    if served:
        paths.cold_start.unlink(missing_ok=True)
    else:
        paths.cold_start.touch()


def place(paths: Paths, manifests: dict[str, str]) -> None:
    """Give kubelet manifests."""
    for name, text in manifests.items():
        write(paths.manifests / f"{name}.yaml", text, 0o600)


def withdraw(paths: Paths) -> list[str]:
    """Take the manifests away, so that kubelet ends what they are of; returns which there were."""
    found = [name for name in CONTROL_PLANE if (paths.manifests / f"{name}.yaml").exists()]
    for name in reversed(found):
        (paths.manifests / f"{name}.yaml").unlink()
    return found


async def run(state: State, paths: Paths, is_served: Callable[[], bool]) -> None:
    """Place manifests whenever something came up or was rendered again, and take them away when the fence is closed.

    A standby has an etcd, and no API server of its own. `is_served` says whether another node's etcd serves.
    """
    assert state.facts is not None  # noqa: S101 - configured
    votes = state.facts.role == "voter"
    while True:
        changed = state.change()
        if state.fenced:
            if ended := await asyncio.to_thread(withdraw, paths):
                log.warning("%s ended: %s", ", ".join(ended), state.fenced)
            try:
                # Also where kubelet stands still, or this agent was started anew: what etcd acknowledges would be lost.
                await asyncio.to_thread(end_etcd.end, paths.etcd_database)
            except UserError as error:
                log.error("%s", error)
                continue
            await changed.wait()
            continue
        etcd, api = (votes and state.conditions[name] for name in ("etcd", "api"))
        note_start(paths, served=is_served())
        due = await asyncio.to_thread(changes, paths, etcd, api)
        if state.conditions["announced"] and not due.keys().isdisjoint(SERVING):
            await anycast.step_aside(state, paths)
        if due:
            await asyncio.to_thread(place, paths, due)
            log.info("kubelet was given %s", ", ".join(due))
        if state.aside:
            await asyncio.sleep(KUBELET_S * state.facts.probe_scale)
            state.aside = False
            continue
        await changed.wait()


async def watch_etcd(state: State, scale: float) -> None:
    """Keep the condition `etcd`: does the local member serve? A standby's lives, and is never ready by its own word."""
    assert state.facts is not None  # noqa: S101 - configured
    path = "/readyz" if state.facts.role == "voter" else "/livez"
    client = Client("127.0.0.1", METRICS_PORT, timeout_s=5 * scale)
    while True:
        state.set("etcd", await client.is_ok(path))
        await asyncio.sleep(scale * (ETCD_RUNNING_S if state.conditions["etcd"] else ETCD_STARTING_S))
