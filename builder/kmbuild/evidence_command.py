"""`kmbuild cluster logs` and `bundle`: what happened."""

import json
import time
from pathlib import Path

import click

from kmbuild.options import cluster_argument, json_option, name_option, node_argument
from kmcluster import bundle as bundles
from kmcluster import logs as node_logs
from kmcluster import state
from kmcluster.drivers import driver_of
from kmcluster.duration import parse_duration

POLL_S = {"native": 0.5, "kvm": 1.0, "tcg": 4.0}


@click.command()
@node_argument
@click.argument("what", metavar="[UNIT|POD]", required=False)
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")
@click.option("--since", metavar="DURATION", help="Only what is not older, such as 10m.")
@name_option
def logs(node: str, what: str | None, follow: bool, since: str | None, name: str | None) -> None:
    """Print a node's logs: those of the agent, kubelet, containerd and babeld, of a UNIT, or of a POD.

    The API is not needed. A pod is meant by NAMESPACE/NAME or by the beginning of its name, such as etcd.
    """
    cluster = state.load(state.only_name(name))
    driver, machine, since_s = driver_of(cluster), cluster.machine(node), parse_duration(since) if since else 0
    source, place = node_logs.choose_source(driver, machine, what), node_logs.Place()
    click.echo(node_logs.read(driver, machine, source, since_s, place), nl=False)
    while follow and driver.power(machine) == "on":
        time.sleep(POLL_S[cluster.accelerator])
        click.echo(node_logs.read(driver, machine, source, since_s, place), nl=False)


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
