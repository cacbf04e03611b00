"""`kmbuild verify`: breaks clusters of the image on purpose, and proves that they heal."""

import json
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from random import Random, SystemRandom

import click
import msgspec

from kmbuild import stick
from kmbuild.cluster import make_directory, show_line
from kmbuild.completion import complete_scenario
from kmbuild.locate import locate_image
from kmbuild.table import table
from kmcluster import bench, bundle, state, steady, verdict_page, verdict_table, waiting
from kmcluster.drivers import NAMES
from kmcluster.duration import parse_duration
from kmcluster.image import check_image
from kmcluster.scenario import GRACE_S, Scenario
from kmcluster.scenarios import ALL, TAGS, choose, part_of
from kmcluster.scenarios.sabotage import SABOTAGE
from kmcluster.topology import find_topology, read_topology
from kmcluster.verdict import Run, Verdict, junit
from kmcluster.verify import Stage, play
from kmplan import document
from kmplan.errors import UserError

# How long a cluster whose nodes are Ready may take until nothing is wrong with it.
STEADY_S = 240.0
FORMATS = "verdict.json, junit.xml and verdict.html"


@click.command()
@click.argument("names", metavar="[SCENARIO]...", nargs=-1, shell_complete=complete_scenario)
@click.option("--tag", "tags", multiple=True, type=click.Choice(TAGS), help="All scenarios with this tag; repeatable.")
@click.option("--part", metavar="N/M", help="Of these every M-th, from the Nth on: all of them in M parts.")
@click.option("--list", "only_list", is_flag=True, help="List the scenarios and do nothing.")
@click.option("--driver", type=click.Choice(NAMES), default="nspawn", show_default=True, help="What runs the machines.")
@click.option("--repeat", type=click.IntRange(min=1), default=1, show_default=True, help="How often each is played.")
@click.option("--within", metavar="TIME", help="Begin no scenario after so long (20m), in random order.")
@click.option("--seed", type=int, help="Random choices follow from it.  [default: another one each time]")
@click.option("--keep", is_flag=True, help="Leave the cluster of a failure on, for you to look at; ends there.")
@click.option("--stop", is_flag=True, help="End with the first failure.")
@click.option("--sabotage", is_flag=True, help="Undermine what heals first: a scenario fails that does not notice.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("verdict"),
    show_default=True,
    help=f"Folder for {FORMATS}.",
)
@click.option("--compare", type=click.Path(path_type=Path), help="A verdict.json to show beside this one.")
@click.option(
    "--publish",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A Markdown page to put figures into.",
)
@click.option(
    "--image", type=click.Path(path_type=Path), default=Path("out"), show_default=True, help="The .raw or its folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.option("--schema", "only_schema", is_flag=True, help="Print the JSON Schema of a verdict and do nothing.")
def verify(
    names: Sequence[str], tags: Sequence[str], part: str | None, only_list: bool, driver: str, repeat: int, within: str | None,
    seed: int | None, keep: bool, stop: bool, sabotage: bool, output: Path, compare: Path | None, publish: Path | None,
    image: Path, as_json: bool, only_schema: bool,
) -> None:  # fmt: skip
    """Break a cluster of the image on purpose, and prove that it heals: all scenarios for the driver, or those that are named.

    While each fault lasts, two writers count up through the API's anycast address; every write that was acknowledged has to be
    there in the end, once. Ends with status 1 when something did not hold.
    """
    if only_schema:
        click.echo(json.dumps(document.schema(Verdict), indent=2))
        return
    chosen = choose(names, tags, driver)
    chosen = part_of(chosen, part) if part else chosen
    if only_list:
        rows = [("SCENARIO", "TAGS", "WHAT HAPPENS"), *((one.name, ", ".join(one.tags), one.title) for one in chosen)]
        click.echo(json.dumps([one.name for one in chosen]) if as_json else table(rows))
        return
    # Whoever ends this, by Ctrl-C or not, or closes the terminal, leaves no cluster behind.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    if publish and sabotage:
        raise UserError("what --sabotage undermines has no figures to --publish", "leave one of them out")
    earlier = document.read(compare, Verdict) if compare else None
    if publish:
        verdict_table.split(publish.read_text())
    within_s = parse_duration(within) if within else math.inf
    seed = SystemRandom().randrange(2**31) if seed is None else seed
    if within:
        # Not always the same ones shall be left out.
        Random(seed).shuffle(chosen)  # noqa: S311 - no secret
    session = Session(driver, image, output, seed, earlier)
    verdict = session.play_all(chosen, repeat, within_s, keep=keep, stop=stop, sabotage=sabotage)
    if publish:
        document.write(publish, verdict_table.publish(publish.read_text(), verdict, ALL))
    click.echo(msgspec.json.format(msgspec.json.encode(verdict)).decode() if as_json else summary(verdict))
    click.echo(f"{output}: {FORMATS}", err=True)
    if verdict.failed:
        raise click.exceptions.Exit(1)


def describe_host() -> str:
    """What the figures of a verdict depend on, of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{os.cpu_count()} cores, {memory / 2**30:.0f} GiB, Linux {platform.release()}"


class Session:
    """One call of `kmbuild verify`: its cluster, and where results go."""

    def __init__(self, driver: str, image: Path, output: Path, seed: int, earlier: Verdict | None = None) -> None:
        self.driver, self.image, self.output, self.seed = driver, locate_image(image), output, seed
        self.earlier = earlier
        self.roothash = str(check_image(self.image)["roothash"])
        self.start = time.monotonic()
        output.mkdir(parents=True, exist_ok=True)

    def play_all(
        self, chosen: Sequence[Scenario], repeat: int, within_s: float = math.inf, *,
        keep: bool = False, stop: bool = False, sabotage: bool = False,
    ) -> Verdict:  # fmt: skip
        """Play each scenario so often, on one cluster as long as that is well; the reports are written after each run."""
        runs: list[Run] = []
        left_out: list[str] = []
        name = ""
        made: Scenario | None = None
        kept = False
        try:
            for scenario, number in product(grouped(chosen), range(repeat)):
                if runs and time.monotonic() - self.start >= within_s:
                    left_out.append(scenario.name)
                    continue
                played = SABOTAGE[scenario.name](scenario) if sabotage else scenario
                if name and made and not fits(made, played):
                    bench.down(name)
                    name = ""
                made = played
                try:
                    name = name or self.bring_up(played)
                    self.say(scenario.name, f"{scenario.title} ({number + 1} of {repeat})")
                    run = self.play(name, played, self.seed + number)
                except UserError as error:
                    run = not_played(scenario, self.seed + number, error)
                run = expect_noticed(run) if sabotage else run
                runs.append(run)
                self.say(scenario.name, "; ".join(run.faults or run.noticed) or verdict_page.describe(run))
                self.write(runs)
                if run.faults and (keep or stop):
                    kept = keep
                    break
                if name and (run.faults or sabotage):
                    bench.down(name)
                    name = ""
        finally:
            if name and not kept:
                bench.down(name)
            elif name:
                self.say(name, "stays on: `kmbuild cluster status`, then `kmbuild cluster down`")
        if left_out:
            self.say("left out", ", ".join(left_out))
        return self.write(runs, left_out)

    def play(self, name: str, scenario: Scenario, seed: int) -> Run:
        """Play a scenario once; what keeps it from being played is a fault as well."""
        try:
            return play(scenario, Stage(name, self.output, lambda what: self.say("", what)), seed)
        except UserError as error:
            return not_played(scenario, seed, error, self.collect(name, f"{scenario.name}-{seed}"))

    def collect(self, name: str, what: str) -> str:
        """Keep a bundle of a cluster; returns its file's name, empty when there is nothing to keep or no room for it."""
        try:
            return bundle.collect(state.load(name), self.output / f"{what}.tar.gz").name
        except UserError as error:
            self.say(name, f"no bundle: {error}")
            return ""

    def bring_up(self, scenario: Scenario) -> str:
        """Boot a cluster for a scenario, whose voters are replaced soon; returns its name."""
        name = f"verify-{os.getpid()}"
        path = find_topology(scenario.topology)
        order = bench.Order(
            name=name, topology=read_topology(path), driver=self.driver, image=self.image, directory=None,
            make_stick=stick.make_file,
            make_directory=partial(make_directory, **{"voter_grace_s": GRACE_S, **dict(scenario.settings)}),
            tuning=scenario.tuning,
        )  # fmt: skip
        self.say(name, f"power on ({scenario.topology})")
        try:
            made = bench.up(order)
            waiting.wait_ready(made, lambda _, who, what: self.say(who, what))
            steady.wait_steady(made, STEADY_S * steady.pace(made))
        except BaseException as error:
            if isinstance(error, UserError) and (kept := self.collect(name, name)):
                self.say(name, f"did not come up, see {self.output / kept}")
            bench.down(name)
            raise
        self.say(name, "steady")
        return name

    def say(self, who: str, what: str) -> None:
        """Show progress."""
        show_line(time.monotonic() - self.start, who, what)

    def write(self, runs: list[Run], left_out: Sequence[str] = ()) -> Verdict:
        """Write the reports."""
        verdict = Verdict(
            date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", machine=describe_host(),
            driver=self.driver, roothash=self.roothash, seed=self.seed, runs=runs, left_out=[*left_out],
        )  # fmt: skip
        document.write(self.output / "verdict.json", msgspec.json.format(msgspec.json.encode(verdict)) + b"\n")
        document.write(self.output / "junit.xml", junit(verdict))
        document.write(self.output / "verdict.html", verdict_page.page(verdict, ALL, self.earlier))
        return verdict


def grouped(chosen: Sequence[Scenario]) -> list[Scenario]:
    """The scenarios that can be played on the same cluster one after the other, otherwise in their order."""
    groups: list[list[Scenario]] = []
    for scenario in chosen:
        group = next((one for one in groups if fits(one[0], scenario)), None)
        if group is None:
            groups.append([scenario])
        else:
            group.append(scenario)
    return [scenario for group in groups for scenario in group]


def not_played(scenario: Scenario, seed: int, error: UserError, kept: str = "") -> Run:
    """The run of a scenario that could not be played, with the name of a bundle."""
    return Run(scenario=scenario.name, seed=seed, faults=[f"not played: {error}"], marks=[], bundle=kept)


def expect_noticed(run: Run) -> Run:
    """The run of a scenario that was undermined: to hold is its only fault, and not to be played."""
    if run.took_s == 0:
        return run
    held = [] if run.faults else ["everything held though what heals was undermined"]
    return msgspec.structs.replace(run, faults=held, noticed=run.faults)


def fits(made: Scenario, scenario: Scenario) -> bool:
    """Whether a scenario can be played on the cluster that was booted for another one."""
    return (made.topology, made.settings, made.tuning) == (scenario.topology, scenario.settings, scenario.tuning)


def summary(verdict: Verdict) -> str:
    """All runs as a table."""
    rows: list[tuple[str, ...]] = [("SCENARIO", "OUTAGE", "SERVICE", "AS BEFORE", "ACKED", "FAILED", "LOST", "")]
    for run in verdict.runs:
        times = (f"{seconds:.1f} s" for seconds in (run.outage_s, run.silence_s, run.whole_s))
        counts = (str(number) for number in (run.acked, run.failed, run.lost))
        rows.append((run.scenario, *times, *counts, "; ".join(run.faults or run.noticed) or "ok"))
    return table(rows)
