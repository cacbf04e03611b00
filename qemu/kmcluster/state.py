"""What is known of each cluster on this machine: one JSON file, written as a whole before and after every step."""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from kmcluster import process
from kmcluster.cable import MTU, Cable, Port
from kmcluster.folders import clusters_folder
from kmcluster.image import Image
from kmcluster.process import Process
from kmcluster.topology import DrawnCable, Node, Role
from kmplan import files
from kmplan.errors import UserError

FILE = "cluster.json"
NAME = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")


class NoClusterError(UserError):
    """There is no cluster of that name."""

    def __init__(self, name: str) -> None:
        known = ", ".join(cluster_names())
        super().__init__(
            f"no cluster {name} on this machine", f"there are: {known}" if known else "`kmbuild cluster up` makes one"
        )


class Machine(msgspec.Struct):
    """One machine: what it is, and what was started for it.

    `processes` maps a role ("init", "nspawn", "qemu", "forward") to the process; `cgroups` are folders made for it;
    `api_port` and `node_port` are ports of the host's loopback that lead to its API server and to its agent's node API;
    `ports` is how many network ports it has; `disk_faults` are "full" and "errors" (`kmcluster.disk_faults`); `stick` says
    whether a stick is plugged in, `waits` whether it has not been switched on yet, as it boots from a neighbour.
    """

    name: str
    number: int
    node: Node
    ports: int = 0
    api_port: int = 0
    node_port: int = 0
    processes: dict[str, Process] = msgspec.field(default_factory=dict)
    cgroups: list[str] = msgspec.field(default_factory=list)
    disk_faults: list[str] = msgspec.field(default_factory=list)
    stick: bool = False
    waits: bool = False

    @property
    def port_list(self) -> list[Port]:
        """The machine's network ports."""
        return [Port(self.number, index) for index in range(self.ports)]


class Cluster(msgspec.Struct):
    """One cluster on the bench.

    `drawn` are the topology's cables, `cables` what became of them; `processes` maps a role ("cables", "relay1") to a
    process that belongs to no machine; `tuning` is what this cluster overrides on its nodes besides the driver's.
    """

    version: int
    name: str
    driver: str
    accelerator: str
    directory: Path
    image: Image
    roothash: str
    machines: list[Machine]
    drawn: list[DrawnCable] = []
    cables: list[Cable] = []
    tuning: dict[str, Any] = {}
    processes: dict[str, Process] = msgspec.field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where everything of this cluster is."""
        return folder_of(self.name)

    def machine_folder(self, machine: Machine) -> Path:
        """Where everything of one machine is."""
        return self.folder / "machines" / machine.name

    def machine(self, name: str) -> Machine:
        """Find a machine by name or number; raises UserError."""
        for machine in self.machines:
            if name in (machine.name, str(machine.number)):
                return machine
        raise UserError(
            f"{name}: no such node in cluster {self.name}", f"nodes: {', '.join(m.name for m in self.machines)}"
        )

    def seed_first(self) -> list[Machine]:
        """The seed, then the others: nobody can join before it is there."""
        return sorted(self.machines, key=lambda machine: machine.node.role is not Role.SEED)

    def cables_of(self, machine: Machine) -> list[Cable]:
        """The cables that are plugged into a machine."""
        return [cable for cable in self.cables if machine.number in (cable.a.node, cable.b.node)]

    def mtus(self) -> dict[Port, int]:
        """The MTU of every port: its cable's."""
        free = {port: MTU for machine in self.machines for port in machine.port_list}
        return free | {end: cable.mtu for cable in self.cables for end in (cable.a, cable.b)}

    def noter(self, role: str, machine: Machine | None = None) -> Callable[[Process], None]:
        """A function that writes a started process into the state file, as one of the machine's or the cluster's."""

        def note(started: Process) -> None:
            (machine or self).processes[role] = started
            self.save()

        return note

    def end_process(self, role: str) -> None:
        """End one of the cluster's own processes if it runs."""
        if started := self.processes.get(role):
            process.end(started)
            del self.processes[role]
            self.save()

    def save(self) -> None:
        """Write the state file, or leave the old one."""
        files.write(self.folder / FILE, msgspec.json.format(msgspec.json.encode(self, enc_hook=str)) + b"\n", 0o600)


def folder_of(name: str) -> Path:
    """The folder of a cluster; raises UserError for a name that cannot be one."""
    if not NAME.fullmatch(name):
        raise UserError(f"{name}: not a cluster name", "use up to 32 of a-z, 0-9 and -, beginning with a letter")
    return clusters_folder() / name


def cluster_names() -> list[str]:
    """Names of all clusters that left a folder, also half-made ones."""
    root = clusters_folder()
    return sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def load(name: str) -> Cluster:
    """Read a cluster's state; raises NoClusterError, or UserError when its file is damaged."""
    path = folder_of(name) / FILE
    if not path.exists():
        raise NoClusterError(name)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Cluster, dec_hook=decode)
    except (msgspec.MsgspecError, OSError) as error:
        raise UserError(f"{path}: {error}", f"end what still runs of it by hand, then remove {path.parent}") from error


def decode(kind: type, value: object) -> object:
    """Paths are strings in the file."""
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)


def only_name(name: str | None) -> str:
    """The name given, or that of the one cluster there is; raises UserError."""
    if name:
        return name
    names = cluster_names()
    if len(names) == 1:
        return names[0]
    if not names:
        raise UserError("no cluster on this machine", "`kmbuild cluster up` makes one")
    raise UserError("more than one cluster on this machine", f"say which one: {', '.join(names)}")


@contextmanager
def locked(name: str, timeout_s: float = 60, *, make: bool = False) -> Iterator[Path]:
    """Hold a cluster's lock; with `make` its folder is made (0700) if it is not there.

    Raises NoClusterError when there is no folder, UserError when another process holds the lock too long.
    """
    folder = folder_of(name)
    deadline = time.monotonic() + timeout_s
    while True:
        if make:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            if make:
                continue
            raise NoClusterError(name) from None
        try:
            if try_lock(descriptor, folder):
                yield folder
                return
        finally:
            os.close(descriptor)
        if time.monotonic() > deadline:
            raise UserError(f"cluster {name} is being changed by another kmbuild", "wait for it, or end it")
        time.sleep(0.1)


def try_lock(descriptor: int, folder: Path) -> bool:
    """Lock an open folder; False if it is taken, or was removed meanwhile and is another one now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def clear(folder: Path) -> None:
    """Remove what is in a cluster's folder, but for the state file."""
    for path in folder.iterdir() if folder.is_dir() else []:
        if path.name == FILE:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove a cluster's folder, the state file last: an interrupted removal can be repeated."""
    clear(folder)
    shutil.rmtree(folder, ignore_errors=True)
