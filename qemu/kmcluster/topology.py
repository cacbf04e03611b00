"""The topology file: which machines a cluster on the bench has."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import msgspec

from kmplan import document
from kmplan.errors import UserError

SHIPPED = Path(__file__).parent / "topologies"


class Role(Enum):
    """What a machine is given at its first power on."""

    SEED = "seed"
    BLANK = "blank"


class Node(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One machine; its number is its place in the list, counted from 1.

    The seed gets the cluster's secrets as credentials; a blank one gets nothing and has to ask its neighbours.
    """

    role: Role = Role.BLANK
    cpus: Annotated[int, msgspec.Meta(ge=1, le=64, description="virtual processors; the qemu driver only")] = 2
    memory_mib: Annotated[int, msgspec.Meta(ge=1024, description="memory; the qemu driver only")] = 4096
    disk_gib: Annotated[int, msgspec.Meta(ge=6, description="size of the disk; the qemu driver only")] = 8


class Topology(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The file as a whole."""

    version: Annotated[int, msgspec.Meta(ge=1, le=1, description="version of this file's format")]
    nodes: Annotated[list[Node], msgspec.Meta(min_length=1, max_length=64)]


def shipped_names() -> list[str]:
    """Names of the topologies that come with the tool."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def find_topology(name: str) -> Path:
    """Return the file of a shipped topology, or the path that was given.

    Raises UserError when there is neither.
    """
    shipped = SHIPPED / f"{name}.yaml"
    if "/" not in name and shipped.is_file():
        return shipped
    if Path(name).is_file():
        return Path(name)
    raise UserError(
        f"{name}: no such topology", f"shipped ones: {', '.join(shipped_names())}; or give the path of a file"
    )


def read_topology(path: Path) -> Topology:
    """Read and check a topology file; raises UserError in one line that names the file and the place."""
    topology = document.read(path, Topology)
    check(topology, str(path))
    return topology


def check(topology: Topology, source: str) -> None:
    """Check what the schema cannot say: there is exactly one seed."""
    seeds = [number for number, node in enumerate(topology.nodes, 1) if node.role is Role.SEED]
    if len(seeds) != 1:
        found = f"nodes {', '.join(map(str, seeds))} are" if seeds else "none is"
        raise UserError(f"{source}: nodes: expected exactly one with `role: seed`, {found}")
