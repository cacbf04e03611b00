"""Nodes that the mesh has lost: a taint has Kubernetes make their pods anew elsewhere, long before it would by itself.

Kubernetes waits for five minutes, as it knows heartbeats only: it cannot tell a node that died from one that is slow. The
mesh knows within a second that no way leads to a node any more. What is concluded of that, and when, is `given_up`.
"""

import logging
from collections.abc import Mapping, Set
from typing import Any

from kmagent import denied_pods, kubernetes_api, leases
from kmagent.candidates import Reports, links_of
from kmagent.http import Client
from kmagent.lasting import longer_than, since
from kmagent.registry import Registry

log = logging.getLogger(__name__)

TAINT = {"key": "kubermesh.io/lost", "effect": "NoExecute"}
# A node that is lost alone; several that are joined to each other may well be alive behind a cable that was cut.
ALONE_S, GROUP_S = 5.0, 60.0
# How long the kubelet of a node that is back may take to deny pods, because it has not heard that the taint is gone.
RETURN_S = 60.0

Object = dict[str, Any]


def given_up(
    lost: Mapping[int, float],
    nodes: int,
    links: Mapping[int, set[int]],
    now: float,
    known: frozenset[int] = frozenset(),
) -> frozenset[int]:
    """Return the nodes whose pods shall be made anew elsewhere: `lost` says since when which nodes cannot be reached.

    Half or more of those that were there before are never given up at once: then it is this side that was cut off. Those of the
    `nodes` nodes that are `known` to be lost were not: they stay given up, and say nothing of the others.
    """
    fresh = {number: moment for number, moment in lost.items() if number not in known}
    before = known & lost.keys()
    if 2 * len(fresh) >= nodes - len(before):
        return before
    alone = {number: moment for number, moment in fresh.items() if not links.get(number, set()) & fresh.keys()}
    return before | longer_than(ALONE_S, alone, now) | longer_than(GROUP_S, fresh, now)


def returning(
    before: Set[int], lost: Set[int], nodes: int, links: Mapping[int, set[int]], known: frozenset[int]
) -> frozenset[int]:
    """Return those of the lost nodes that may be on their way back: some of those that they were lost with are there again.

    How long they are lost counts from then on. With whom: the others of half or more of all, and otherwise those that they were
    joined to, over others that were lost as well. Who is `known` to be lost is not waited for.
    """
    back = before - lost
    if 2 * len(before - known) >= nodes - len(known & before):
        together = set(before) if back else set()
    else:
        together, new = set(back), set(back)
        while new := {other for number in new for other in links.get(number, set())} & before - together:
            together |= new
    return frozenset(together & lost - known)


def is_tainted(item: Object) -> bool:
    """Whether a node's object says that it was given up."""
    return any(taint["key"] == TAINT["key"] for taint in item["spec"].get("taints", []))


def patch(item: Object, *, lost: bool) -> Object | None:
    """Return the change that puts the taint on a node's object or takes it off; None when it is as it should be."""
    if lost == is_tainted(item):
        return None
    taints = [taint for taint in item["spec"].get("taints", []) if taint["key"] != TAINT["key"]]
    # A list is replaced as a whole: refused when somebody else changed the object meanwhile.
    version = item["metadata"]["resourceVersion"]
    return {"metadata": {"resourceVersion": version}, "spec": {"taints": [*taints, TAINT] if lost else taints}}


class Outages:
    """Keeps the taint on the nodes that are given up, and on no others."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lost: dict[int, float] = {}
        self._returned: float | None = None

    def forget(self) -> None:
        """Begin anew: another node led meanwhile."""
        self._lost, self._returned = {}, None

    def expects_returns(self, now: float) -> bool:
        """Tell whether a node came back just now, whose kubelet may deny pods yet."""
        return self._returned is not None and now - self._returned < RETURN_S

    async def reconcile(
        self, registry: Registry, objects: Mapping[str, Object], reachable: frozenset[int], reports: Reports, now: float
    ) -> bool:
        """Put on and take off taints, and tidy up behind nodes that are back; `objects` are the Node objects by name.

        Tells whether a decision is near.
        """
        away, links = since(self._lost, registry.numbers - reachable, now), links_of(reports)
        # Who begins to lead does not know who has just returned.
        self._returned = now if self._returned is None else self._returned
        # Who has the taint keeps it until there is a way again, whoever leads and however long.
        tainted = {one.number for one in registry.nodes if one.name in objects and is_tainted(objects[one.name])}
        # Nor does a node that is away and has no object tell anything: somebody has deleted it, or it never had one.
        known = frozenset(
            tainted | {one.number for one in registry.nodes if one.number in away and one.name not in objects}
        )
        nodes = len(registry.nodes)
        again = returning(self._lost.keys(), away.keys(), nodes, links, known)
        self._lost = {number: now if number in again else moment for number, moment in away.items()}
        gone = given_up(self._lost, nodes, links, now, known)
        for node in registry.nodes:
            item = objects.get(node.name)
            if item is None:
                continue
            lost = node.number in gone
            if change := patch(item, lost=lost):
                log.warning("%s is %s", node.name, "lost" if lost else "back")
                await kubernetes_api.merge(self._client, f"/api/v1/nodes/{node.name}", change)
                self._returned = self._returned if lost else now
        if gone:
            await leases.give_back(self._client, {node.name for node in registry.nodes if node.number in gone})
        if self.expects_returns(now):
            await denied_pods.delete(self._client)
        return any(now - moment < GROUP_S for moment in self._lost.values())
