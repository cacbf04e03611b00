"""Plays scenarios on a cluster: steady before, oracles meanwhile, everything as before at the end."""

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from subprocess import Popen
from typing import TypeVar

import msgspec

from kmcluster import bundle, prober, steady, watcher, witness
from kmcluster.prober import Probe
from kmcluster.scenario import Scenario, Scene
from kmcluster.state import Cluster, Machine
from kmcluster.verdict import Mark, Outage, Run
from kmcluster.watcher import Sight
from kmcluster.writer import Entry, judge, longest_outage
from kmplan.errors import UserError
from kmplan.run import spawn

T = TypeVar("T")

COUNTER = "kubermesh-verify"
WRITERS = 2
CALM_S, STEADY_S = 3.0, 240.0
# A pause shorter than this is an answer that took its time.
NOTICEABLE_S = 0.5


@dataclass(frozen=True)
class Stage:
    """The cluster to play on, where bundles of failures go, and who is told what happens."""

    cluster: str
    folder: Path
    tell: Callable[[str], None]


def play(scenario: Scenario, stage: Stage, seed: int) -> Run:
    """Play a scenario once. What does not hold is in the result; UserError when the cluster is not steady to begin with."""
    notes: list[tuple[float, str]] = []

    def tell(what: str) -> None:
        notes.append((time.monotonic(), what))
        stage.tell(what)

    scene = Scene(stage.cluster, Random(seed), tell)  # noqa: S311 - no secret
    start = time.monotonic()
    steady.wait_steady(scene.cluster, STEADY_S)
    chosen, before = scenario.victims(scene), members(scene)
    steady.kubectl(scene.cluster, "delete", "configmap", COUNTER, "--ignore-not-found")
    steady.kubectl(scene.cluster, "create", "configmap", COUNTER, "--from-literal=value=0")
    pods = witness.place(scene.cluster)
    faults: list[str] = []
    with (
        writing(scene.cluster, homes(scene, chosen), stage.folder) as logs,
        watching(
            scene.cluster, [scene.machine(number) for number in before if number not in chosen], stage.folder
        ) as sights,
        probing(scene, chosen, stage.folder) as probes,
    ):
        time.sleep(CALM_S)
        begin = time.monotonic()
        try:
            scenario.fault(scene, chosen)
            time.sleep(scenario.after_s)
        except UserError as error:
            faults.append(str(error))
        undone = time.monotonic()
        try:
            if scenario.undo:
                scenario.undo(scene, chosen)
            steady.wait_steady(scene.cluster, scenario.whole_s)
        except UserError as error:
            faults.append(str(error))
        whole = time.monotonic()
        time.sleep(CALM_S)
    entries = [read(log, Entry) for log in logs]
    faults += watcher.judge([read(log, Sight) for log in sights])
    probed = [read(log, Probe) for log in probes]
    faults += ["the service did not answer before the fault" for log in probed if not prober.answered(log, begin)]
    try:
        count = judge(entries, value(scene.cluster))
    except UserError as error:
        raise UserError("; ".join([*faults, str(error)])) from error

    def longest(find: Callable[[float, float], tuple[float, float]]) -> list[Outage]:
        found = [find(begin, undone), find(undone, whole)]
        return [Outage(round(a - begin, 2), round(b - begin, 2)) for a, b in found if b - a > NOTICEABLE_S]

    played = Run(
        scenario=scenario.name, seed=seed, faults=faults, marks=[Mark(round(at - begin, 2), what) for at, what in notes],
        outages=longest(partial(longest_outage, entries)),
        silences=[out for log in probed for out in longest(partial(prober.longest_outage, log))],
        undone_s=round(undone - begin, 2), whole_s=round(whole - begin, 2), acked=count.acked,
        failed=count.failed, lost=len(count.lost), evicted=witness.evicted(pods, witness.where(scene.cluster)),
        heals_alone=scenario.heals_alone, took_s=round(time.monotonic() - start, 2),
    )  # fmt: skip
    faults += unfulfilled(scenario, played, changed=members(scene) != before)
    if faults:
        path = stage.folder / f"{scenario.name}-{seed}.tar.gz"
        played = msgspec.structs.replace(played, bundle=bundle.collect(scene.cluster, path).name)
    return played


def unfulfilled(scenario: Scenario, played: Run, *, changed: bool) -> list[str]:
    """What a scenario promises and this run did not keep."""
    faults = []
    if played.outage_s > scenario.outage_s:
        faults.append(f"no write was acknowledged for {played.outage_s:.1f} s, {scenario.outage_s:g} s are allowed")
    if played.silence_s > scenario.silence_s:
        faults.append(f"a service did not answer for {played.silence_s:.1f} s, {scenario.silence_s:g} s are allowed")
    if played.acked == 0:
        faults.append("no write was acknowledged at all")
    if played.lost:
        faults.append(f"{played.lost} acknowledged writes are lost")
    if played.evicted and not scenario.evicts:
        faults.append(f"pods were evicted from {', '.join(played.evicted)}")
    if changed and not scenario.replaced:
        faults.append("the voters changed")
    if scenario.replaced and not changed:
        faults.append("no voter was replaced")
    return faults


def members(scene: Scene) -> list[int]:
    """The machines that vote."""
    return sorted(scene.with_role("voter"))


def homes(scene: Scene, chosen: Sequence[int]) -> list[Machine]:
    """Machines that the writers live on: none that is harmed, as long as there are others."""
    return [*spared(scene, chosen), *scene.cluster.machines][:WRITERS]


def spared(scene: Scene, chosen: Sequence[int]) -> list[Machine]:
    """Machines that are not harmed."""
    return [one for one in scene.cluster.machines if one.number not in chosen]


@contextlib.contextmanager
def writing(cluster: Cluster, machines: Sequence[Machine], folder: Path) -> Iterator[list[Path]]:
    """Have a writer in each machine's network; yields their logs, which are whole when the block has ended."""
    config = cluster.directory / "admin.kubeconfig"
    with inside_of(networks(machines), "writer", folder, str(config), COUNTER) as logs:
        yield logs


@contextlib.contextmanager
def watching(cluster: Cluster, machines: Sequence[Machine], folder: Path) -> Iterator[list[Path]]:
    """Have a watcher in each of these voters' networks; yields their logs, which are whole when the block has ended.

    One that is harmed would take several steps at once when it catches up.
    """
    with tempfile.TemporaryDirectory() as papers:
        watcher.prepare(cluster, Path(papers))
        with inside_of(networks(machines), "watcher", folder, papers) as logs:
            yield logs


@contextlib.contextmanager
def probing(scene: Scene, chosen: Sequence[int], folder: Path) -> Iterator[list[Path]]:
    """Probe a service from a pod on a machine that is not harmed, if there is one; yields the log."""
    homes = spared(scene, chosen)[:1]
    if not homes:
        yield []
        return
    address = prober.place(scene.cluster, homes[0], [scene.machine(number) for number in chosen])
    network = prober.network_of(scene.cluster, homes[0])
    with inside_of([network], "prober", folder, address) as logs:
        yield logs


def networks(machines: Sequence[Machine]) -> list[Path]:
    """The machines' network namespaces."""
    return [Path(f"/proc/{machine.processes['forward'].pid}/ns/net") for machine in machines]


@contextlib.contextmanager
def inside_of(places: Sequence[Path], oracle: str, folder: Path, *arguments: str) -> Iterator[list[Path]]:
    """Have an oracle run in each of these network namespaces; yields their logs."""
    logs = [folder / f"{oracle}-{number}.jsonl" for number in range(len(places))]
    children: list[Popen[bytes]] = []
    try:
        for place, log in zip(places, logs, strict=True):
            log.write_bytes(b"")
            inside = ["nsenter", f"--net={place}", "--"]
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
    """What the counter is at the end."""
    return int(steady.kubectl(cluster, "get", "configmap", COUNTER, "--output=jsonpath={.data.value}"))
