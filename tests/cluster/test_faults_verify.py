"""`kmbuild verify` itself: it plays a scenario, reports what came of it, and leaves nothing behind.

Named so that it runs before the virtual machines of other tests are there, which take all that this machine has.
"""

import json
import subprocess
from pathlib import Path

from machines import IMAGE, kmbuild


def played(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return kmbuild("verify", *arguments, "--image", IMAGE, "--output", output, "--seed", "1")


def test_a_scenario_is_played_and_reported(bench_home: Path, tmp_path: Path) -> None:
    done = played(tmp_path, "kill-etcd-leader", "--json")
    assert done.returncode == 0, done.stderr
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert json.loads(done.stdout) == verdict
    (run,) = verdict["runs"]
    assert run["acked"] > 20 and run["lost"] == 0 and run["faults"] == []
    assert 'failures="0"' in (tmp_path / "junit.xml").read_text()
    assert kmbuild("cluster", "list").stdout.count("verify-") == 0
