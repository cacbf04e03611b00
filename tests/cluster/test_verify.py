"""`kmbuild verify`: scenarios hold, what is undermined is noticed, and nothing is left behind."""

import json
import math
import os
import re
import subprocess
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from machines import IMAGE, kmbuild

from kmcluster.scenarios import ALL, choose, part_of

# What is played: these few; or, by turns, all, for as long as the environment says (seconds since 1970).
PLAYED = ["kill-etcd-leader", "cable-cut", "worker-after-cable", "power-worker"]
TURN = os.environ.get("KUBERMESH_TURN", "")
PARTS = {"1": ("1/7",), "2": ("2/7", "3/7", "4/7"), "3": ("5/7", "6/7", "7/7")}.get(TURN)
CHOSEN = [one.name for part in PARTS for one in part_of(choose([], [], "nspawn"), part)] if PARTS else PLAYED
# Of virtual machines, which take minutes to start. The other two are for `make verify`: each takes a boot of its own, or more.
VIRTUAL = ["vm-power-worker", "vm-root-spoiled", "vm-power-voter", "vm-clock-ahead"]
UNTIL = os.environ.get("KUBERMESH_UNTIL")
# Another one each day: who is harmed, and in which order.
SEED = str(datetime.now(UTC).toordinal()) if PARTS else "1"
# What a machine that does other work as well may be the reason of.
LATE = re.compile(
    r"no write .* are allowed|a service .* are allowed|not as before after (?!.*different data).*|elections of etcd: .*"
    r"|.* still announces the API after .*"
)


def seconds_left() -> float:
    """In which a scenario may still be begun; a test that has none is passed by."""
    left = float(UNTIL) - time.time() if UNTIL else math.inf
    if left <= 0:
        pytest.skip("no time is left for faults on this machine; play them with `make verify`")
    return left


def played(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return kmbuild("verify", *arguments, "--image", IMAGE, "--output", output, "--json", timeout_s=5400)


def outcome(done: subprocess.CompletedProcess[str], output: Path) -> dict[str, Any]:
    """The verdict, as printed and as written."""
    assert done.returncode in (0, 1) and done.stdout, done.stderr
    verdict: dict[str, Any] = json.loads((output / "verdict.json").read_text())
    assert json.loads(done.stdout) == verdict
    assert done.returncode == bool(faults(verdict))
    assert f'failures="{len(faults(verdict))}"' in (output / "junit.xml").read_text()
    assert "verify-" not in kmbuild("cluster", "list").stdout
    return verdict


def faults(verdict: dict[str, Any]) -> dict[str, list[str]]:
    """What did not hold, by scenario."""
    return {run["scenario"]: run["faults"] for run in verdict["runs"] if run["faults"]}


@pytest.mark.turn(2, 3)
def test_sabotage_is_noticed(alone: None, tmp_path: Path) -> None:
    """Of one scenario, at their turns another one each day."""
    seconds_left()
    containers = sorted(
        name for name, one in ALL.items() if one.driver == "nspawn" and not {"large", "settings"} & {*one.tags}
    )
    # Two of three days have one.
    threes, day = divmod(datetime.now(UTC).toordinal(), 3)
    chosen = containers[(2 * threes + day) % len(containers)] if PARTS else "kill-kubelet-worker"
    verdict = outcome(played(tmp_path, chosen, "--sabotage", "--seed", SEED), tmp_path)
    (run,) = verdict["runs"]
    assert run["noticed"] and not run["faults"]


def test_scenarios_hold(alone: None, tmp_path: Path) -> None:
    """One or two that were late are played once more: a busy machine is late now and then, but not twice."""
    left = seconds_left()
    within = ["--within", f"{math.ceil(left)}s"] if UNTIL else []
    verdict = outcome(played(tmp_path / "first", *CHOSEN, *within, "--seed", SEED), tmp_path / "first")
    names = [run["scenario"] for run in verdict["runs"]]
    assert names and sorted([*names, *verdict["left_out"]]) == sorted(CHOSEN)
    late = faults(verdict)
    assert all(LATE.match(fault) for found in late.values() for fault in found), f"seed {SEED}: {late}"
    assert len(late) <= 2, f"seed {SEED}: {late}"
    if late:
        again = outcome(played(tmp_path / "again", *sorted(late), "--seed", SEED), tmp_path / "again")
        assert not faults(again), f"seed {SEED}: {faults(again)}, and before {late}"
    if late or verdict["left_out"]:
        warnings.warn(f"seed {SEED}: late at first {late}, no time for {verdict['left_out']}", stacklevel=1)
    assert all(run["lost"] == 0 and (run["acked"] > 20 or run["faults"]) for run in verdict["runs"])


@pytest.mark.turn(3)
def test_scenarios_of_virtual_machines_hold(alone: None, tmp_path: Path) -> None:
    seconds_left()
    verdict = outcome(played(tmp_path, *VIRTUAL, "--driver", "qemu", "--seed", "1"), tmp_path)
    assert not faults(verdict), faults(verdict)
    assert sorted(run["scenario"] for run in verdict["runs"]) == sorted(VIRTUAL)
