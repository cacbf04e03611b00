"""What `kmbuild verify` concludes of what its oracles saw, and what it shows of it; each check can fail."""

import json
import re
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from click.testing import CliRunner

from kmbuild.cli import kmbuild
from kmbuild.verify import Session, expect_noticed, fits, grouped
from kmcluster import scenario, verdict_page, verdict_table, verify
from kmcluster.cable import Cable, Port
from kmcluster.scenarios import ALL, choose, part_of
from kmcluster.scenarios.links import spanning_tree
from kmcluster.scenarios.nodes import are_joined, two
from kmcluster.scenarios.sabotage import SABOTAGE, agents_with
from kmcluster.verdict import Mark, Outage, Run, Verdict, junit, quantile
from kmplan.errors import UserError


def test_an_outage_is_whole_though_the_fault_was_undone_meanwhile() -> None:
    acts = verify.Acts(begin=100.0, undone=110.0, whole=130.0)

    def found(*gaps: tuple[float, float]) -> list[Outage]:
        return acts.longest(gaps)

    assert found((100.0, 113.0), (113.0, 113.1)) == [Outage(0.0, 13.0)]
    # One that began as it was undone is of that; the last answer before it came a moment earlier.
    assert found((100.0, 101.0), (109.9, 112.0)) == [Outage(0.0, 1.0), Outage(10.0, 12.0)]
    assert found((100.0, 100.2), (110.1, 110.3)) == []


def test_what_a_console_tells_of_a_fault_counts_from_the_beginning_of_a_scenario_on() -> None:
    before = {"pair-1": ["[FAILED] old"], "pair-2": []}
    after = {"pair-1": ["[FAILED] old", "Kubermesh 0.1"], "pair-2": ["Kernel panic - not syncing"]}
    assert verify.alarms(before, after) == ["console of pair-2: Kernel panic - not syncing"]
    assert verify.alarms(before, before) == verify.alarms({}, {}) == []


def run(**changes: object) -> Run:
    values = {
        "scenario": "power-leader",
        "seed": 7,
        "faults": [],
        "marks": [Mark(0.0, "power cut: shop-1")],
        "acked": 90,
        "took_s": 60.0,
        "probed": True,
    }
    times = {"outages": [Outage(0.2, 3.2), Outage(10.5, 12.0)], "undone_s": 10.0, "whole_s": 31.0}
    return Run(**{**values, **times, **changes})  # type: ignore[arg-type]


def test_what_is_felt_after_the_fault_was_undone_is_told_apart() -> None:
    assert run().outage_s == 3.0
    assert run(outages=[Outage(11.0, 19.0)], heals_alone=False).outage_s == 8.0
    assert run(outages=[]).outage_s == run(outages=[Outage(11.0, 19.0)]).outage_s == 0.0


@pytest.mark.parametrize(
    ("name", "changes", "changed", "fault"),
    [
        ("power-leader", {}, False, None),
        (
            "power-leader",
            {"outages": [Outage(1.0, 99.0, "timed out")]},
            False,
            "no write was acknowledged for 98.0 s from 1.0 s on (timed out), 5 s are allowed",
        ),
        (
            "cable-cut",
            {"outages": [], "silences": [Outage(1.0, 9.0)]},
            False,
            "a service did not answer for 8.0 s from 1.0 s on, 5 s are allowed",
        ),
        (
            "power-leader",
            {"outages": [Outage(0.2, 3.2), Outage(10.5, 40.0)]},
            False,
            "no write was acknowledged for 29.5 s from 10.5 s on, after the fault was undone: 15 s are allowed",
        ),
        ("power-leader", {"lost": 2}, False, "2 acknowledged writes are lost"),
        ("power-leader", {"acked": 0}, False, "no write was acknowledged at all"),
        ("power-leader", {}, True, "the voters changed"),
        ("power-leader", {"evicted": ["shop-1"]}, False, None),
        ("power-leader", {"evicted": ["shop-1", "shop-2"]}, False, "pods were evicted from shop-2"),
        ("cable-cut", {"outages": [], "evicted": ["shop-1"]}, False, "pods were evicted from shop-1"),
        ("cable-cut", {"outages": [], "elections": 1}, False, "elections of etcd: 1, none is allowed"),
        ("power-leader", {"elections": 1}, False, None),
        ("leader-gone", {"evicted": ["shop-1"]}, True, None),
        ("leader-gone", {"evicted": ["shop-1"]}, False, "no voter was replaced"),
        ("leader-gone", {}, True, "pods were not made anew elsewhere: those of shop-1"),
        (
            "power-leader",
            {"silences": [Outage(0.2, 3.2), Outage(10.5, 40.0)]},
            False,
            "a service did not answer for 29.5 s from 10.5 s on, after the fault was undone: 15 s are allowed",
        ),
    ],
)
def test_a_scenario_fails_when_a_promise_is_not_kept(
    name: str, changes: dict[str, object], changed: bool, fault: str | None
) -> None:
    harmed = ["shop-1"] if ALL[name].evicts else []
    assert verify.unfulfilled(ALL[name], run(**changes), harmed, changed=changed) == ([fault] if fault else [])


def test_quantiles_are_values_that_were_measured() -> None:
    assert [quantile([5.0, 1.0, 3.0], share) for share in (0.0, 0.5, 0.95, 1.0)] == [1.0, 3.0, 5.0, 5.0]
    assert quantile([float(number) for number in range(1, 21)], 0.95) == 19.0


def verdict(*runs: Run) -> Verdict:
    return Verdict(date="2026-11-25", machine="2 cores", driver="nspawn", roothash="ab" * 32, seed=7, runs=list(runs))


def test_a_verdict_is_read_as_it_was_written() -> None:
    said = verdict(run(), run(faults=["lost"], lost=1))
    assert msgspec.json.decode(msgspec.json.encode(said), type=Verdict) == said


def test_junit_has_a_case_for_each_run_and_its_failure() -> None:
    suite = ElementTree.fromstring(junit(verdict(run(), run(faults=["a < b", "more"], bundle="x.tar.gz"))))  # noqa: S314 - ours
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    _, second = suite
    failure = second.find("failure")
    assert failure is not None and failure.get("message") == "a < b"
    assert failure.text == "a < b\nmore\nbundle: x.tar.gz"


def test_what_could_not_be_played_leaves_a_bundle_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise UserError("a node is not Ready")

    told: list[str] = []
    monkeypatch.setattr("kmbuild.verify.check_image", lambda _: {"roothash": "5" * 64})
    monkeypatch.setattr("kmbuild.verify.locate_image", lambda path: path)
    monkeypatch.setattr("kmbuild.verify.play", fail)
    monkeypatch.setattr("kmbuild.verify.state.load", lambda name: name)
    monkeypatch.setattr("kmbuild.verify.bundle.collect", lambda _, target: target)
    session = Session("nspawn", tmp_path, tmp_path, 1)
    monkeypatch.setattr(session, "say", lambda _, what: told.append(what))
    played = session.play("verify-1", ALL["soak"], 7)
    assert (played.faults, played.bundle) == (["not played: a node is not Ready"], "soak-7.tar.gz")
    downs: list[str] = []
    monkeypatch.setattr("kmbuild.verify.bench.up", fail)
    monkeypatch.setattr("kmbuild.verify.bench.down", downs.append)
    with pytest.raises(UserError, match="not Ready"):
        session.bring_up(ALL["soak"])
    assert len(downs) == 1 and f"did not come up, see {tmp_path / downs[0]}.tar.gz" in told


def test_what_there_was_no_time_for_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmbuild.verify.check_image", lambda _: {"roothash": "5" * 64})
    monkeypatch.setattr("kmbuild.verify.locate_image", lambda path: path)
    monkeypatch.setattr("kmbuild.verify.bench.down", lambda _: None)
    monkeypatch.setattr(Session, "bring_up", lambda *_: "verify-1")
    monkeypatch.setattr(Session, "play", lambda _, name, played, seed: run(scenario=played.name))
    chosen = grouped(list(ALL.values()))[:3]
    one, *others = (scenario.name for scenario in chosen)
    whole = Session("nspawn", tmp_path, tmp_path, 1).play_all(chosen, 1, 3600)
    assert ([run.scenario for run in whole.runs], whole.left_out) == ([one, *others], [])
    # At least one is played, however little time there is.
    short = Session("nspawn", tmp_path, tmp_path, 1).play_all(chosen, 1, 0)
    assert ([run.scenario for run in short.runs], short.left_out) == ([one], others)
    assert json.loads((tmp_path / "verdict.json").read_text())["left_out"] == others
    assert all(name in (tmp_path / "verdict.html").read_text() for name in others)
    suite = ElementTree.fromstring((tmp_path / "junit.xml").read_bytes())  # noqa: S314 - ours
    assert (suite.get("tests"), suite.get("skipped")) == ("3", "2")


def test_the_page_needs_no_other_file_and_shows_every_run() -> None:
    bad = run(faults=["writes <lost>"], lost=1, marks=[Mark(0.0, "cut"), Mark(20.0, "power on: shop-1")])
    text = verdict_page.page(verdict(run(), bad), ALL, verdict(run(outages=[Outage(1.0, 9.0)])))
    assert not re.search(r"(src|href)=\"(?!#)", text) and "@import" not in text
    assert text.count("<svg") == 2 and "writes &lt;lost&gt;" in text and "(8.0)" in text
    for part in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(part)  # noqa: S314 - ours


def test_the_page_says_when_writes_failed_and_that_nothing_was_measured() -> None:
    text = verdict_page.page(verdict(run(failed=3, errors=[0.4, 3.1], probed=False)), ALL)
    assert "3 failed (from 0.4 s to 3.1 s)" in text and 'class="failed"' in text and "<td>-</td>" in text


def test_a_line_of_time_is_to_scale() -> None:
    drawn = verdict_page.timeline(run(outages=[Outage(10.0, 20.0)], whole_s=40.0))
    bars = {
        kind: (float(x), float(width))
        for kind, x, width in re.findall(r'class="(\w+)" x="([\d.]+)" y="24.0" width="([\d.]+)"', drawn)
    }
    left = verdict_page.LEFT
    assert bars["out"][1] == pytest.approx(bars["waiting"][1] / 4, abs=0.2)
    assert bars["out"][0] - left == pytest.approx(bars["waiting"][1] / 4, abs=0.2)


def test_words_of_marks_do_not_stand_on_each_other() -> None:
    marks = [Mark(float(at), "x" * length) for at, length in ((0, 20), (5, 20), (26, 23), (40, 20), (49, 27), (60, 5))]
    played = run(marks=marks, undone_s=20.0, whole_s=63.0)
    scale = (verdict_page.WIDTH - verdict_page.LEFT - verdict_page.RIGHT) / (63.0 * 1.05)
    shown = verdict_page.spaced(played, scale)
    extents = [verdict_page.extent(one, scale) for one in shown]
    assert shown[0] == marks[0] and len(shown) > 2
    assert all(before[1] <= after[0] for before, after in pairwise(extents))


PAGE = f"Before.\n\n{verdict_table.BEGIN}\n{verdict_table.END}\n\nAfter.\n"


def test_figures_are_published_and_those_of_other_scenarios_stay() -> None:
    first = verdict_table.publish(PAGE, verdict(run(scenario="leader-gone", lost=1, faults=["lost"])), ALL)
    both = verdict_table.publish(
        first, verdict(run(silences=[Outage(0.0, 3.0)]), run(outages=[Outage(0.0, 5.0)], whole_s=40.0)), ALL
    )
    leader, gone = [line for line in both.splitlines() if line.startswith("| <a id=")]
    assert (
        "`power-leader`" in leader
        and "| 4.0 s, 5.0 s | 5 s | 1.5 s, 3.0 s | 30 s | 35.5 s, 40.0 s | 2 | 0 | 0 |" in leader
    )
    assert "`leader-gone`" in gone and "| 1 | 1 | 1 | nspawn, 2 cores, 2026-11-25 |" in gone
    assert both.startswith("Before.") and both.endswith("After.\n")
    assert verdict_table.publish(both, verdict(), ALL) == both
    not_played = verdict(run(took_s=0, outages=[]), run(scenario="leader-gone", took_s=0, faults=["no machine"]))
    assert verdict_table.publish(both, not_played, ALL) == both
    # What was not measured is no figure, and what was not played none at all.
    silent = verdict_table.publish(PAGE, verdict(run(probed=False), run(took_s=0, probed=False, outages=[])), ALL)
    assert "| 3.0 s, 3.0 s | 5 s | - | - | 31.0 s, 31.0 s | 2 | 0 | 0 |" in silent
    with pytest.raises(UserError, match="no place for figures"):
        verdict_table.publish("Before.", verdict(), ALL)


def test_every_claim_names_scenarios_and_every_scenario_proves_a_claim() -> None:
    page = (Path(__file__).parents[2] / "docs/self-healing.md").read_text()
    linked = re.findall(r"\[([a-z0-9-]+)\]\(#\1\)", page)
    assert set(linked) == ALL.keys()
    rows = page.split("| what breaks |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(rows) > 10 and [row for row in rows if "](#" not in row.rpartition(" | ")[2]] == []
    # Links lead somewhere as soon as the scenario was played.
    anchors = re.findall(
        r'<a id="([a-z0-9-]+)"></a>', verdict_table.publish(PAGE, verdict(run(), run(scenario="soak")), ALL)
    )
    assert anchors == ["soak", "power-leader"]


def test_a_page_without_a_place_is_refused_before_anything_is_played(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("Before.")
    result = CliRunner().invoke(kmbuild, ["verify", "--publish", str(tmp_path / "page.md")])
    assert isinstance(result.exception, UserError) and "no place for figures" in str(result.exception)
    result = CliRunner().invoke(kmbuild, ["verify", "--sabotage", "--publish", str(tmp_path / "page.md")])
    assert isinstance(result.exception, UserError) and "no figures to --publish" in str(result.exception)


def test_scenarios_are_chosen_by_name_and_tag() -> None:
    assert [one.name for one in choose(["cable-cut"], [], "nspawn")] == ["cable-cut"]
    assert {one.name for one in choose([], ["members"], "nspawn")} == {
        "agents-killed",
        "all-but-one-lost",
        "corrupt-etcd",
        "corrupt-etcd-database",
        "corrupt-etcd-of-three",
        "corrupt-etcd-served",
        "leader-gone",
        "majority-cut-off",
        "phantom-member",
        "quorum-frozen",
        "quorum-lost",
        "two-voters-gone",
        "voter-disk-full",
        "voter-disk-lost",
        "voters-gone-in-turn",
    }
    assert {one.name for driver in ("nspawn", "qemu") for one in choose([], [], driver)} == ALL.keys()
    with pytest.raises(UserError, match="nonsense: no such scenario or tag"):
        choose(["nonsense"], [], "nspawn")
    with pytest.raises(UserError, match="vm-power-worker: not with nspawn; use --driver qemu"):
        choose(["vm-power-worker", "cable-cut"], [], "nspawn")


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 100])
def test_all_parts_together_are_all_scenarios_once(parts: int) -> None:
    played = [one.name for number in range(parts) for one in part_of(list(ALL.values()), f"{number + 1}/{parts}")]
    assert sorted(played) == sorted(ALL)


def test_what_one_cluster_can_be_used_for_is_played_together() -> None:
    played = grouped(list(ALL.values()))
    assert sorted(one.name for one in played) == sorted(ALL)
    boots = 1 + sum(not fits(before, after) for before, after in pairwise(played))
    assert boots == len({str((one.topology, one.settings, one.tuning)) for one in played})


@pytest.mark.parametrize("part", ["0/3", "4/3", "1/0", "1", "a/b", "-1/3", ""])
def test_what_is_no_part_is_refused(part: str) -> None:
    with pytest.raises(UserError, match="no part of a whole"):
        part_of(list(ALL.values()), part)


def test_the_list_says_what_happens() -> None:
    result = CliRunner().invoke(kmbuild, ["verify", "--list"])
    assert result.exit_code == 0
    assert all((name in result.output) == (one.driver == "nspawn") for name, one in ALL.items())
    result = CliRunner().invoke(kmbuild, ["verify", "--list", "--driver", "qemu", "--tag", "clock", "--json"])
    assert json.loads(result.output) == ["vm-clock-ahead", "vm-clock-lost"]
    result = CliRunner().invoke(kmbuild, ["verify", "--list", "--tag", "partition", "--json"])
    assert json.loads(result.output) == ["leader-cut-off", "voter-cut-off", "minority-cut-off"]


def cables_of(pairs: list[tuple[int, int]]) -> list[Cable]:
    return [Cable(number, Port(a, 0), Port(b, 1)) for number, (a, b) in enumerate(pairs, 1)]


@pytest.mark.parametrize(
    ("pairs", "joined"),
    [([(1, 2), (2, 3), (3, 5)], True), ([(3, 5), (1, 2), (2, 3)], True), ([(1, 2), (1, 3), (2, 3)], False),
     ([(1, 2), (3, 5)], False), ([(2, 3), (3, 5)], False), ([], False)],
)  # fmt: skip
def test_a_cable_is_cut_only_where_the_others_stay_joined(pairs: list[tuple[int, int]], joined: bool) -> None:
    assert are_joined({1, 2, 3, 5}, cables_of(pairs)) is joined


@pytest.mark.parametrize("seed", range(5))
def test_a_spanning_tree_joins_all_and_has_nothing_to_spare(seed: int) -> None:
    cables = cables_of([(1, 2), (2, 3), (3, 4), (4, 5), (5, 1), (1, 3), (2, 4)])
    tree = spanning_tree(cables, Random(seed))  # noqa: S311 - no secret
    assert len(tree) == 4 and are_joined({1, 2, 3, 4, 5}, tree)


def test_two_are_chosen_that_cut_nobody_off() -> None:
    """In a ring of six only neighbours are; in a line only its ends, or the first or last two."""

    def scene(cables: list[tuple[int, int]]) -> Any:
        machines = [SimpleNamespace(number=number) for number in range(1, 7)]
        cluster = SimpleNamespace(cables=cables_of(cables), machines=machines)
        return SimpleNamespace(cluster=cluster, random=Random(1), with_role=lambda role: [1, 2, 3, 4, 5, 6])  # noqa: S311

    line = [(number, number + 1) for number in range(1, 6)]
    chosen = {tuple(two("worker")(scene([*line, (6, 1)]))) for _ in range(9)}
    assert chosen <= {(1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (1, 6)}
    assert two("worker")(scene(line)) in ([1, 2], [5, 6], [1, 6])


def test_choices_follow_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario.Scene, "with_role", lambda self, role: [1, 2, 3, 4, 5])
    monkeypatch.setattr(scenario.Scene, "leader", lambda self: 1)
    scenes = [scenario.Scene("x", Random(seed), print) for seed in (1, 1, 2, 3, 4, 5)]  # noqa: S311 - no secret
    chosen = [scene.follower() for scene in scenes]
    assert chosen[0] == chosen[1] and len(set(chosen)) > 1 and 1 not in chosen


def test_every_scenario_can_be_undermined() -> None:
    assert SABOTAGE.keys() == ALL.keys()
    # Something of it is another then.
    assert [name for name, one in ALL.items() if SABOTAGE[name](one) == one] == []


def test_who_does_not_notice_sabotage_fails() -> None:
    noticed = expect_noticed(run(faults=["not as before"], took_s=60.0))
    assert noticed.faults == [] and noticed.noticed == ["not as before"]
    assert expect_noticed(run(took_s=60.0)).faults == ["everything held though what heals was undermined"]
    # What was not played has shown nothing.
    assert expect_noticed(run(faults=["not played: no cluster"], took_s=0)).faults == ["not played: no cluster"]


def test_a_line_is_run_before_the_agent_as_systemd_reads_it(tmp_path: Path) -> None:
    """ExecStart is split as systemd.service(5) says: in single quotes a backslash goes before a quote."""
    written: dict[str, str] = {}
    machine = SimpleNamespace(number=1, name="shop-1")
    driver = SimpleNamespace(
        power=lambda _: "on", execute=lambda machine, argv, stdin, timeout: written.update(text=stdin.decode()) or Done
    )
    folder = tmp_path / "credentials"
    folder.mkdir()
    cluster = SimpleNamespace(machines=[machine], machine_folder=lambda _: tmp_path)
    scene = SimpleNamespace(cluster=cluster, driver=driver, machine=lambda _: machine)
    scene.run = partial(scenario.Scene.run, scene)  # type: ignore[arg-type]
    before = agents_with("import os; os.environ['WHO'] = 'me'")(ALL["cable-cut"]).before
    assert before is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kmcluster.steady.wait_steady", lambda *_: 0.0)
        before(scene)  # type: ignore[arg-type]
    assert (folder / "systemd.unit-dropin.kmagent.service").read_text() == written["text"]
    line = written["text"].splitlines()[-1]
    code = re.search(r"-c '(.*)' -m kmagent$", line)
    assert code and code[1].replace("\\'", "'").startswith("import os; os.environ['WHO'] = 'me'; import runpy")
    assert "$" not in line and "%" not in line


class Done:
    code, stdout, stderr = 0, "", ""
