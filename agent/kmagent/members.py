"""Who votes in etcd: the nodes admitted first become members, one at a time, as learners first.

Runs on the node whose etcd leads. The truth is etcd's member list; the registry's roles follow it, and lead it in one case:
`standby` is written before a learner is added, so that a crash in between is picked up where it was.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kmagent import network
from kmagent.etcd import EtcdError, Member
from kmagent.facts import Facts
from kmagent.ledger import Ledger
from kmagent.registry import Node, Registry
from kmplan.voters import voters_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Add:
    """Add a node's etcd as a learner."""

    node: Node


@dataclass(frozen=True)
class Promote:
    """Give a learner its vote; etcd refuses while it has not caught up."""

    member: Member


@dataclass(frozen=True)
class Assign:
    """Write a node's role into the registry."""

    number: int
    role: str


@dataclass(frozen=True)
class Drop:
    """Remove a learner that was never started, and whose node was removed."""

    member: Member


Action = Add | Promote | Assign | Drop


def decide(
    registry: Registry, members: Sequence[Member], reachable: frozenset[int], wanted: int, prefix: str
) -> Action | None:
    """Return the one step that is due now, or None. `reachable` are the numbers of nodes that the mesh leads to."""
    by_url = {url: member for member in members for url in member.peer_urls}
    member_of = {node.number: by_url.get(network.peer_url(prefix, node.number)) for node in registry.nodes}
    for node in registry.nodes:
        member = member_of[node.number]
        if member is not None:
            role = "standby" if member.learner else "voter"
            if node.role != role:
                return Assign(node.number, role)
        elif node.role == "voter":
            return Assign(node.number, "worker")
    learner = next((member for member in members if member.learner), None)
    if learner is not None and learner.name:
        return Promote(learner)
    if learner is not None:
        # Its node is given up only when it is no longer registered: a route may be missing for a moment.
        return None if learner in member_of.values() else Drop(learner)
    chosen = next((node for node in registry.nodes if node.role == "standby"), None)
    if chosen is not None:
        return Add(chosen) if chosen.number in reachable else Assign(chosen.number, "worker")
    workers = [node for node in registry.nodes if node.role == "worker" and node.number in reachable]
    if workers and len(members) < voters_of(wanted, len(members) + len(workers)):
        first = min(workers, key=lambda node: (node.admitted, node.number))
        return Assign(first.number, "standby")
    return None


async def reconcile(ledger: Ledger, facts: Facts, reachable: frozenset[int]) -> bool:
    """Do the step that is due; tells whether there was one."""
    registry, _ = await ledger.registry()
    members = await ledger.etcd.members()
    action = decide(registry, members, reachable, facts.voters, facts.prefix)
    match action:
        case Add(node):
            log.info("etcd: adding %s as a learner", node.name)
            await ledger.etcd.add_learner(network.peer_url(facts.prefix, node.number))
        case Promote(member):
            try:
                await ledger.etcd.promote(member.id)
            except EtcdError as error:
                log.debug("etcd: %s is not promoted yet: %s", member.name, error)
                return False
            log.info("etcd: %s votes from now on", member.name)
        case Drop(member):
            log.info("etcd: %s never started, and its node was removed", ", ".join(member.peer_urls))
            await ledger.etcd.remove(member.id)
        case Assign(number, role):
            log.info("node %d: %s", number, role)
            await ledger.change(lambda old: _assign(old, number, role))
    return action is not None


def _assign(registry: Registry, number: int, role: str) -> Registry | None:
    node = registry.find(number=number)
    if node is None or node.role == role:
        return None
    return registry.put(replace(node, role=role))
