"""`kmbuild cluster`: clusters of the image on this machine."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from kmbuild import init, stick
from kmbuild.artefacts import replace_file
from kmbuild.cable_command import cable, recable
from kmbuild.completion import complete_topology
from kmbuild.evidence_command import bundle, console, logs
from kmbuild.fault_command import clock, disk, plug_stick
from kmbuild.locate import locate_image
from kmbuild.options import cluster_argument, json_option, name_option, node_argument
from kmbuild.status_command import status
from kmbuild.topology_command import topology
from kmcluster import access, bench, report, state, waiting
from kmcluster.drivers import NAMES, driver_of
from kmcluster.image import Image
from kmcluster.topology import Boot, Topology, find_topology, read_topology
from kmplan import run
from kmplan.addresses import random_prefix
from kmplan.cluster import ClusterFile
from kmplan.document import convert
from kmplan.errors import UserError

ACTIONS = ("on", "off", "cut", "reset", "freeze", "thaw")

passed_on = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@click.group()
def cluster() -> None:
    """Boot clusters of the image on this machine."""


for command in (status, cable, recable, topology, disk, plug_stick, clock, console, logs, bundle):
    cluster.add_command(command)


@cluster.command()
@click.argument("name_or_file", metavar="TOPOLOGY", shell_complete=complete_topology)
@click.option("--driver", type=click.Choice(NAMES), default="nspawn", show_default=True, help="What runs the machines.")
@click.option("--name", help="Name of the cluster.  [default: the topology's]")
@click.option(
    "--image", type=click.Path(path_type=Path), default=Path("out"), show_default=True, help="The .raw or its folder."
)
@click.option(
    "--cluster", "directory", type=click.Path(path_type=Path), help="Cluster directory.  [default: a new one]"
)
@click.option(
    "--stick",
    "flashed",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File that `kmbuild flash` wrote with this cluster directory, for the node with `boot: stick`.  [default: one like it]",
)
@click.option(
    "--load", type=click.Path(path_type=Path), multiple=True, help="Container image (tar) to import; repeatable."
)
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    help="Seconds until every node has to be Ready.  [default: by driver and number of nodes]",
)
@json_option
def up(
    name_or_file: str,
    driver: str,
    name: str | None,
    image: Path,
    directory: Path | None,
    flashed: Path | None,
    load: Sequence[Path],
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Power on a cluster and wait until every node is Ready; TOPOLOGY is a file or a shipped one's name."""
    path = find_topology(name_or_file)
    topology = read_topology(path)
    order = bench.Order(
        name=name or path.stem,
        topology=topology,
        driver=driver,
        image=locate_image(image),
        directory=directory,
        make_directory=make_directory,
        make_stick=copy_of(flashed, topology, directory) if flashed else stick.make_file,
    )
    start = time.monotonic()
    made = bench.up(order)
    show_line(time.monotonic() - start, made.name, f"power on ({made.driver}, {made.accelerator})")
    took = waiting.wait_ready(made, show_line, timeout_s)
    left = [machine for machine in made.machines if machine.waits]
    for archive in load:
        for machine in made.machines:
            if machine not in left:
                bench.load_image(made, machine, archive)
    if as_json:
        click.echo(json.dumps({**report.describe(made), "ready_s": round(took, 2)}, indent=2))
    else:
        but = f", without {', '.join(machine.name for machine in left)}, where no cable is plugged in" if left else ""
        click.echo(f"{made.name} is Ready{but}; try: kmbuild cluster kubectl -- get nodes")


def show_line(seconds: float, node: str, what: str) -> None:
    """Show progress, apart from the result."""
    click.echo(f"{seconds:7.1f} s  {node}  {what}", err=True)


def copy_of(flashed: Path, topology: Topology, directory: Path | None) -> Callable[..., None]:
    """A way to make a machine's stick: a copy of one that was flashed; UserError when nobody boots from it."""
    if directory is None:
        raise UserError("--stick: it has the credentials of a cluster directory", "name that one, too: --cluster DIR")
    if not flashed.is_file():
        raise UserError(f"--stick: {flashed}: no regular file", "flash into one: truncate -s 8G stick.img")
    if (count := sum(node.boot is Boot.STICK for node in topology.nodes)) != 1:
        raise UserError(f"--stick: {count} nodes boot from one", "`boot: stick` in the topology, for one node")

    def copy(_image: Image, path: Path, _credentials: Mapping[str, bytes]) -> None:
        replace_file(flashed, path, None)

    return copy


def make_directory(folder: Path, name: str, **more: object) -> None:
    """Make a cluster directory as `kmbuild init` does; its machines are the bench's own, so all are admitted.

    `more` are further keys of the cluster file.
    """
    wishes = {"version": 1, "name": name, "prefix": str(random_prefix()), "admission": {"policy": "auto"}}
    init.create(folder, convert({**wishes, **more}, ClusterFile, name))


@cluster.command("list")
@json_option
def list_clusters(as_json: bool) -> None:
    """List the clusters on this machine."""
    rows = report.overview()
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['name']:20} {row['driver']:7} {row['on']} of {row['nodes']} on")


@cluster.command("exec", context_settings=passed_on)
@name_option
@node_argument
@click.argument("command", nargs=-1, required=True)
def execute(name: str | None, node: str, command: Sequence[str]) -> None:
    """Run COMMAND in a node; its status is this command's status."""
    loaded = state.load(state.only_name(name))
    words = command[1:] if command[0] == "--" else command
    sys.exit(driver_of(loaded).attach(loaded.machine(node), words))


@cluster.command()
@cluster_argument
def kubeconfig(name: str | None) -> None:
    """Print an admin kubeconfig that works on this machine."""
    click.echo(access.kubeconfig(state.load(state.only_name(name))), nl=False)


@cluster.command(context_settings=passed_on)
@name_option
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def kubectl(name: str | None, arguments: Sequence[str]) -> None:
    """Run the image's own kubectl against a cluster."""
    argv, environment = access.kubectl(state.load(state.only_name(name)))
    run.replace_self([*argv, *arguments], environment)


@cluster.command()
@cluster_argument
@click.option("--all", "every", is_flag=True, help="All clusters of this user.")
@json_option
def down(name: str | None, every: bool, as_json: bool) -> None:
    """End a cluster and remove all of it, also after a crash of this tool; nothing to do is no error."""
    names = state.cluster_names() if every or not name else [name]
    if not every and len(names) > 1:
        state.only_name(None)
    for one in names:
        bench.down(one)
        if not as_json:
            click.echo(f"{one}: gone")
    if as_json:
        click.echo(json.dumps(names))


@cluster.command()
@node_argument
@click.argument("action", type=click.Choice(ACTIONS))
@name_option
@json_option
def power(node: str, action: str, name: str | None, as_json: bool) -> None:
    """Switch a node on or off, cut its power, reset, freeze or thaw it."""
    changed = bench.power(state.only_name(name), node, action)
    if as_json:
        click.echo(json.dumps(report.describe_machine(driver_of(changed), changed.machine(node)), indent=2))
