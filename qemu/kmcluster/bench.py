"""Clusters up and down: the order of things, whatever the driver."""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from kmcluster import inotify, state
from kmcluster.drivers import check_host, driver_of, tuning_of
from kmcluster.image import Image, check_image
from kmcluster.kvm import kvm_works
from kmcluster.nspawn_files import SERVED
from kmcluster.qemu_argv import STICK_FILE
from kmcluster.state import Cluster, Machine
from kmcluster.topology import Boot, Role, Topology, count_ports, plug
from kmcluster.tuning import Tuning
from kmplan import files, run, seed
from kmplan.errors import UserError

OTHER = "take it down first, or give another --name"

# Pods may take their 30 s of grace, units their 90 s, and TCG makes all of it longer.
POWER_OFF_S = {"native": 150.0, "kvm": 150.0, "tcg": 400.0}


@dataclass(frozen=True)
class Order:
    """What `up` is asked for.

    `directory` is a cluster directory; without one `make_directory(folder, name)` makes one in the state folder.
    `make_stick(image, path, credentials)` makes a stick for a machine that boots from one. `tuning` is overridden on every
    node.
    """

    name: str
    topology: Topology
    driver: str
    image: Image
    directory: Path | None
    make_directory: Callable[[Path, str], None]
    make_stick: Callable[[Image, Path, Mapping[str, bytes]], None]
    tuning: Tuning = field(default_factory=dict)


def up(order: Order) -> Cluster:
    """Make the cluster if there is none of that name, and power on every machine that is off; does not wait.

    Raises UserError when the order cannot be met or a cluster of that name is another one.
    """
    check_host(order.driver)
    check_boot(order)
    state.folder_of(order.name)
    with state.locked(order.name, make=True) as folder:
        if (folder / state.FILE).exists():
            cluster = state.load(order.name)
            check_same(cluster, order)
        else:
            # What an interrupted `up` left would be written to, and it may be another cluster's file as well.
            state.clear(folder)
            try:
                if order.driver == "nspawn":
                    inotify.check(len(order.topology.nodes))
                cluster = create(order)
            except BaseException:
                state.remove(folder)
                raise
        driver = driver_of(cluster)
        for machine in cluster.seed_first():
            if not machine.waits:
                driver.power_on(machine)
        driver.apply_cables(cluster.cables)
    return cluster


def check_boot(order: Order) -> None:
    """A container boots from nothing but its disk; raises UserError."""
    if other := [node.boot for node in order.topology.nodes if node.boot is not Boot.DISK and order.driver != "qemu"]:
        raise UserError(f"a container cannot boot by `{other[0].value}`", "use --driver qemu")


def check_same(cluster: Cluster, order: Order) -> None:
    """`up` on an existing cluster only powers it on: it has to be of the same shape and the same image."""
    nodes = [machine.node for machine in cluster.machines]
    if (cluster.driver, nodes, cluster.drawn) != (order.driver, order.topology.nodes, order.topology.cables):
        shape = f"{len(nodes)} node(s) and {len(cluster.drawn)} cable(s) on {cluster.driver}"
        raise UserError(f"cluster {cluster.name} exists with {shape}", OTHER)
    if cluster.roothash != check_image(order.image)["roothash"]:
        raise UserError(f"cluster {cluster.name} exists with another image", OTHER)


def create(order: Order) -> Cluster:
    """Check the image, write the state file and give every machine its credentials."""
    manifest = check_image(order.image)
    folder = state.folder_of(order.name)
    ports = count_ports(order.topology)
    directory = order.directory or folder / "cluster"
    cluster = Cluster(
        version=1,
        name=order.name,
        driver=order.driver,
        accelerator=choose_accelerator(order),
        directory=directory.resolve(),
        image=keep_image(order.image, order.driver, folder),
        roothash=str(manifest["roothash"]),
        machines=[
            Machine(name=f"{order.name}-{number}", number=number, node=node, ports=ports[number - 1])
            for number, node in enumerate(order.topology.nodes, 1)
        ],
        drawn=order.topology.cables,
        cables=plug(order.topology),
        tuning=order.tuning,
    )
    if order.directory is None:
        order.make_directory(directory, order.name)
    for machine in cluster.machines:
        write_credentials(cluster, machine, order)
    if order.driver != "qemu":
        keep_served(cluster, manifest)
    cluster.save()
    return cluster


def keep_image(image: Image, driver: str, folder: Path) -> Image:
    """Keep what the machines run under names of the cluster's own: the next build replaces the files of this one."""
    name = "raw" if driver == "qemu" else "erofs"
    kept = folder / f"image.{name}"
    keep(getattr(image, name), kept)
    return msgspec.structs.replace(image, **{name: kept})


def keep(source: Path, kept: Path) -> None:
    """Have a file under another name, too."""
    try:
        kept.hardlink_to(source.resolve())
    except OSError:
        # Another file system, or one without hard links.
        run.run(["cp", "--sparse=always", "--reflink=auto", source, kept])


def keep_served(cluster: Cluster, manifest: Mapping[str, Any]) -> None:
    """Keep what a container serves to machines without a system (agent/kmagent/boot_image.py): it has no disk with that."""
    folder = cluster.folder / SERVED
    folder.mkdir()
    (folder / "system.json").write_text(json.dumps({"roothash": cluster.roothash}))
    for kind, name in (("erofs", "root"), ("verity", "hashes"), ("uki", "kubermesh.efi")):
        if file := manifest["artefacts"].get(kind):
            keep(cluster.image.manifest.parent / file["name"], folder / name)


def choose_accelerator(order: Order) -> str:
    """What runs the processors: none for containers."""
    if order.driver != "qemu":
        return "native"
    return "kvm" if kvm_works(order.image) else "tcg"


def write_credentials(cluster: Cluster, machine: Machine, order: Order) -> None:
    """Give a machine its credentials, one file each, readable by their owner only; those of the cluster perhaps on a stick."""
    folder = cluster.machine_folder(machine) / "credentials"
    folder.mkdir(mode=0o700, parents=True)
    if machine.node.role is Role.SEED:
        given = {"kubermesh.seed": seed.make_bundle(cluster.directory, machine.number, machine.name)}
    else:
        given = {"kubermesh.join": seed.make_join(cluster.directory, machine.number)}
    if machine.node.boot.is_from_network:
        machine.waits, given = True, {}
    if machine.node.boot is Boot.STICK:
        order.make_stick(order.image, cluster.machine_folder(machine) / STICK_FILE, given)
        machine.stick, given = True, {}
    for name, content in given.items():
        files.write(folder / name, content, 0o600)
    files.write(folder / "kubermesh.tuning", msgspec.json.encode(tuning_of(cluster, machine)), 0o600)


def down(name: str) -> bool:
    """End and remove everything of a cluster; False if there was nothing."""
    with contextlib.suppress(state.NoClusterError), state.locked(name) as folder:
        if (folder / state.FILE).exists():
            cluster = state.load(name)
            driver = driver_of(cluster)
            for role in list(cluster.processes):
                cluster.end_process(role)
            for machine in cluster.machines:
                driver.cleanup(machine)
        state.remove(folder)
        return True
    return False


def power(name: str, node: str, action: str) -> Cluster:
    """Do something to a machine's power: on, off, cut, reset, freeze or thaw."""
    with state.locked(name):
        cluster = state.load(name)
        driver, machine = driver_of(cluster), cluster.machine(node)
        actions: dict[str, Callable[[], None]] = {
            "on": lambda: driver.power_on(machine),
            "off": lambda: driver.power_off(machine, POWER_OFF_S[cluster.accelerator]),
            "cut": lambda: driver.power_cut(machine),
            "reset": lambda: driver.reset(machine),
            "freeze": lambda: driver.freeze(machine),
            "thaw": lambda: driver.thaw(machine),
        }
        if action not in actions:
            raise UserError(f"{action}: no such action", f"there are: {', '.join(actions)}")
        machine.waits = machine.waits and action not in ("on", "reset")
        actions[action]()
        cluster.save()
    return cluster


def stick(name: str, node: str, plugged: bool) -> Cluster:
    """Plug a machine's stick in, or pull it out; UserError when it has none."""
    with state.locked(name):
        cluster = state.load(name)
        machine = cluster.machine(node)
        if not (cluster.machine_folder(machine) / STICK_FILE).exists():
            raise UserError(f"{machine.name} has no stick", "`boot: stick` in the topology gives it one")
        driver_of(cluster).plug_stick(machine, plugged)
        machine.stick = plugged
        cluster.save()
    return cluster


def load_image(cluster: Cluster, machine: Machine, archive: Path) -> None:
    """Import a container image (an OCI or Docker tar) into a running machine."""
    try:
        data = archive.read_bytes()
    except OSError as error:
        raise UserError(f"{archive}: cannot be read: {error.strerror}") from error
    argv = ["ctr", "--namespace=k8s.io", "images", "import", "--local", "-"]
    result = driver_of(cluster).execute(machine, argv, data)
    if result.code != 0:
        words = (result.stderr or result.stdout).strip().splitlines()
        raise UserError(f"{archive}: not imported on {machine.name}: {words[-1] if words else result.code}")
