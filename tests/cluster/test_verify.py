"""`kmbuild verify`: scenarios hold, what is undermined is noticed, and nothing is left behind."""

import json
import subprocess
from pathlib import Path
from typing import Any

from machines import IMAGE, kmbuild

PLAYED = ("kill-etcd-leader", "cable-cut", "worker-after-cable", "power-worker")


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


def test_scenarios_hold(alone: None, tmp_path: Path) -> None:
    runs = outcome(played(tmp_path, *PLAYED, "--seed", "1"), tmp_path)
    assert sorted(run["scenario"] for run in runs) == sorted(PLAYED)
    assert all(run["acked"] > 20 and run["lost"] == 0 for run in runs)


def test_sabotage_is_noticed(alone: None, tmp_path: Path) -> None:
    (run,) = outcome(played(tmp_path, "kill-kubelet-worker", "--sabotage", "--seed", "1"), tmp_path)
    assert run["noticed"]
