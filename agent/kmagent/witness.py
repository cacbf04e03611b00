"""Orders to begin anew that need nobody: with `auto_recover: witness`, by the voter that is best off (docs/recovery.md).

Voters that are cut off end their etcd after a quarter of the time that passes before this (`fence`).
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from kmagent import registry as registries
from kmagent.authority import Authority, RefusedError
from kmagent.facts import Facts
from kmagent.fence import has_majority
from kmagent.node_api import NodeApi
from kmagent.orders import Orders
from kmagent.paths import Paths
from kmagent.peers import Peers
from kmagent.registry import Registry
from kmagent.state import State
from kmplan import recovery
from kmplan.recovery import OWN_DATA, Order

log = logging.getLogger(__name__)

LOOKS = 20


def is_best(me: int, states: Mapping[int, Mapping[str, Any]]) -> bool:
    """Tell whether this voter's data go furthest of those that answer, itself among them; not while one does not know how far."""
    voters = {number: state["etcd"] for number, state in states.items() if state["role"] == "voter" and state["etcd"]}
    if me not in voters or any(etcd["revision"] is None for etcd in voters.values()):
        return False
    return max(voters, key=lambda number: (voters[number]["revision"], -number)) == me


def are_lost(registry: Registry, states: Mapping[int, Mapping[str, Any]]) -> bool:
    """Tell whether most voters do not answer, and none that does has a leader."""
    voters = {number for number, state in states.items() if state["role"] == "voter"}
    leads = any(state["etcd"] and state["etcd"]["has_leader"] for state in states.values() if state["role"] == "voter")
    registered = {node.number for node in registry.nodes if node.role == "voter"}
    return not leads and 2 * len(voters & registered) <= len(registered)


class Witness:
    """Waits on a voter until it has lost the others for too long, and gives the order then."""

    def __init__(
        self, state: State, paths: Paths, facts: Facts, orders: Orders, peers: Peers, api: NodeApi, authority: Authority
    ) -> None:
        self._state, self._paths, self._facts = state, paths, facts
        self._orders, self._peers, self._api, self._authority = orders, peers, api, authority

    async def run(self) -> None:
        """Look now and then; nothing to do without `auto_recover: witness`."""
        after_s = self._facts.auto_recover_after_s
        served = time.monotonic()
        while after_s:
            await asyncio.sleep(after_s / LOOKS)
            if self._state.conditions["etcd"] or self._orders.overtaken:
                served = time.monotonic()
                continue
            # That no etcd serves here says nothing of the others'.
            registry = registries.load_or_empty(self._paths.registry, self._facts.cluster)
            states = {**await self._peers.states(registry), self._facts.number: await self._api.describe()}
            if not are_lost(registry, states):
                served = time.monotonic()
            if time.monotonic() - served < after_s:
                continue
            try:
                if await self._order(registry, states):
                    return
            except (OSError, RefusedError) as error:
                log.warning("beginning anew: %s", error)

    async def _order(self, registry: Registry, states: Mapping[int, Mapping[str, Any]]) -> bool:
        """Give the order if a majority of all nodes is here, and no other voter is better off."""
        facts = self._facts
        heard = {number: int(state["epoch"]) for number, state in states.items()}
        if not has_majority(facts.number, facts.epoch, registry, heard) or not is_best(facts.number, states):
            return False
        used = max(max(int(state["epoch"]), int(state.get("withdrawn", 0))) for state in states.values())
        order = Order(facts.cluster_id, used + 1, facts.number, OWN_DATA)
        text = recovery.to_text(order)
        log.warning("most voters are lost: epoch %d shall begin here", order.epoch)
        return await self._orders.take(recovery.pack(text, await self._authority.sign_text(text)))
