"""Plays scenarios on a cluster: steady before, oracles meanwhile, everything as before at the end."""

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import msgspec

from kmcluster import bundle, console, oracles, prober, steady, watcher, witness
from kmcluster.scenario import Scenario, Scene
from kmcluster.verdict import Mark, Outage, Run
from kmcluster.writer import judge, outages, reason
from kmplan.errors import UserError

CALM_S, STEADY_S = 3.0, 240.0
# A pause shorter than this is an answer that took its time.
NOTICEABLE_S = 0.5
# How long writes may stand still when what has healed alone is as it was before: a cable that is back, a node that returns.
UNDONE_S = 15.0


@dataclass(frozen=True)
class Stage:
    """The cluster to play on, where bundles of failures go, and who is told what happens."""

    cluster: str
    folder: Path
    tell: Callable[[str], None]


@dataclass
class Acts:
    """When the fault began, when it was undone, and when all was as before; and what went wrong meanwhile."""

    begin: float = 0.0
    undone: float = 0.0
    whole: float = 0.0
    faults: list[str] = field(default_factory=list)

    def since_begin(self, moment: float) -> float:
        """A moment as the verdict has it."""
        return round(moment - self.begin, 2)

    def longest(
        self, gaps: Sequence[tuple[float, float]], why: Callable[[float, float], str] = lambda *_: ""
    ) -> list[Outage]:
        """The longest gap of the fault, and that of its end, if they are noticeable.

        The last answer before the fault is undone is a little earlier: what begins there is of its end.
        """
        fault = [(a, b) for a, b in gaps if a < self.undone - NOTICEABLE_S]
        end = [(max(a, self.undone), b) for a, b in gaps if a >= self.undone - NOTICEABLE_S]
        longest = [max(part, key=lambda gap: gap[1] - gap[0]) for part in (fault, end) if part]
        return [Outage(self.since_begin(a), self.since_begin(b), why(a, b)) for a, b in longest if b - a > NOTICEABLE_S]


def play(scenario: Scenario, stage: Stage, seed: int) -> Run:
    """Play a scenario once. What does not hold is in the result; UserError when the cluster is not steady to begin with."""
    notes: list[tuple[float, str]] = []

    def tell(what: str) -> None:
        notes.append((time.monotonic(), what))
        stage.tell(what)

    scene = Scene(stage.cluster, Random(seed), tell)  # noqa: S311 - no secret
    start = time.monotonic()
    steady.wait_steady(scene.cluster, STEADY_S * steady.pace(scene.cluster))
    if scenario.before:
        scenario.before(scene)
    chosen, before, said = scenario.victims(scene), members(scene), consoles(scene)
    pods, started = witness.place(scene.cluster), steady.restarts(scene.cluster)
    folder = stage.folder / f"{scenario.name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with oracles.observing(scene, scenario, chosen, before, folder) as logs:
        time.sleep(CALM_S)
        acts = act(scenario, scene, chosen)
        time.sleep(CALM_S)
    entries, probes, sights = logs.entries(), logs.probes(), logs.sights()
    faults = [*acts.faults, *watcher.judge(sights), *alarms(said, consoles(scene))]
    faults += ["the service did not answer before the fault" for log in probes if not prober.answered(log, acts.begin)]
    try:
        final = oracles.value(scene.cluster)
        placed = witness.where(scene.cluster)
        faults += steady.crashed(started, steady.restarts(scene.cluster))
    except UserError as error:
        faults.append(f"the API does not answer in the end: {error}")
        final, placed = max((one.value for log in entries for one in log), default=0), pods
    count = judge(entries, final, scene.split)
    errors = [one.ended for log in entries for one in log if one.kind == "failed" and one.ended >= acts.begin]
    played = Run(
        scenario=scenario.name, seed=seed, faults=faults, marks=[Mark(acts.since_begin(at), what) for at, what in notes],
        outages=acts.longest(outages(entries, acts.begin, acts.whole), partial(reason, entries)),
        silences=[out for log in probes for out in acts.longest(prober.silences(log, acts.begin, acts.whole))],
        undone_s=acts.since_begin(acts.undone), whole_s=acts.since_begin(acts.whole), acked=count.acked,
        failed=count.failed, lost=len(count.lost), elections=watcher.elections(sights, acts.begin, acts.whole),
        evicted=witness.evicted(pods, placed), probed=bool(probes),
        errors=[acts.since_begin(at) for at in (min(errors), max(errors))] if errors else [],
        heals_alone=scenario.heals_alone, took_s=round(time.monotonic() - start, 2),
    )  # fmt: skip
    harmed = [scene.machine(number).name for number in chosen] if scenario.evicts else []
    faults += unfulfilled(scenario, played, harmed, changed=members(scene) != before)
    if faults:
        path = stage.folder / f"{scenario.name}-{seed}.tar.gz"
        # On a disk that is full the verdict is kept all the same.
        with contextlib.suppress(UserError):
            played = msgspec.structs.replace(played, bundle=bundle.collect(scene.cluster, path).name)
    else:
        # What the oracles saw is of interest when something did not hold only.
        shutil.rmtree(folder)
    return played


def act(scenario: Scenario, scene: Scene, chosen: list[int]) -> Acts:
    """Do the fault, undo it, and wait until all is as before."""
    acts = Acts(begin=time.monotonic())
    try:
        scenario.fault(scene, chosen)
        time.sleep(scenario.after_s)
    except UserError as error:
        acts.faults.append(str(error))
    acts.undone = time.monotonic()
    try:
        if scenario.undo:
            scenario.undo(scene, chosen)
        acts.whole = steady.wait_steady(scene.cluster, scenario.whole_s, steady.STILL_S)
    except UserError as error:
        acts.faults.append(str(error))
        acts.whole = time.monotonic()
    if not scenario.undo:
        # It has to mend by itself: all of the time counts.
        acts.undone = acts.whole
    return acts


def unfulfilled(scenario: Scenario, played: Run, harmed: Sequence[str], *, changed: bool) -> list[str]:
    """What a scenario promises and this run did not keep; `harmed` are the nodes whose pods may be made anew elsewhere."""
    faults = []
    if played.outage and played.outage_s > scenario.outage_s:
        faults.append(f"no write was acknowledged {stretch(played.outage)}, {scenario.outage_s:g} s are allowed")
    heals = scenario.heals_alone and scenario.driver == "nspawn"
    faults += [
        f"{what} {stretch(one)}, after the fault was undone: {UNDONE_S:g} s are allowed"
        for what, outages in (
            ("no write was acknowledged", played.outages),
            ("a service did not answer", played.silences),
        )
        for one in outages
        if heals and one.since_s >= played.undone_s and one.length_s > UNDONE_S
    ]
    if played.silence and played.silence_s > scenario.silence_s:
        faults.append(f"a service did not answer {stretch(played.silence)}, {scenario.silence_s:g} s are allowed")
    if played.acked == 0:
        faults.append("no write was acknowledged at all")
    if played.lost:
        faults.append(f"{played.lost} acknowledged writes are lost")
    if wrongly := [name for name in played.evicted if name not in harmed]:
        faults.append(f"pods were evicted from {', '.join(wrongly)}")
    if scenario.moves and (left := [name for name in harmed if name not in played.evicted]):
        faults.append(f"pods were not made anew elsewhere: those of {', '.join(left)}")
    if played.elections and not scenario.elects:
        faults.append(f"elections of etcd: {played.elections}, none is allowed")
    if changed and scenario.replaced is False:
        faults.append("the voters changed")
    if scenario.replaced and not changed:
        faults.append("no voter was replaced")
    return faults


def stretch(outage: Outage) -> str:
    """How long, from when on, and why."""
    reason = f" ({outage.why})" if outage.why else ""
    return f"for {outage.length_s:.1f} s from {outage.since_s:.1f} s on{reason}"


def consoles(scene: Scene) -> dict[str, list[str]]:
    """What virtual machines have shown so far, by name: those of containers show nothing of a kernel's."""
    machines = scene.cluster.machines if scene.cluster.driver == "qemu" else []
    return {machine.name: console.read_lines(scene.driver.console(machine)) for machine in machines}


def alarms(before: Mapping[str, Sequence[str]], after: Mapping[str, list[str]]) -> list[str]:
    """The lines that consoles have shown between two looks and that tell of a panic, a failed unit and the like."""
    return [
        f"console of {name}: {line}"
        for name, lines in after.items()
        for line in console.find_faults(lines[len(before[name]) :])
    ]


def members(scene: Scene) -> list[int]:
    """The machines that vote."""
    return sorted(scene.with_role("voter"))
