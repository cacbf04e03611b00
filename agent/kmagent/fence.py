"""The fence: etcd is not served with data that the cluster may have left behind (docs/recovery.md).

When a cluster is begun anew, a majority of all its nodes keeps the order first. So who hears of no newer epoch from a
majority has missed nothing. Nor has who hears it from every voter: then none of them began anew.
"""

import asyncio
import logging
from collections.abc import Mapping

from kmagent import registry as registries
from kmagent.facts import Facts
from kmagent.orders import Orders
from kmagent.paths import Paths
from kmagent.peers import Peers
from kmagent.registry import Registry
from kmagent.state import State

log = logging.getLogger(__name__)

AGAIN_S = 0.5
ASKING = "asking the other nodes whether the cluster was begun anew"


def is_current(me: int, epoch: int, registry: Registry, heard: Mapping[int, int]) -> bool:
    """Tell whether no newer epoch than `epoch` can have begun: `heard` says which one the other nodes know of, by number."""
    agreeing = {number for number in registry.numbers if number == me or heard.get(number, epoch + 1) <= epoch}
    voters = {node.number for node in registry.nodes if node.role == "voter"}
    return 2 * len(agreeing) > len(registry.numbers) or (bool(voters) and voters <= agreeing)


def close(state: State, paths: Paths, orders: Orders) -> None:
    """Close the fence when this node starts; what was started in this boot already may go on."""
    if orders.overtaken or not (paths.manifests / "etcd.yaml").exists():
        state.fence(ASKING)


async def run(state: State, paths: Paths, facts: Facts, orders: Orders, peers: Peers) -> None:
    """Open it when this node's data are current, and close it for good when an order says that they are not."""
    while state.fenced and not orders.overtaken:
        registry = registries.load(paths.registry) or Registry(facts.cluster)
        if not registry.nodes or is_current(facts.number, facts.epoch, registry, {}):
            break
        heard = await peers.epochs(registry)
        if is_current(facts.number, facts.epoch, registry, heard):
            break
        ahead = sum(epoch > facts.epoch for epoch in heard.values())
        state.fence(
            f"{ahead} nodes say that the cluster was begun anew without this one"
            if ahead
            else f"{len(heard) + 1} of {len(registry.numbers)} nodes answer, a majority has to: was the cluster begun anew?"
        )
        await asyncio.sleep(AGAIN_S * facts.probe_scale)
    while True:
        changed = state.change()
        state.fence(
            f"epoch {orders.epoch} of the cluster begins without what this node has" if orders.overtaken else ""
        )
        await changed.wait()
