"""Carries an order out: has it kept by a majority of all nodes, then begins the cluster anew here.

A voter that others have left behind asks them for the order by which they did: it may have been cut off with a majority, and
goes on in its own epoch otherwise, as what it reaches is itself.

An order may be old: this node was off before a majority kept it, and the voters that were lost came back. The cluster has gone
on then, and what it has written since would be lost: such an order is withdrawn.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Mapping
from typing import Any

from kmagent import registry as registries
from kmagent.facts import Facts
from kmagent.follow import RestartError
from kmagent.joining import child
from kmagent.orders import Orders
from kmagent.paths import Paths
from kmagent.peers import Peers
from kmagent.programs import restart_kubelet
from kmagent.registry import Registry
from kmagent.state import State
from kmplan.recovery import Order

log = logging.getLogger(__name__)

# How often the node that an order names tries, and the others that keep it ask what became of it.
AGAIN_S, KEEPER_S = 2.0, 15.0
# For how long the node asks a majority for an order of an earlier boot that most of it may never have had.
UNDECIDED_S = 60.0


async def run(state: State, paths: Paths, facts: Facts, orders: Orders, peers: Peers) -> None:
    """Wait for an order, and carry it out when it names this node; ends with RestartError when that is done, or not any more."""
    since: float | None = None
    while True:
        changed = state.change()
        order = orders.newest
        if order is None or order.epoch <= facts.epoch:
            if state.left_behind and facts.controls:
                await ask_for_order(
                    facts, orders, await peers.states(registries.load_or_empty(paths.registry, facts.cluster))
                )
                await asyncio.sleep(AGAIN_S * facts.probe_scale)
            else:
                await changed.wait()
            continue
        registry = registries.load_or_empty(paths.registry, facts.cluster)
        states = await peers.states(registry)
        begun = paths.begun(order.epoch).exists()
        is_old = not (order.force or begun or orders.is_new)
        too_few = is_old and 2 * keepers(order.epoch, states.values()) <= len(registry.numbers)
        waits = too_few and order.number == facts.number and 2 * (1 + len(states)) > len(registry.numbers)
        since = (since or time.monotonic()) if waits else None
        given_up = since is not None and time.monotonic() - since > UNDECIDED_S * facts.probe_scale
        if given_up or is_over(order, facts.number, registry, states, begun=begun, is_new=orders.is_new):
            if await orders.withdraw(order):
                log.warning("epoch %d does not begin: the cluster goes on without it", order.epoch)
                raise RestartError
            continue
        if order.number != facts.number:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), KEEPER_S * facts.probe_scale)
            continue
        if too_few:
            # The others may have gone on without it long ago: they are not told before a majority has been heard.
            state.fail(f"epoch {order.epoch} waits: does a majority of the nodes know of it still?")
            await asyncio.sleep(AGAIN_S * facts.probe_scale)
            continue
        keeping = await peers.give_order(registry, orders.packed)
        if not order.force and 2 * (len(keeping) + 1) <= len(registry.numbers):
            state.fail(
                f"epoch {order.epoch} waits: {len(keeping) + 1} of {len(registry.numbers)} nodes know of it, "
                "a majority has to"
            )
        else:
            answer = await child("begin-anew")
            if answer["state"] == "done":
                state.fail("")
                log.warning("epoch %d of the cluster begins here, from %s", order.epoch, order.source)
                # It may be waiting for an API server that is gone, up to a minute, and starts nothing meanwhile.
                await restart_kubelet()
                raise RestartError
            state.fail(f"epoch {order.epoch} does not begin: {answer['message']}")
        await asyncio.sleep(AGAIN_S * facts.probe_scale)


async def ask_for_order(facts: Facts, orders: Orders, states: Mapping[int, Mapping[str, Any]]) -> None:
    """Take the order by which nodes went on to a newer epoch than this node's; what is not signed by an admin is not taken."""
    for number, said in states.items():
        if said.get("own_epoch", 0) > facts.epoch and said.get("signed_order"):
            with contextlib.suppress(ValueError):
                if await orders.take(str(said["signed_order"])):
                    log.warning("node %d is in epoch %d: this one was left behind", number, said["own_epoch"])
                    return


def is_over(
    order: Order, me: int, registry: Registry, states: Mapping[int, Mapping[str, Any]], *, begun: bool, is_new: bool
) -> bool:
    """Tell whether an order is not to be carried out any more: the node that it names decides, and says so to those that keep it.

    It may have `begun`, in part, before its power was cut: then it goes on with it. One that is not new, as it was given before
    this node started, is over when most nodes know nothing of it: the cluster may have gone on, and be off as a whole now.
    """
    if order.number != me:
        named = states.get(order.number)
        if named is None:
            # It may be gone for good. Who most know nothing of cannot have begun.
            unknown = not order.force and is_unknown(order, registry, states)
            return unknown and leads(order.epoch, states.values())
        # A later one that it has withdrawn, too, is all that it tells; what it has begun it has not withdrawn.
        # One of an earlier version may not know of withdrawing.
        return bool(named.get("withdrawn", 0) >= order.epoch > named.get("own_epoch", order.epoch))
    if order.force or begun:
        return False
    is_old = not is_new and is_unknown(order, registry, states)
    return is_old or goes_on(order.epoch, len(registry.numbers), states.values())


def is_unknown(order: Order, registry: Registry, states: Mapping[int, Mapping[str, Any]]) -> bool:
    """Tell whether a majority of all nodes says that it knows nothing of an order."""
    return 2 * sum(bool(said["epoch"] < order.epoch) for said in states.values()) > len(registry.numbers)


def keepers(epoch: int, states: Collection[Mapping[str, Any]]) -> int:
    """Return how many nodes know of an epoch, or a later one: this one, and those that say so."""
    return 1 + sum(bool(state["epoch"] >= epoch) for state in states)


def leads(epoch: int, states: Collection[Mapping[str, Any]]) -> bool:
    """Tell whether a voter of an epoch before this one says that etcd has a leader; a standby does not notice that it is gone."""
    voters = [state for state in states if state["epoch"] < epoch and state.get("role") == "voter"]
    return any((state.get("etcd") or {}).get("has_leader") for state in voters)


def goes_on(epoch: int, nodes: int, states: Collection[Mapping[str, Any]]) -> bool:
    """Tell whether etcd has a leader in an epoch before this one, and no majority of `nodes` nodes says that it knows of this.

    `states` is what the other nodes say of themselves, those that answer.
    """
    return 2 * keepers(epoch, states) <= nodes and leads(epoch, states)
