"""The fence: etcd is not served with data that the cluster may have left behind (docs/recovery.md).

When a cluster is begun anew, a majority of all its nodes keeps the order first. So who hears of no newer epoch from a
majority has missed nothing. Nor has who hears it from every other node that has etcd's data: then none of them began anew.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping

from kmagent import registry as registries
from kmagent.facts import Facts
from kmagent.orders import Orders
from kmagent.paths import Paths
from kmagent.peers import Peers
from kmagent.registry import CONTROL_PLANE, Registry
from kmagent.state import State

log = logging.getLogger(__name__)

AGAIN_S = 0.5
# For how long the only member of etcd listens: nobody who answers can be asked before the mesh leads to somebody.
LISTEN_S = 15.0
# With witnesses: who has heard no majority for a quarter of the time after which others begin anew serves no more.
PATIENCE, LOOKS = 1 / 4, 10
ASKING = "asking the other nodes whether the cluster was begun anew"


def has_majority(me: int, epoch: int, registry: Registry, heard: Mapping[int, int]) -> bool:
    """Tell whether a majority of all nodes knows of no newer epoch: `heard` says of which the others know, by number."""
    return 2 * len(_agreeing(me, epoch, registry, heard)) > len(registry.numbers)


def is_current(me: int, epoch: int, registry: Registry, heard: Mapping[int, int]) -> bool:
    """Tell whether no newer epoch than `epoch` can have begun without this node."""
    members = _members(registry)
    complete = bool(members) and members <= _agreeing(me, epoch, registry, heard)
    if members == {me} and any(other > epoch for other in heard.values()):
        # Nobody but this node itself says so.
        complete = False
    return complete or has_majority(me, epoch, registry, heard)


def _members(registry: Registry) -> set[int]:
    return {node.number for node in registry.nodes if node.role in CONTROL_PLANE}


def _agreeing(me: int, epoch: int, registry: Registry, heard: Mapping[int, int]) -> set[int]:
    return {number for number in registry.numbers if number == me or heard.get(number, epoch + 1) <= epoch}


def close(state: State, paths: Paths, orders: Orders) -> None:
    """Close the fence when this node starts; what was started in this boot already may go on."""
    if orders.overtaken or not (paths.manifests / "etcd.yaml").exists():
        state.fence(ASKING)


class Fence:
    """Opens when this node's data are current, and closes for good when an order says that they are not.

    With `auto_recover_after_s` it also closes while no majority is heard, as others may begin anew by themselves.
    """

    def __init__(self, state: State, paths: Paths, facts: Facts, orders: Orders, peers: Peers) -> None:
        self._state, self._paths, self._facts = state, paths, facts
        self._orders, self._peers = orders, peers

    async def run(self) -> None:
        """Keep it."""
        while True:
            if self._state.fenced:
                await self._wait_until_current()
            if self._orders.overtaken:
                self._state.fence(f"epoch {self._orders.epoch} of the cluster begins without what this node has")
                await asyncio.Event().wait()
            self._state.fence("")
            await self._wait_for_doubt()

    async def _wait_until_current(self) -> None:
        facts, start = self._facts, time.monotonic()
        while not self._orders.overtaken:
            registry = self._registry()
            if lost := self._lost(registry):
                self._state.fence(lost)
                await asyncio.sleep(AGAIN_S * facts.probe_scale)
                continue
            heard = await self._peers.epochs(registry)
            listens = self._is_alone(registry) and not heard and time.monotonic() - start < LISTEN_S * facts.probe_scale
            if self._may_serve(registry, heard) and not listens:
                self._note_agreed()
                return
            if listens:
                await asyncio.sleep(AGAIN_S * facts.probe_scale)
                continue
            ahead = sum(epoch > facts.epoch for epoch in heard.values())
            answers = f"{len(heard) + 1} of {len(registry.numbers)} nodes answer, a majority has to"
            self._state.fence(
                f"{ahead} nodes say that the cluster was begun anew without this one"
                if ahead
                else f"{answers}: was the cluster begun anew?"
            )
            await asyncio.sleep(AGAIN_S * facts.probe_scale)

    async def _wait_for_doubt(self) -> None:
        """Return when an order came, or with witnesses when a majority was not heard for too long."""
        patience = self._facts.auto_recover_after_s * PATIENCE
        agreed = self._last_agreed()
        while not self._orders.overtaken:
            changed = self._state.change()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), patience / LOOKS if patience else None)
            if not patience or time.monotonic() - agreed < patience / LOOKS:
                continue
            registry = self._registry()
            if has_majority(self._facts.number, self._facts.epoch, registry, await self._peers.epochs(registry)):
                agreed = self._note_agreed()
            elif time.monotonic() - agreed > patience:
                self._state.fence("no majority of the nodes answers: others may begin the cluster anew")
                return

    def _last_agreed(self) -> float:
        """When a majority was heard last: an agent that is started anew goes on with the time that its etcd was alone."""
        with contextlib.suppress(OSError, ValueError):
            return float(self._paths.agreed.read_text())
        return time.monotonic()

    def _note_agreed(self) -> float:
        now = time.monotonic()
        if self._facts.auto_recover_after_s:
            self._paths.agreed.write_text(str(now))
        return now

    def _is_alone(self, registry: Registry) -> bool:
        """Whether nobody but this node has etcd's data, there are others, and nobody meant it to begin without them."""
        return _members(registry) == {self._facts.number} != registry.numbers and not self._begins(registry)

    def _may_serve(self, registry: Registry, heard: Mapping[int, int]) -> bool:
        """With witnesses only a majority counts: the others may begin anew though all voters are here."""
        me, epoch = self._facts.number, self._facts.epoch
        enough = has_majority if self._facts.auto_recover_after_s else is_current
        return not registry.nodes or self._begins(registry) or enough(me, epoch, registry, heard)

    def _lost(self, registry: Registry) -> str:
        """What is gone from this disk: without it etcd might begin another cluster, or go on alone."""
        if not registry.nodes and self._paths.registry.exists() and not self._begins(registry):
            return f"{self._paths.registry} cannot be read: remove it, if the cluster was begun anew nowhere"
        if self._facts.began and registry.nodes and not (self._paths.etcd / "member").exists():
            return "etcd's data are gone from this disk: another node takes its place, or `kmbuild recover`"
        return ""

    def _begins(self, registry: Registry) -> bool:
        """Whether somebody who did not wait for the others has the cluster begin here, and it has written nothing yet."""
        order = self._orders.newest
        here = (
            order is not None and order.force and (order.number, order.epoch) == (self._facts.number, self._facts.epoch)
        )
        return here and registry.epoch < self._facts.epoch

    def _registry(self) -> Registry:
        return registries.load_or_empty(self._paths.registry, self._facts.cluster)
