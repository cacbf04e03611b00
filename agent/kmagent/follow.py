"""Follows the registry: takes the newest one, and does what it says of this node.

Neighbours say in their hellos which serial they have; who hears of a newer one asks the join API. So news pass through the
mesh from node to node, at once, and nobody polls.
"""

import asyncio
import contextlib
import json
import logging
import shutil
import time
from dataclasses import replace
from typing import Any

from kmagent import candidates, egress, firewall, identity_files, network, provision
from kmagent import registry as registries
from kmagent.candidates import Report
from kmagent.facts import Facts
from kmagent.http import Client, Tls
from kmagent.joining import child
from kmagent.mesh import Mesh
from kmagent.paths import Paths
from kmagent.programs import restart_kubelet, run_async
from kmagent.registry import Registry
from kmagent.relay import JOIN_PORT
from kmagent.state import State, boot_seconds
from kmplan.files import write

log = logging.getLogger(__name__)

AGAIN_S = 60.0
RETRY_S = 1.0
# News come no sooner one after the other.
BUSY_S = 0.3
SOON_S = 5.0
# A neighbour that has not heard of us yet may be behind; only a lasting refusal is one.
REFUSED_S = 10.0
# Who still lacks the newest registry after so long asks where there is none newer.
BEHIND_S = 3.0
# A node says how it is after as long again as it is up, but neither more nor less often than after this.
REPORT_S, SELDOM_S = 60.0, 300.0


class RestartError(Exception):
    """This node has another part from now on: the agent starts anew, as what it is then."""


class Follower:
    """Keeps this node's registry, mesh keys and role as the cluster has them."""

    def __init__(self, state: State, paths: Paths, mesh: Mesh, facts: Facts) -> None:
        self._state, self._paths, self._mesh, self._facts = state, paths, mesh, facts
        tls = Tls(paths.state / "pki/node-ca.crt", paths.state / "identity.crt")
        self._client = Client(facts.join, JOIN_PORT, tls=tls, timeout_s=10 * facts.probe_scale)
        self._enrol_at = time.monotonic() + SOON_S
        # When a neighbour that does not let this node in is asked over its relay, by port.
        self._ask_at: dict[str, float] = {}
        self._behind_since: float | None = None
        self._reported: tuple[frozenset[int], dict[str, str]] = (frozenset(), {})
        self._report_at = 0.0

    async def run(self) -> None:
        """Follow; ends with RestartError when this node's part in the cluster changed."""
        while True:
            news, start = self._mesh.news, time.monotonic()
            is_due = self._behind() or self._enrol_is_due() or self._report_is_due()
            if is_due and await self._reaches_join():
                await self._catch_up()
                await self._report_if_due()
            self._note_behind()
            await self._check_refused()
            soon, due = self._behind() or self._enrol_is_due(), min([self._enrol_at, *self._ask_at.values()])
            pause = RETRY_S if soon else min(AGAIN_S, max(RETRY_S, (due - time.monotonic()) / self._facts.probe_scale))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), pause * self._facts.probe_scale)
                await asyncio.sleep(start + BUSY_S * self._facts.probe_scale - time.monotonic())

    async def take(self, packed: str) -> None:
        """Take a signed registry that this node itself has written to etcd, or was given by the join API."""
        registry = registries.from_text(registries.unpack(packed)[0])
        if registry.serial > self._mesh.me.serial:
            await asyncio.to_thread(write, self._paths.registry, packed, 0o600)
            before = self._mesh.me.keys
            self._adopt(registry)
            if self._mesh.me.keys != before:
                kept = json.dumps(self._mesh.me.keys)
                await asyncio.to_thread(write, self._paths.mesh_keys, kept, 0o600)

    def _adopt(self, registry: Registry) -> None:
        me = self._mesh.me
        keys = {generation: key for generation, key in me.keys.items() if generation >= registry.oldest_key} or me.keys
        self._mesh.replace_self(replace(me, keys=keys, serial=registry.serial, registered=registry.numbers))
        self._state.serial = registry.serial
        self._state.touch()
        if self._wants_more(registry):
            self._enrol_at = 0.0
            self._mesh.wake()

    def _wants_more(self, registry: Registry) -> bool:
        """Whether the registry speaks of a role, a mesh key or an epoch that this node does not have yet."""
        me, facts = registry.find(number=self._facts.number), self._facts
        is_new = me is not None and (me.role, registry.epoch) != (facts.role, facts.epoch)
        return is_new or registry.mesh_key not in self._mesh.me.keys

    def _behind(self) -> bool:
        newest = [one.hello.serial for _, one in self._mesh.neighbours() if one.authenticated]
        return max(newest, default=0) > self._mesh.me.serial

    def _note_behind(self) -> None:
        """Say so when this node is behind and stays it: the join API that it reaches, perhaps its own, is behind as well."""
        now = time.monotonic()
        self._behind_since = (self._behind_since or now) if self._behind() else None
        lasts = self._behind_since is not None and now - self._behind_since > BEHIND_S * self._facts.probe_scale
        self._state.leave_behind(behind=lasts)

    async def _catch_up(self) -> None:
        if self._behind():
            with contextlib.suppress(OSError, ValueError):
                answer = await self._client.request("GET", "/v1/registry")
                if answer.status == 200:
                    await self.take(answer.body.decode())
                    self._ask_at = {}
        await self._enrol_if_due()

    async def _reaches_join(self) -> bool:
        return f"{self._facts.join}/128" in self._mesh.routes() or await network.has_address(self._facts.join)

    def _cables(self) -> tuple[frozenset[int], dict[str, str]]:
        return self._mesh.believed(), dict(self._mesh.offers)

    def _report_is_due(self) -> bool:
        """When something changed on its cables, every minute at first, and every five later."""
        return self._cables() != self._reported or time.monotonic() >= self._report_at

    async def _report_if_due(self) -> None:
        """Say how this node is."""
        if not self._report_is_due():
            return
        neighbours, offers = self._cables()
        free = await asyncio.to_thread(shutil.disk_usage, self._paths.state)
        report = Report(neighbours, round(boot_seconds(), 1), free.free, offers)
        with contextlib.suppress(OSError, ValueError):
            answer = await self._client.request("POST", "/v1/report", candidates.to_text(report).encode())
            if answer.status == 200:
                pause = min(max(REPORT_S, report.up_s), SELDOM_S)
                self._reported, self._report_at = (neighbours, offers), time.monotonic() + pause

    def _enrol_is_due(self) -> bool:
        return time.monotonic() >= self._enrol_at or not (self._paths.pki / "kubelet/client.crt").exists()

    async def _enrol_if_due(self) -> None:
        if not self._enrol_is_due():
            return
        answer = await child("enrol")
        if answer["state"] != "ok":
            self._enrol_at = 0.0
            return
        self._enrol_at = time.monotonic() + max(SOON_S, float(answer["renew_in_s"]))
        await self._take_enrolled(answer)

    async def _take_enrolled(self, answer: dict[str, Any]) -> None:
        keys = {int(generation): key for generation, key in json.loads(self._paths.mesh_keys.read_text()).items()}
        registry = registries.load(self._paths.registry)
        if (answer["role"], answer["epoch"]) != (self._facts.role, self._facts.epoch):
            log.info("this node is a %s in epoch %d now", answer["role"], answer["epoch"])
            if answer["epoch"] != self._facts.epoch and self._facts.controls:
                # It has not heard yet that the API's objects of its static pods are gone, and makes no new ones until it has.
                await restart_kubelet()
            raise RestartError
        await child("prepare")
        if registry:
            me = replace(self._mesh.me, keys=keys, serial=registry.serial, registered=registry.numbers)
            self._mesh.replace_self(me)
            self._state.serial = registry.serial
            if self._wants_more(registry):
                self._enrol_at = time.monotonic() + RETRY_S
        self._state.notify()

    async def _check_refused(self) -> None:
        """Ask over the relays of neighbours that do not let this node in: it may be behind together with others, or removed."""
        heard = [(port, one) for port, one in self._mesh.neighbours() if one.hello.number]
        refusing = [(port, one) for port, one in heard if not (one.hello.trusts and one.authenticated)]
        alone, scale = len(refusing) == len(heard), self._facts.probe_scale
        self._ask_at = {
            port.name: self._ask_at.get(port.name, time.monotonic() + REFUSED_S * scale) for port, _ in refusing
        }
        for port, neighbour in refusing:
            if time.monotonic() < self._ask_at[port.name]:
                continue
            # One that goes on refusing may be behind itself, or another cluster's.
            self._ask_at[port.name] = time.monotonic() + (RETRY_S if alone else AGAIN_S) * scale
            answer = await child("enrol", f"{neighbour.address}%{port.name}")
            if answer["state"] == "ok":
                await self._take_enrolled(answer)
                return
            if answer["state"] == "unknown" and alone:
                await leave(self._paths)
                raise RestartError


async def leave(paths: Paths) -> None:
    """Be a machine that belongs to no cluster again: what ran here ends, and what was given is put aside."""
    log.warning("this node was removed from the cluster")
    units = ["kubelet.service", "kubermesh-babeld.service", "ssh.service"]
    await run_async(["systemctl", "stop", *units], check=False)
    _, tasks = await run_async(["ctr", "--namespace=k8s.io", "tasks", "list", "--quiet"], check=False)
    for task in tasks.split():
        await run_async(["ctr", "--namespace=k8s.io", "tasks", "kill", "--signal=SIGKILL", task], check=False)
    await run_async(["systemctl", "stop", "containerd.service"], check=False)
    await provision.end(paths)
    await egress.end()
    await firewall.remove()
    await network.give_back()
    identity_files.put_aside(paths.state, everything=True)
    for name in ("pki", "config", "manifests", "kubelet"):
        shutil.rmtree(paths.run / name, ignore_errors=True)
    for path in (paths.facts, paths.addons, paths.babel_config, *paths.manifests.glob("*.yaml")):
        path.unlink(missing_ok=True)
