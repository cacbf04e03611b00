"""`kmbuild verify`: today's part of the catalogue holds, what is undermined is noticed, and nothing is left behind."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from machines import IMAGE, kmbuild

from kmcluster.scenarios import choose

# In so many days the whole catalogue is played.
PARTS = 3
TODAY = datetime.now(UTC).toordinal()


def played(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return kmbuild("verify", *arguments, "--image", IMAGE, "--output", output, "--json", timeout_s=3600)


def outcome(done: subprocess.CompletedProcess[str], output: Path) -> list[dict[str, Any]]:
    """The runs, as printed and as written; a failure shows what went on."""
    verdict = json.loads((output / "verdict.json").read_text())
    faults = {run["scenario"]: run["faults"] for run in verdict["runs"] if run["faults"]}
    assert done.returncode == 0, f"{faults}\n{done.stderr}"
    assert json.loads(done.stdout) == verdict and not faults
    assert 'failures="0"' in (output / "junit.xml").read_text()
    assert "verify-" not in kmbuild("cluster", "list").stdout
    runs: list[dict[str, Any]] = verdict["runs"]
    return runs


def test_todays_part_of_the_catalogue_holds(alone: None, tmp_path: Path) -> None:
    part = f"{TODAY % PARTS + 1}/{PARTS}"
    runs = outcome(played(tmp_path, "--part", part), tmp_path)
    assert len(runs) >= len(choose([], [], "nspawn")) // PARTS
    assert all(run["acked"] > 20 and run["lost"] == 0 for run in runs)


def test_todays_sabotage_is_noticed(alone: None, tmp_path: Path) -> None:
    catalogue = choose([], [], "nspawn")
    name = catalogue[TODAY % len(catalogue)].name
    (run,) = outcome(played(tmp_path, name, "--sabotage"), tmp_path)
    assert run["scenario"] == name and run["noticed"]
