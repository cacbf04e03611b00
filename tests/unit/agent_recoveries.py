"""Node 3 of a cluster, as its disk is: for tests of beginning a cluster anew."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent_fakes import FACTS, Shop

from kmagent import identity
from kmagent.identity import Role
from kmagent.peers import Peers
from kmagent.registry import Registry
from kmplan import pki, recovery
from kmplan.recovery import OWN_DATA, Order


def registry_of(nodes: int, voters: set[int]) -> Registry:
    """So many nodes, of which these vote."""
    known = Registry("shop")
    for number in range(1, nodes + 1):
        known = known.put(replace(Shop.node(number), role="voter" if number in voters else "worker"))
    return known


class Node:
    """Node 3 of the cluster `shop`, as its disk is."""

    def __init__(self, folder: Path) -> None:
        self.shop = Shop(folder / "shop")
        self.paths = replace(self.shop.paths, run=folder / "run")
        self.paths.run.mkdir()
        self.cluster_id = pki.fingerprint((self.paths.state / "pki/cluster-ca.crt").read_text())
        key = pki.create_key()
        certificate = pki.certify(self.shop.authority, pki.Subject("node"), pki.create_request(key, "node"), 90)
        (self.paths.state / "identity.key").write_text(key)
        (self.paths.state / "identity.crt").write_text(certificate)
        identity.write_role(self.paths, Role(cluster_id=self.cluster_id, number=3, name="shop-3", role="standby"))
        (self.paths.etcd / "member/snap").mkdir(parents=True)
        (self.paths.etcd / "member/snap/db").write_bytes(b"old")

    def order(self, **changes: Any) -> str:
        order = replace(Order(self.cluster_id, 2, 3, OWN_DATA), **changes)
        text = recovery.to_text(order)
        return recovery.pack(text, pki.sign_text(self.shop.authority.key, text))

    @property
    def role(self) -> Role:
        role = identity.read_role(self.paths)
        assert role
        return role


class FakePeers(Peers):
    """What the other nodes say, without asking them; they keep no order."""

    def __init__(self, node: Node, states: dict[int, dict[str, Any]]) -> None:
        super().__init__(node.paths, FACTS)
        self.said = states
        self.given: list[str] = []

    async def states(self, registry: Registry) -> dict[int, dict[str, Any]]:
        await asyncio.sleep(0)
        return self.said

    async def give_order(self, registry: Registry, packed: str) -> frozenset[int]:
        self.given.append(packed)
        return frozenset()
