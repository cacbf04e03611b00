"""The registry of admitted nodes: who they are, and which part each has. Signed by the node authority, kept by every node."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kmplan.addresses import MAX_NODE
from kmplan.errors import UserError

CONTROL_PLANE = ("voter", "standby")


@dataclass(frozen=True)
class Node:
    """An admitted node: `fingerprint` is the SHA-256 (hex) of its public key, `certificate` that of its identity certificate.

    `role` is worker, standby (an etcd learner) or voter; `admitted` in seconds since 1970. One that is `diskless` never votes.
    """

    number: int
    name: str
    role: str
    fingerprint: str
    certificate: str
    uuid: str = ""
    admitted: float = 0
    diskless: bool = False


@dataclass(frozen=True)
class Registry:
    """All nodes of a cluster; every change has the next serial number.

    `mesh_key` is the mesh key's newest generation, `oldest_key` the oldest that is still good; `epoch` counts how often the
    cluster was begun anew.
    """

    cluster: str
    serial: int = 0
    mesh_key: int = 1
    oldest_key: int = 1
    epoch: int = 1
    nodes: tuple[Node, ...] = ()

    @property
    def numbers(self) -> frozenset[int]:
        """The numbers that are taken."""
        return frozenset(node.number for node in self.nodes)

    def find(self, **wanted: Any) -> Node | None:
        """Return the node with these values, if there is one."""
        matches = (node for node in self.nodes if all(getattr(node, key) == value for key, value in wanted.items()))
        return next(matches, None)

    def free_number(self, wish: int = 0, resting: frozenset[int] = frozenset()) -> int:
        """Return the number that is wished for, or the lowest, that no node has and that does not rest.

        Raises UserError when all are taken.
        """
        taken = self.numbers | resting
        if 1 <= wish <= MAX_NODE and wish not in taken:
            return wish
        for number in range(1, MAX_NODE + 1):
            if number not in taken:
                return number
        raise UserError("all node numbers are taken", "remove nodes that are gone for good")

    def put(self, node: Node) -> "Registry":
        """Add a node, or replace the one with its number."""
        others = [one for one in self.nodes if one.number != node.number]
        nodes = tuple(sorted([*others, node], key=lambda one: one.number))
        return replace(self, serial=self.serial + 1, nodes=nodes)

    def drop(self, number: int) -> "Registry":
        """Remove a node; the mesh key it knows is to be replaced."""
        nodes = tuple(node for node in self.nodes if node.number != number)
        return replace(self, serial=self.serial + 1, nodes=nodes)


def to_text(registry: Registry) -> str:
    """Return the one form that is signed."""
    return json.dumps(asdict(registry), sort_keys=True, separators=(",", ":"))


def from_text(text: str) -> Registry:
    """Parse that form; ValueError when it is none."""
    try:
        data: dict[str, Any] = json.loads(text)
        return Registry(**{**data, "nodes": tuple(Node(**node) for node in data["nodes"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"not a registry: {error}") from error


def pack(text: str, signature: str) -> str:
    """Put text and signature (base64) together as they are kept and sent."""
    return json.dumps({"registry": text, "signature": signature}) + "\n"


def unpack(packed: str) -> tuple[str, str]:
    """Take them apart; ValueError when they are not there."""
    try:
        data = json.loads(packed)
        return str(data["registry"]), str(data["signature"])
    except (TypeError, KeyError) as error:
        raise ValueError(f"not a signed registry: {error}") from error


def load(path: Path) -> Registry | None:
    """Read what this node keeps; None when there is nothing of use."""
    try:
        return from_text(unpack(path.read_text())[0])
    except (OSError, ValueError):
        return None


def load_or_empty(path: Path, cluster: str) -> Registry:
    """Read what this node keeps; a registry without nodes when there is nothing of use."""
    return load(path) or Registry(cluster)


# Returns the next registry, or None to leave it as it is.
Change = Callable[[Registry], Registry | None]
