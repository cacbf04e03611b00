"""What one node does for all: the one whose etcd leads. It stops when another leads, and picks up where that one was."""

import asyncio
import contextlib
import logging
import random
import time

from kmagent import kubernetes_api, network, serving
from kmagent.authority import RefusedError
from kmagent.facts import Facts
from kmagent.http import Client
from kmagent.ledger import Ledger
from kmagent.membership import Membership, Seen
from kmagent.mesh import Mesh
from kmagent.mesh_nodes import MeshNodes
from kmagent.node import is_barred, is_ready_now, missing
from kmagent.outages import Outages
from kmagent.paths import Paths
from kmagent.registry import Node, Registry
from kmagent.rollout import Rollout
from kmagent.snapshots import Snapshots
from kmagent.state import State
from kmagent.watch import Watch
from kmplan.errors import UserError

log = logging.getLogger(__name__)

BUSY_S = 0.3
PERIOD_S = 1.0
# After so many turns without anything to do, turns come further apart, and what is watched is looked at without news after:
SETTLED_TURNS, SETTLED_S, LOOK_S = 20, 6.0, 60.0
OLD_KEY_S = 30.0
# A leader whose own API server is away for so long lets a voter lead that has one, as without it it does nothing for the others.
BLIND_S = 60.0


class Leader:
    """The tasks of the leading node, done again and again; what fails is tried again at the next turn."""

    def __init__(
        self, state: State, paths: Paths, facts: Facts, ledger: Ledger, mesh: Mesh, client: Client, watch: Watch
    ) -> None:
        self._state, self._facts, self._ledger, self._mesh, self._client = state, facts, ledger, mesh, client
        self._watch = watch
        self._nodes = MeshNodes(client, ledger, facts.cluster, facts.prefix)
        self._snapshots = Snapshots(paths, facts)
        self._membership = Membership(ledger, facts, self._snapshots.take_before_change)
        self._outages = Outages(client)
        self._rollout = Rollout(client, ledger, paths, facts)
        # None until it is read what the leader before this one knew.
        self._barred: frozenset[int] | None = None
        self._said: dict[str, str] = {}
        self._rolled = (0, 0.0)
        self._blind_since: float | None = None
        # Until when the API's objects need not be looked at.
        self._look_at = 0.0

    async def run(self, first: Registry, mesh_key: str) -> None:
        """Lead whenever the local etcd does; `first` is the registry that a new cluster begins with."""
        quiet, seen, begun = 0, "", False
        while True:
            if not self._state.conditions["etcd"]:
                self._note(leads=False)
                self._membership.forget()
                begun, self._look_at = False, 0.0
            await self._state.wait_for("etcd")
            news, busy, start = self._watch.news, False, time.monotonic()
            leader = await self._leader()
            self._note(leads=bool(leader))
            if not self._state.leads:
                begun, self._look_at = False, 0.0
                known = self._mesh.me.registered
                self._membership.stand_by(known, self._reachable(known), time.monotonic())
                self._outages.forget()
                self._nodes.forget()
                self._barred = None
            else:
                begun = begun or await self._try("registry", self._begin(first, mesh_key))
                busy = begun and await self._turn(leader)
            quiet = 0 if busy or seen != self._picture() else quiet + 1
            seen = self._picture()
            pause = BUSY_S if busy else SETTLED_S if quiet > SETTLED_TURNS else PERIOD_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), pause * self._facts.probe_scale)
                # What this turn has changed is news as well.
                await asyncio.sleep(start + BUSY_S * self._facts.probe_scale - time.monotonic())
            if busy or news.is_set() or quiet <= SETTLED_TURNS or not self._watch.works:
                self._look_at = 0.0

    def _note(self, *, leads: bool) -> None:
        if leads != self._state.leads:
            self._state.leads = leads
            self._state.record("leads" if leads else "leads-lost")

    def _picture(self) -> str:
        """Something that changes when the cluster does."""
        return f"{self._mesh.me.serial} {len(self._mesh.routes())}"

    async def _leader(self) -> str:
        """The local member's id while it leads."""
        try:
            status = await self._ledger.etcd.status()
        except OSError:
            return ""
        return status.member if status.leads else ""

    async def _try(self, what: str, task: object) -> bool:
        """Run one task; a failure is logged once."""
        try:
            done = bool(await task)  # type: ignore[misc]
        except (OSError, UserError, RefusedError) as error:
            if self._said.get(what) != str(error):
                log.warning("%s: %s", what, error)
            self._said[what] = str(error)
            return False
        self._said.pop(what, None)
        return done

    async def _turn(self, leader: str) -> bool:
        busy = await self._try("members", self._members(leader))
        await self._try("mesh keys", self._end_old_keys())
        await self._try("hand over", self._hand_over_if_blind(leader))
        if self._state.conditions["addons"] and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            busy |= await self._try("nodes", self._objects())
            is_done = await self._try("settings", self._settings())
            if not is_done or "nodes" in self._said or self._outages.expects_returns(time.monotonic()):
                self._look_at = 0.0
        return busy

    async def _hand_over_if_blind(self, leader: str) -> None:
        """Have another voter lead when the API is served, but not here; if it is not there either, that one does the same."""
        now = time.monotonic()
        is_blind = not self._state.conditions["api"] and f"{self._facts.api}/128" in self._mesh.routes()
        self._blind_since = (self._blind_since or now) if is_blind else None
        if self._blind_since is None or now - self._blind_since < BLIND_S * self._facts.probe_scale:
            return
        self._blind_since = None
        registry = self._membership.registry
        voters = [node.number for node in registry.nodes if node.role == "voter" and node.number != self._facts.number]
        urls = {network.peer_url(self._facts.prefix, number) for number in self._reachable(frozenset(voters))}
        others = [
            member
            for member in await self._ledger.etcd.members()
            if not member.learner and member.id != leader and urls & set(member.peer_urls)
        ]
        if others:
            other = random.choice(others)  # noqa: S311 - no secret
            log.warning("the API is not served here, but elsewhere: %s leads from now on", other.name)
            await self._ledger.etcd.move_leader(other.id)

    async def _begin(self, first: Registry, mesh_key: str) -> bool:
        """Once, when this node has begun to lead: the cluster begins, or its epoch does."""
        registry = await self._ledger.begin(first, mesh_key)
        if registry.epoch < self._facts.epoch:
            me = self._mesh.me
            await self._ledger.begin_epoch(self._facts.epoch, first.nodes[0], me.serial, me.keys)
        return True

    async def _members(self, leader: str) -> bool:
        known = self._membership.registry
        reachable = self._reachable(self._mesh.me.registered | known.numbers)
        if known.nodes:
            self._snapshots.take_if_due(known, reachable)
        if self._barred is None:
            self._barred = await self._ledger.barred()
        return await self._membership.reconcile(Seen(reachable, self._barred, leader), time.monotonic())

    async def _end_old_keys(self) -> None:
        """A while after a new mesh key was made, when every link uses it, end those before it."""
        registry = self._membership.registry
        if registry.mesh_key == registry.oldest_key:
            return
        if self._rolled[0] != registry.mesh_key:
            self._rolled = (registry.mesh_key, time.monotonic())
        if time.monotonic() - self._rolled[1] > OLD_KEY_S * self._facts.probe_scale:
            await self._ledger.drop_old_keys(registry.mesh_key)

    def _reachable(self, numbers: frozenset[int]) -> frozenset[int]:
        return frozenset(number for number in numbers if self._mesh.reaches(self._facts, number))

    async def _objects(self) -> bool:
        registry, _ = await self._ledger.registry()
        listed = await kubernetes_api.get(self._client, "/api/v1/nodes")
        objects = {item["metadata"]["name"]: item for item in (listed or {}).get("items", [])}
        barred = frozenset(node.number for node in registry.nodes if is_barred(objects.get(node.name)))
        if barred != self._barred:
            await self._ledger.note_barred(barred)
            self._barred = barred
        for node in registry.nodes:
            if node.name in objects:
                await self._complete(node, objects[node.name])
        await serving.approve(self._client, self._ledger.authority, registry, self._facts)
        reports = await self._ledger.reports()
        reachable = self._reachable(registry.numbers)
        busy = await self._outages.reconcile(registry, objects, reachable, reports, time.monotonic())
        ready = {name: is_ready_now(item) for name, item in objects.items()}
        offers = {number: report.offers for number, report in reports.items() if number in reachable}
        return await self._nodes.reconcile(ready, self._reachable(registry.numbers), time.time(), offers) or busy

    async def _settings(self) -> bool:
        registry, _ = await self._ledger.registry()
        return await self._rollout.reconcile(registry, self._reachable(registry.numbers))

    async def _complete(self, node: Node, item: dict[str, object]) -> None:
        patch = missing(item, node, network.pod_prefixes(self._facts.prefix, node.number))
        if patch:
            await kubernetes_api.merge(self._client, f"/api/v1/nodes/{node.name}", patch)
