"""`kmbuild cluster console`, `logs` and `bundle`: what happened."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click

from kmbuild.options import cluster_argument, json_option, name_option, node_argument
from kmcluster import bundle as bundles
from kmcluster import logs as node_logs
from kmcluster import state
from kmcluster.driver import Driver
from kmcluster.drivers import driver_of
from kmcluster.duration import parse_duration
from kmcluster.state import Machine
from kmplan.errors import UserError

CONSOLE_POLL_S = 0.2
POLL_S = {"native": 0.5, "kvm": 1.0, "tcg": 4.0}

follow_option = click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")
lines_option = click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")


@click.command()
@node_argument
@follow_option
@lines_option
@name_option
def console(node: str, follow: bool, as_json: bool, name: str | None) -> None:
    """Print what a node's console showed."""
    cluster = state.load(state.only_name(name))
    driver, machine = driver_of(cluster), cluster.machine(node)
    path = driver.console(machine)
    if not path.exists():
        raise UserError(f"{machine.name} has no console yet", "was it ever on?")
    chunks = read_growing(path, lambda: follow and find_on(driver, cluster.name, node) is not None)
    if as_json:
        for line in whole_lines(chunks):
            click.echo(json.dumps({"node": machine.name, "line": line}))
        return
    for chunk in chunks:
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def find_on(driver: Driver, cluster: str, node: str) -> Machine | None:
    """A node by the state of now, or None when it is off; one that is being reset is off only while the lock is held."""
    with contextlib.suppress(state.NoClusterError):
        machine = state.load(cluster).machine(node)
        if driver.power(machine) != "off":
            return machine
        try:
            with state.locked(cluster):
                machine = state.load(cluster).machine(node)
        except state.NoClusterError:
            raise
        except UserError:
            # Somebody takes long with it.
            return machine
        return machine if driver.power(machine) != "off" else None
    return None


def read_growing(path: Path, grows: Callable[[], bool]) -> Iterator[bytes]:
    """Yield what is in a file, and what is added while it grows."""
    with path.open("rb") as file:
        goes_on = True
        while goes_on:
            goes_on = grows()
            yield file.read()
            time.sleep(CONSOLE_POLL_S if goes_on else 0)


def whole_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield lines as soon as they are whole, the last one also when it is not."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.rstrip(b"\r").decode(errors="replace") for line in lines)
    if rest:
        yield rest.decode(errors="replace")


@click.command()
@node_argument
@click.argument("what", metavar="[UNIT|POD]", required=False)
@follow_option
@click.option("--since", metavar="DURATION", help="Only what is not older, such as 10m.")
@lines_option
@name_option
def logs(node: str, what: str | None, follow: bool, since: str | None, as_json: bool, name: str | None) -> None:
    """Print a node's logs: those of the agent, kubelet, containerd and babeld, of a UNIT, or of a POD.

    The API is not needed. A pod is meant by NAMESPACE/NAME or by the beginning of its name, such as etcd.
    """
    cluster = state.load(state.only_name(name))
    driver, machine, since_s = driver_of(cluster), cluster.machine(node), parse_duration(since) if since else 0
    source, place = node_logs.choose_source(driver, machine, what), node_logs.Place()
    click.echo(node_logs.read(driver, machine, source, since_s, place, as_json=as_json), nl=False)
    while follow:
        time.sleep(POLL_S[cluster.accelerator])
        now = find_on(driver, cluster.name, node)
        follow = now is not None
        # It may be frozen, or starting again; of one that is off the disk may have more.
        with contextlib.suppress(UserError):
            click.echo(node_logs.read(driver, now or machine, source, since_s, place, as_json=as_json), nl=False)


@click.command()
@cluster_argument
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="FILE",
    help="The archive, or its folder.  [default: this folder]",
)
@json_option
def bundle(name: str | None, output: Path, as_json: bool) -> None:
    """Collect all that tells a cluster's story in one .tar.gz, and print its path; begin with its index.html.

    It has logs, routes, etcd's and the agent's state of every node, also of one that is off, and no keys.
    """
    cluster = state.load(state.only_name(name))
    path = bundles.collect(cluster, output)
    click.echo(json.dumps({"cluster": cluster.name, "bundle": str(path)}, indent=2) if as_json else path)
