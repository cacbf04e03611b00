"""`kmbuild recover`: begins a cluster anew whose voters are lost for good, from the best that is left."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from kmbuild.cluster import show_line
from kmbuild.node_api import PORT, Node, NodeApi, Place, State, Survey
from kmbuild.nodes import cluster_option, find_bench, only_bench
from kmbuild.options import json_option
from kmbuild.table import table
from kmcluster.drivers import driver_of
from kmcluster.state import Cluster
from kmplan import pki, recovery, seal
from kmplan.errors import UserError
from kmplan.recovery import OWN_DATA, Order, Snapshot, parse_snapshot
from kmplan.secret_files import SECRET_FILES
from kmplan.voters import majority

WAIT_S, SURVEY_S, READ_S = 300.0, 10.0, 120.0
POLL_S = 1.0
HEADER = ("NODE", "PART", "EPOCH", "ETCD", "NEWEST SNAPSHOT")


@dataclass(frozen=True)
class Source:
    """Where the cluster may begin anew: a node with its own data, or with a snapshot."""

    node: Node
    state: State
    epoch: int
    revision: int
    snapshot: Snapshot | None = None

    @property
    def name(self) -> str:
        """As an order names it."""
        return self.snapshot.name if self.snapshot else OWN_DATA

    def describe(self) -> str:
        """Say it in words."""
        what = f"its snapshot of {moment(self.snapshot)}" if self.snapshot else "its own data"
        return f"{self.node.name} with {what} (revision {self.revision})"


@click.command("recover")
@cluster_option
@click.option(
    "--node",
    "addresses",
    multiple=True,
    metavar="ADDRESS",
    help="A node that is on, to ask first.  [default: the bench's]",
)
@click.option("--from", "wanted", metavar="NODE|SNAPSHOT", help="Begin from this.  [default: what goes furthest]")
@click.option("--force", is_flag=True, help="Go on without a majority of the nodes, or though etcd still has a leader.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0), default=WAIT_S, show_default=True, help="Seconds to wait."
)
@json_option
def recover(
    directory: Path | None,
    addresses: Sequence[str],
    wanted: str | None,
    force: bool,
    dry_run: bool,
    yes: bool,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Begin the cluster anew when most of its voters are lost for good.

    One node becomes the only voter, with its own data of etcd or a snapshot; the others follow, and it grows again by
    itself. What was written after those data is lost. Nodes that are lost and come back are fenced: they serve nothing old.
    """
    folder, places = find_nodes(directory, addresses)
    api = NodeApi(folder, places)
    survey = look(api)
    if not as_json:
        click.echo(table([HEADER, *map(row, survey.nodes)]), err=True)
    check(survey, force=force)
    source = choose(survey, wanted)
    order, keepers = make_order(folder, survey, source, force=force), answering(survey)
    if not as_json or not dry_run:
        explain(survey, source, order)
    if dry_run:
        say(as_json, order, source, keepers, "would begin")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("nobody is there to confirm it", "look at --dry-run, then give --yes")
        click.confirm(f"Begin epoch {order.epoch} at {source.describe()}?", abort=True, err=True)
    kept_by = api.give_order(sign(folder, order))
    if not force and len(kept_by) < majority(len(survey.nodes)):
        names = ", ".join(node.name for node in survey.nodes if node.number not in kept_by)
        raise UserError(
            f"only {len(kept_by)} of {len(survey.nodes)} nodes keep the order; not {names}",
            "it is carried out when a majority does; --force does not wait for them",
        )
    wait(api, source, order, timeout_s)
    say(as_json, order, source, kept_by, "began")


def look(api: NodeApi) -> Survey:
    """What all nodes say; a while after machines were lost the mesh may not lead everywhere yet, and data take time to read."""
    start = time.monotonic()
    while True:
        survey = api.survey()
        is_read = not any(node.state and node.state.etcd and node.state.etcd.looking for node in survey.nodes)
        patience_s = SURVEY_S if len(answering(survey)) < majority(len(survey.nodes)) else 0.0
        if time.monotonic() - start > (patience_s if is_read else READ_S):
            return survey
        time.sleep(POLL_S)


def find_nodes(directory: Path | None, addresses: Sequence[str]) -> tuple[Path, list[Place]]:
    """The cluster directory, and where nodes can be asked; UserError when nobody said."""
    if addresses:
        return directory or Path(), [(address, PORT) for address in addresses]
    bench: Cluster | None = find_bench(directory) if directory else only_bench()
    if bench is None:
        raise UserError("which node shall be asked?", "give --node ADDRESS, of any node that is on")
    driver = driver_of(bench)
    machines = [machine for machine in bench.machines if driver.power(machine) == "on"]
    return bench.directory, [("127.0.0.1", machine.node_port) for machine in machines]


def row(node: Node) -> tuple[str, ...]:
    """A node's line of the table."""
    if node.state is None:
        return node.name, node.role, "-", "does not answer", "-"
    etcd, newest = node.state.etcd, newest_snapshot(node)
    data = "-"
    if etcd:
        unknown = "is being read" if etcd.looking else "does not run"
        data = unknown if etcd.revision is None else f"revision {etcd.revision}"
        data += ", has a leader" if etcd.has_leader and node.state.role == "voter" else ""
    return node.name, node.role, str(node.state.epoch), data, moment(newest) if newest else "-"


def moment(snapshot: Snapshot) -> str:
    """When a snapshot was taken, UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(snapshot.taken))


def newest_snapshot(node: Node) -> Snapshot | None:
    """The newest that a node keeps."""
    names = node.state.snapshots if node.state else []
    return max((found for name in names if (found := parse_snapshot(name))), default=None)


def answering(survey: Survey) -> list[int]:
    """Numbers of the nodes that answer."""
    return [node.number for node in survey.nodes if node.state]


def check(survey: Survey, *, force: bool) -> None:
    """Refuse what is not needed, or not safe."""
    if force:
        return
    for node in survey.nodes:
        # A standby's word is worth nothing: it does not notice that a leader is gone.
        if node.state and node.state.role == "voter" and node.state.etcd and node.state.etcd.has_leader:
            raise UserError(f"etcd has a leader, says {node.name}: there is nothing to recover", "`kmbuild nodes list`")
    if len(answering(survey)) < majority(len(survey.nodes)):
        raise UserError(
            f"{len(answering(survey))} of {len(survey.nodes)} nodes answer, a majority has to know of it",
            "switch more of them on; with --force those that are left out must be erased before they come back",
        )


def choose(survey: Survey, wanted: str | None) -> Source:
    """What goes furthest, or what the user wants; UserError when there is nothing."""
    found = sources(survey)
    if wanted:
        found = [
            source
            for source in found
            if wanted in (source.name if source.snapshot else source.node.name, str(source.node.number))
        ]
        if not found:
            raise UserError(f"{wanted}: no node that answers has such data, or such a snapshot")
    if not found:
        raise UserError("no node that answers has data of etcd or a snapshot", "switch on one that was a voter")
    return max(found, key=lambda one: (one.epoch, one.revision, one.snapshot is None, -one.node.number))


def sources(survey: Survey) -> list[Source]:
    """Everything that the cluster could begin from; data of an etcd that does not run count as older than any other."""
    found = []
    for node in survey.nodes:
        if node.state is None:
            continue
        if node.state.etcd:
            found.append(Source(node, node.state, node.state.own_epoch, node.state.etcd.revision or 0))
        found += [
            Source(node, node.state, snapshot.epoch, snapshot.revision, snapshot)
            for snapshot in map(parse_snapshot, node.state.snapshots)
            if snapshot
        ]
    return found


def make_order(folder: Path, survey: Survey, source: Source, *, force: bool) -> Order:
    """The order; it brings the control plane's secrets to a node that does not have them."""
    sealed = ""
    if source.state.role == "worker":
        authority = (folder / "pki/node-ca.crt").read_text()
        if not pki.is_issued_by(source.state.certificate, authority):
            raise UserError(f"{source.node.name} shows a certificate that this cluster's node authority did not sign")
        files = {name: (folder / name).read_text() for name in SECRET_FILES}
        sealed = seal.seal(json.dumps(files).encode(), source.state.certificate)
    epoch = max(max(node.state.epoch, node.state.withdrawn) for node in survey.nodes if node.state) + 1
    cluster = pki.fingerprint((folder / "pki/cluster-ca.crt").read_text())
    return Order(cluster, epoch, source.node.number, source.name, force, sealed)


def sign(folder: Path, order: Order) -> str:
    """Sign an order with the node authority's key."""
    text = recovery.to_text(order)
    return recovery.pack(text, pki.sign_text((folder / "pki/node-ca.key").read_text(), text))


def explain(survey: Survey, source: Source, order: Order) -> None:
    """Say what will happen, and what the user has to see to."""
    click.echo(f"Epoch {order.epoch} begins at {source.describe()}; what was written later is lost.", err=True)
    silent = ", ".join(node.name for node in survey.nodes if node.state is None)
    if silent:
        click.echo(
            f"No answer from {silent}. If they are only cut off, they may still serve the old data: switch them off first.",
            err=True,
        )


def wait(api: NodeApi, source: Source, order: Order, timeout_s: float) -> None:
    """Wait until the new epoch's etcd leads, showing what the node says; UserError when time is over."""
    start, said = time.monotonic(), ""
    while True:
        state = None
        try:
            node = next(node for node in api.survey().nodes if node.number == order.number)
            state = node.state
            begun = state is not None and state.own_epoch == order.epoch
            leads = begun and state is not None and state.etcd is not None and state.etcd.has_leader
            seen = "etcd leads" if leads else "starts" if begun else (state and state.failure) or "making etcd's data"
        except (UserError, StopIteration) as error:
            seen, leads = str(error).partition("\n")[0] or "not registered", False
        if seen != said:
            show_line(time.monotonic() - start, source.node.name, seen)
            said = seen
        if leads:
            return
        if state is not None and state.withdrawn >= order.epoch > state.own_epoch:
            raise UserError(
                f"epoch {order.epoch} does not begin: {source.node.name} withdrew the order",
                "voters of the epoch before have a leader; if they are lost after all, run `kmbuild recover` again",
            )
        if time.monotonic() - start > timeout_s:
            raise UserError(f"epoch {order.epoch} has not begun after {timeout_s:g} s; last seen: {said}")
        time.sleep(POLL_S)


def say(as_json: bool, order: Order, source: Source, kept_by: Sequence[int], what: str) -> None:
    """Print what was done."""
    if as_json:
        data = {
            "epoch": order.epoch,
            "node": source.node.name,
            "source": source.name,
            "revision": source.revision,
            "kept_by": list(kept_by),
        }
        click.echo(json.dumps(data, indent=2))
    else:
        click.echo(f"epoch {order.epoch} {what} at {source.describe()}")
