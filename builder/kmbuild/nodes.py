"""`kmbuild nodes`: the machines of a cluster, and the user's word on which of them are its nodes."""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC
from pathlib import Path
from typing import Any

import click
import msgspec

from kmbuild import meshnode
from kmbuild.cluster import show_line
from kmbuild.meshnode import Api, MeshNode, NoAnswerError
from kmbuild.options import json_option
from kmbuild.table import table
from kmcluster import access, state
from kmcluster.drivers import driver_of
from kmcluster.state import Cluster
from kmplan import document, pki
from kmplan.cluster import read_cluster
from kmplan.errors import UserError
from kmplan.fingerprint import compared, grouped

WAIT_S = 60.0
POLL_S = 0.5
LISTED_DIGITS = 16
HEADER = ("NUMBER", "NODE", "ROLE", "PHASE", "FINGERPRINT", "UUID", "VIA", "SINCE", "READY")
AGAIN = "wait until it has asked again"


@dataclass(frozen=True)
class Verdict:
    """What a user can say of a machine: the decision, and the phase it leads to; None where the object goes.

    `barred` names the phases in which it cannot be said, and what to do instead; in phase `under_way` the rest needs nobody.
    `wipe` lets the machine wipe a disk.
    """

    decision: str
    phase: str | None
    barred: Mapping[str, str] = field(default_factory=dict)
    under_way: str = ""
    wipe: bool = False

    @property
    def done(self) -> str:
        """What the machine is then."""
        return (self.phase or self.decision).lower()

    def is_said(self, node: MeshNode) -> bool:
        """Whether the node's object has it already."""
        return node.spec.decision == self.decision and node.spec.wipe >= self.wipe

    def is_done(self, node: MeshNode | None) -> bool:
        """Whether the cluster has done it; no node is one that is gone."""
        if node is None:
            return self.phase is None
        phases = (self.phase, self.under_way) if self.under_way else (self.phase,)
        return node.status.phase in phases and node.spec.decision in ("", self.decision)


APPROVE = Verdict("Approved", "Admitted", {"Removing": AGAIN}, under_way="Installing")
DENY = Verdict("Denied", "Denied", {"Removing": AGAIN, "Admitted": "`kmbuild nodes remove` takes a node out"})
REMOVE = Verdict("Removed", None)

cluster_option = click.option(
    "--cluster",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Cluster directory made by `kmbuild init`; may be left out if one cluster runs on this machine.",
)


def decision_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of every command that decides."""
    seconds = click.FloatRange(min=0)
    timeout = click.option(
        "--timeout", "timeout_s", type=seconds, default=WAIT_S, show_default=True, help="Seconds to wait."
    )
    no_wait = click.option("--no-wait", is_flag=True, help="Do not wait until it is done.")
    for option in (json_option, no_wait, timeout, cluster_option):
        command = option(command)
    return command


@click.group()
def nodes() -> None:
    """List the machines of a cluster, and say which of them are its nodes.

    NODE is a node's name or number, a MeshNode's name, a machine's SMBIOS UUID, or 4 or more digits of its fingerprint.
    """


@nodes.command("list")
@cluster_option
@json_option
def list_nodes(directory: Path | None, as_json: bool) -> None:
    """List the machines that asked to be admitted, and the nodes."""
    found = sorted(open_api(directory).read_all(), key=meshnode.order)
    if as_json:
        print_json(found)
    elif found:
        click.echo(table([HEADER, *map(row, found)]))
        for node in found:
            if node.status.blocked:
                click.echo(f"{node.label}: {node.status.blocked}")
            for offer in node.status.offers:
                click.echo(f"{node.label} {offer.port}: {offer.message}")
    else:
        click.echo("no machine has asked to be admitted yet", err=True)
    if not as_json:
        show_cluster(directory)


@nodes.command()
@click.argument("words", metavar="NODE...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every machine that waits.")
@click.option("--wipe", is_flag=True, help="Let machines that have no empty disk wipe one.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@decision_options
def approve(
    words: Sequence[str], every: bool, wipe: bool, yes: bool, directory: Path | None, timeout_s: float, no_wait: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Admit machines; also those that were denied before.

    On a terminal it asks whether each one's console shows the same fingerprint, but where you give that: 16 digits do.
    """
    if every == bool(words):
        raise click.UsageError("Give NODE or --all.")
    api = open_api(directory)
    known = sorted(api.read_all(), key=meshnode.order)
    chosen = [node for node in known if node.status.phase == "Pending"] if every else meshnode.choose(words, known)
    if not chosen:
        click.echo("no machine waits", err=True)
    for node in chosen:
        if node.status.blocked and not wipe:
            raise UserError(f"{node.label}: {node.status.blocked}", "--wipe lets it wipe one of these disks")
        if not APPROVE.is_done(node):
            shown = compared(node.status.fingerprint)
            click.echo(f"{node.label} has the fingerprint {shown}: compare it with the machine's console", err=True)
            if not yes and sys.stdin.isatty() and not meshnode.is_compared(words, node):
                click.confirm("Is it the same?", abort=True, err=True)
    carry_out(api, replace(APPROVE, wipe=wipe), chosen, 0 if no_wait else timeout_s, as_json)


@nodes.command()
@click.argument("words", metavar="NODE...", nargs=-1, required=True)
@decision_options
def deny(words: Sequence[str], directory: Path | None, timeout_s: float, no_wait: bool, as_json: bool) -> None:
    """Refuse machines that wait: they get nothing, and are not asked about again."""
    api = open_api(directory)
    carry_out(api, DENY, meshnode.choose(words, api.read_all()), 0 if no_wait else timeout_s, as_json)


@nodes.command()
@click.argument("words", metavar="NODE...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@decision_options
def remove(
    words: Sequence[str], yes: bool, directory: Path | None, timeout_s: float, no_wait: bool, as_json: bool
) -> None:
    """Take nodes out of the cluster, or forget machines that were denied."""
    api = open_api(directory)
    known = api.read_all()
    chosen = meshnode.choose(words, known)
    refuse_last_voter(chosen, known)
    if not yes and sys.stdin.isatty():
        names = ", ".join(f"{node.label} ({node.status.role or node.status.phase})" for node in chosen)
        click.confirm(f"Remove {names}?", abort=True, err=True)
    carry_out(api, REMOVE, chosen, 0 if no_wait else timeout_s, as_json)


def show_cluster(directory: Path | None) -> None:
    """Show what a machine that boots from a neighbour shows of the cluster, where the directory has that."""
    home = directory or only_bench().directory
    with contextlib.suppress(OSError, UserError):
        authority = (home / "pki/node-ca.crt").read_text(encoding="ascii")
        shown = compared(pki.fingerprint(authority))
        click.echo(f"cluster {read_cluster(home).name}, fingerprint {shown}", err=True)


def open_api(directory: Path | None) -> Api:
    """The API of the cluster of a directory, or of the one cluster on this machine; UserError when there is none."""
    cluster = find_bench(directory) if directory else only_bench()
    if cluster:
        config = document.parse(access.kubeconfig(cluster), dict[str, Any], cluster.name)
        return Api(config, f"`kmbuild cluster status {cluster.name}` shows what is on")
    try:
        config = document.read((directory or Path()) / "admin.kubeconfig", dict[str, Any])
    except UserError as error:
        raise UserError(error.message, "--cluster wants a directory made by `kmbuild init`") from error
    return Api(config, "is a control-plane node on, and this machine cabled to the mesh?")


def only_bench() -> Cluster:
    """The one cluster on this machine; UserError when there is none, or more."""
    try:
        name = state.only_name(None)
    except UserError as error:
        raise UserError(error.message, "give --cluster DIR, the cluster's directory") from error
    return state.load(name)


def find_bench(directory: Path) -> Cluster | None:
    """The cluster on this machine that runs with this directory: its anycast address is not reached from here."""
    for name in state.cluster_names():
        with contextlib.suppress(UserError):  # half made or damaged: not that of the question
            cluster = state.load(name)
            if cluster.directory.resolve() == directory.resolve() and is_on(cluster):
                return cluster
    return None


def is_on(cluster: Cluster) -> bool:
    """Whether a machine of the cluster is on."""
    driver = driver_of(cluster)
    return any(driver.power(machine) != "off" for machine in cluster.machines)


def refuse_last_voter(chosen: Sequence[MeshNode], known: Sequence[MeshNode]) -> None:
    """Raise UserError when no voter would be left. The cluster decides finally; this spares the wait."""
    voters = [node for node in known if node.status.role == "voter"]
    if voters and all(node in chosen for node in voters):
        last = ", ".join(node.label for node in voters)
        raise UserError(f"{last}: no other node votes in etcd, the cluster would be lost", "admit another node first")


def carry_out(api: Api, verdict: Verdict, chosen: Sequence[MeshNode], timeout_s: float, as_json: bool) -> None:
    """Say it of every node, wait until it is done, and print the result."""
    for node in chosen:
        hint = verdict.barred.get(node.status.phase)
        if hint:
            raise UserError(f"{node.label} is in phase {node.status.phase}", hint)
    told = [
        node
        if verdict.is_done(node) or verdict.is_said(node)
        else api.decide(node, verdict.decision, wipe=verdict.wipe)
        for node in chosen
    ]
    last = wait(api, verdict, told, timeout_s) if timeout_s else told
    if as_json:
        print_json(last)
        return
    for before, after in zip(chosen, last, strict=True):
        click.echo(result(verdict, before, after, waited=timeout_s > 0))


def wait(api: Api, verdict: Verdict, told: Sequence[MeshNode], timeout_s: float) -> list[MeshNode]:
    """Wait until the cluster has done it, showing what changes; returns the nodes as last seen.

    Raises UserError when time is over. An API server that goes away meanwhile is waited for.
    """
    start = time.monotonic()
    last = {node.label: node for node in told}
    shown = {label: progress(node) for label, node in last.items() if verdict.is_done(node)}

    def show(who: str, what: str) -> None:
        if shown.get(who) != what:
            show_line(time.monotonic() - start, who, what)
        shown[who] = what

    while late := observe(api, verdict, last, show):
        if time.monotonic() - start > timeout_s:
            seen = ", ".join(f"{label} ({shown.get(label, 'not seen')})" for label in late)
            what = f"not {verdict.done} after {timeout_s:g} s: {seen}"
            raise UserError(what, "the decision is kept; see `kmbuild nodes list`")
        time.sleep(POLL_S)
    return list(last.values())


def observe(api: Api, verdict: Verdict, last: dict[str, MeshNode], show: Callable[[str, str], None]) -> list[str]:
    """Look once and take down in `last` what is seen; returns the labels of nodes for which it is not done yet."""
    try:
        now = {node.metadata.uid: node for node in api.read_all()}
    except NoAnswerError as error:
        show("API", error.message)
        return list(last)
    late = []
    for label, node in last.items():
        current = now.get(node.metadata.uid)
        show(label, progress(current) if current else "gone")
        if current is None and verdict.phase:
            raise UserError(f"{label} is gone: somebody removed it", AGAIN)
        if not verdict.is_done(current):
            late.append(label)
        last[label] = current or node
    return late


def progress(node: MeshNode) -> str:
    """A node's phase, and what its latest condition says."""
    dated = [(one.last_transition_time, one.message) for one in node.status.conditions if one.last_transition_time]
    message = max(dated, key=lambda one: one[0])[1] if dated else ""
    return f"{node.status.phase}: {message}" if message else node.status.phase


def result(verdict: Verdict, before: MeshNode, after: MeshNode, *, waited: bool) -> str:
    """What became of a node, in a line."""
    if verdict.is_done(before):
        return f"{before.label} is {verdict.done} already"
    if not waited:
        return f"{before.label}: decision is {verdict.decision}"
    if after.status.phase == APPROVE.under_way:
        return f"{after.label} wipes a disk and installs itself there; it comes again, and is admitted then"
    if verdict.decision == APPROVE.decision:
        return f"{after.label} is admitted: node {after.status.number}, {after.status.role}"
    return f"{before.label} is {verdict.done}"


def row(node: MeshNode) -> tuple[str, ...]:
    """A node's line of the table; the time is in UTC."""
    status = node.status
    ready, admitted = node.condition("Ready"), node.condition("Admitted")
    since = admitted.last_transition_time if admitted and status.phase == "Admitted" else status.first_seen
    cells = (
        str(status.number or ""),
        node.label,
        status.role,
        status.phase,
        grouped(status.fingerprint[:LISTED_DIGITS]),
        status.uuid,
        status.via,
        since.astimezone(UTC).strftime("%Y-%m-%d %H:%M") if since else "",
        {"True": "yes", "False": "no"}.get(ready.status, "") if ready else "",
    )
    return tuple(cell or "-" for cell in cells)


def print_json(found: Sequence[MeshNode]) -> None:
    """Print the objects as a JSON list."""
    click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
