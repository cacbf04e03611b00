"""The oracles of a scenario: children that look at the cluster while it is broken, and what they noted.

Each runs in the network namespace of a machine or pod, and ends with its standard input.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import TypeVar

import msgspec

from kmcluster import access, prober, steady, watcher
from kmcluster.prober import Probe
from kmcluster.scenario import Scenario, Scene
from kmcluster.state import Cluster, Machine
from kmcluster.watcher import Sight
from kmcluster.writer import Entry
from kmplan import files
from kmplan.errors import UserError
from kmplan.run import spawn

T = TypeVar("T")

COUNTER = "kubermesh-verify"
WRITERS = 2


@dataclass(frozen=True)
class Logs:
    """Where the oracles note what they see; the logs are whole when `observing` has ended."""

    writers: list[Path]
    watchers: list[Path]
    probers: list[Path]

    def entries(self) -> list[list[Entry]]:
        """What the writers were told."""
        return [read(log, Entry) for log in self.writers]

    def sights(self) -> list[list[Sight]]:
        """What the watchers saw."""
        return [read(log, Sight) for log in self.watchers]

    def probes(self) -> list[list[Probe]]:
        """What became of the connections to the service."""
        return [read(log, Probe) for log in self.probers]


@contextmanager
def observing(
    scene: Scene, scenario: Scenario, chosen: Sequence[int], voters: Sequence[int], folder: Path
) -> Iterator[Logs]:
    """Have all oracles look at the cluster, from machines that are not harmed.

    Where there is none, and of virtual machines, which do not share their networks with this one, two writers use the port that
    leads to the API, and that is all.
    """
    cluster = scene.cluster
    steady.kubectl(cluster, "delete", "configmap", COUNTER, "--ignore-not-found")
    steady.kubectl(cluster, "create", "configmap", COUNTER, "--from-literal=value=0")
    pace = str(steady.pace(cluster))
    spared = [one for one in cluster.machines if one.number not in chosen]
    with tempfile.TemporaryDirectory() as papers:
        if cluster.driver != "nspawn" or not spared:
            config = Path(papers) / "kubeconfig"
            files.write(config, access.kubeconfig(cluster), 0o600)
            with inside_of([None] * WRITERS, "writer", folder, str(config), COUNTER, pace) as writers:
                yield Logs(writers, [], [])
            return
        # A watcher on a machine that is harmed would take several steps at once when it catches up.
        watched = [machine for machine in spared if machine.number in voters]
        # A voter's own API answers to the anycast address on the voter itself: writers elsewhere see how the address moves,
        # those best whom a victim answers.
        elsewhere = sorted(
            spared, key=lambda machine: (scene.asked_by(machine.number) not in chosen, machine.number in voters)
        )
        asking = [scene.machine(number) for number in chosen[: scenario.asks_victim]]
        homes = networks(([*asking, *elsewhere] * WRITERS)[:WRITERS])
        config = cluster.directory / "admin.kubeconfig"
        with (
            inside_of(homes, "writer", folder, str(config), COUNTER, pace) as writers,
            inside_of(networks(watched), "watcher", folder, watcher.prepare(cluster, Path(papers))) as watchers,
            probing(cluster, spared[:1], [scene.machine(number) for number in chosen], folder) as probers,
        ):
            yield Logs(writers, watchers, probers)


@contextmanager
def probing(
    cluster: Cluster, homes: Sequence[Machine], harmed: Sequence[Machine], folder: Path
) -> Iterator[list[Path]]:
    """Probe a service from a pod on a machine, if there is one for it; yields the log."""
    if not homes:
        yield []
        return
    address = prober.place(cluster, homes[0], harmed)
    with inside_of([prober.network_of(cluster, homes[0])], "prober", folder, address) as logs:
        yield logs


def networks(machines: Sequence[Machine]) -> list[Path]:
    """The machines' network namespaces."""
    return [Path(f"/proc/{machine.processes['forward'].pid}/ns/net") for machine in machines]


@contextmanager
def inside_of(places: Sequence[Path | None], oracle: str, folder: Path, *arguments: str) -> Iterator[list[Path]]:
    """Have an oracle run in each of these network namespaces, None for this one; yields their logs."""
    logs = [folder / f"{oracle}-{number}.jsonl" for number in range(len(places))]
    children: list[Popen[bytes]] = []
    try:
        for place, log in zip(places, logs, strict=True):
            log.write_bytes(b"")
            inside = ["nsenter", f"--net={place}", "--"] if place else []
            argv = [*inside, sys.executable, "-P", "-m", f"kmcluster.{oracle}", *arguments]
            children.append(spawn(argv, log=log, tied=True))
        yield logs
    finally:
        for child in children:
            if child.stdin:
                child.stdin.close()
        for child in children:
            child.wait()


def read(log: Path, kind: type[T]) -> list[T]:
    """Read what an oracle noted; UserError when it said something else, as it does when it breaks."""
    lines = log.read_text().splitlines()
    try:
        return [msgspec.json.decode(line, type=kind) for line in lines]
    except msgspec.DecodeError as error:
        raise UserError(f"{log}: an oracle broke: {lines[-1] if lines else error}") from error


def value(cluster: Cluster) -> int:
    """What the writers' counter is; 0 when it is gone, and every write with it."""
    shown = steady.kubectl(
        cluster, "get", "configmap", COUNTER, "--ignore-not-found", "--output=jsonpath={.data.value}"
    )
    return int(shown or 0)
