"""The topology file: which machines a cluster on the bench has, and which cables between them."""

from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from kmcluster.cable import MTU, PORT, Cable, Port, parse_port
from kmplan import document
from kmplan.errors import UserError

SHIPPED = Path(__file__).parent / "topologies"
MAX_NODES = 64
MAX_PORTS = 16

PortName = Annotated[
    str, Meta(pattern=f"^{PORT.pattern}$", description="a node's number and its port, such as `1:eth0`")
]


class Role(Enum):
    """What a machine is given at its first power on."""

    SEED = "seed"
    BLANK = "blank"


class Boot(Enum):
    """What a machine boots from: all but `disk` and `stick` are a neighbour, which is asked at every power on.

    By UEFI HTTP Boot or by PXE; firmware of `pxe6` knows IPv6 alone.
    """

    DISK = "disk"
    STICK = "stick"
    HTTP = "http"
    PXE = "pxe"
    PXE6 = "pxe6"

    @property
    def is_from_network(self) -> bool:
        """Whether the firmware takes its boot image from a neighbour."""
        return self not in (Boot.DISK, Boot.STICK)


class Holds(Enum):
    """What is on the disk of a machine that does not boot from it: `data` is a file system that somebody has left."""

    NOTHING = "nothing"
    DATA = "data"


class Node(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One machine; its number is its place in the list, counted from 1.

    The seed gets the cluster's secrets as credentials; a blank one has to ask its neighbours. One that boots from a stick
    has an empty disk, and finds its credentials on a stick as `kmbuild flash` makes it. One that boots from a neighbour has an
    empty disk and no credentials.
    """

    role: Role = Role.BLANK
    boot: Annotated[Boot, Meta(description="what it boots from at first; the qemu driver only")] = Boot.DISK
    holds: Annotated[Holds, Meta(description="what is on the disk of one that does not boot from it")] = Holds.NOTHING
    cpus: Annotated[int, Meta(ge=1, le=64, description="virtual processors; the qemu driver only")] = 2
    memory_mib: Annotated[int, Meta(ge=1024, description="memory; the qemu driver only")] = 4096
    disk_gib: Annotated[int, Meta(ge=6, description="size of the disk, with nspawn of `/var`")] = 8
    ports: (
        Annotated[int, Meta(ge=0, le=MAX_PORTS, description="network ports eth0, eth1, ...; default: what cables use")]
        | None
    ) = None


class DrawnCable(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One cable of the file."""

    a: PortName
    b: PortName
    mtu: Annotated[int, Meta(ge=1280, le=9000, description="largest packet of the two ports, in bytes")] = MTU


class Topology(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The file as a whole."""

    version: Annotated[int, Meta(ge=1, le=1, description="version of this file's format")]
    nodes: Annotated[list[Node], Meta(min_length=1, max_length=MAX_NODES)]
    cables: list[DrawnCable] = []


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
    """Check what the schema cannot say: one seed, cables between ports that exist, and a way to every node."""
    seeds = [number for number, node in enumerate(topology.nodes, 1) if node.role is Role.SEED]
    if len(seeds) != 1:
        found = f"nodes {', '.join(map(str, seeds))} are" if seeds else "none is"
        raise UserError(f"{source}: nodes: expected exactly one with `role: seed`, {found}")
    cables = plug(topology)
    check_cables(cables, [node.ports for node in topology.nodes], source)
    reached = reach(seeds[0], cables)
    if lost := [str(number) for number in range(1, len(topology.nodes) + 1) if number not in reached]:
        raise UserError(f"{source}: cables: no way from the seed to node {', '.join(lost)}")


def plug(topology: Topology) -> list[Cable]:
    """The file's cables, all in order."""
    return [
        Cable(number=number, a=parse_port(drawn.a), b=parse_port(drawn.b), mtu=drawn.mtu)
        for number, drawn in enumerate(topology.cables, 1)
    ]


def count_ports(topology: Topology) -> list[int]:
    """How many ports each node has: as many as it says, or as many as its cables need."""
    ends = [end for cable in plug(topology) for end in (cable.a, cable.b)]
    return [
        node.ports if node.ports is not None else max((end.index + 1 for end in ends if end.node == number), default=0)
        for number, node in enumerate(topology.nodes, 1)
    ]


def check_cables(cables: Iterable[Cable], ports: Sequence[int | None], source: str) -> None:
    """Check that every end is a port of its own; `ports` are the nodes' numbers of ports, None for as many as wanted.

    Raises UserError in one line that begins with `source` and the place.
    """
    used: dict[Port, str] = {}
    for cable in cables:
        for side, end in (("a", cable.a), ("b", cable.b)):
            place = f"cables[{cable.number - 1}].{side}"
            check_port(end, ports, f"{source}: {place}: {end}")
            if end in used:
                raise UserError(f"{source}: {place}: {end} is taken by {used[end]}", "a port takes one cable")
            used[end] = place
        if cable.a.node == cable.b.node:
            raise UserError(f"{source}: cables[{cable.number - 1}]: both ends are on node {cable.a.node}")


def check_port(port: Port, ports: Sequence[int | None], where: str) -> None:
    """Raise UserError unless there is such a port."""
    if port.node > len(ports):
        raise UserError(f"{where}: no node {port.node}", f"there are {len(ports)}")
    given = ports[port.node - 1]
    if port.index >= (MAX_PORTS if given is None else given):
        has = f"has {given} port(s)" if given is not None else f"can have {MAX_PORTS} ports"
        raise UserError(f"{where}: node {port.node} {has}, counted from eth0")


def reach(start: int, cables: Sequence[Cable]) -> set[int]:
    """Numbers of the nodes that cables lead to from `start`, itself included."""
    ends = {(cable.a.node, cable.b.node) for cable in cables} | {(cable.b.node, cable.a.node) for cable in cables}
    reached, new = {start}, {start}
    while new:
        new = {there for here, there in ends if here in new} - reached
        reached |= new
    return reached
