"""Durations and clocks."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_cluster_state import make_cluster

from kmbuild import fault_command
from kmbuild.cluster import cluster
from kmcluster import clock, state
from kmcluster.duration import parse_duration
from kmplan.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h", 3600), ("2d", 172800), ("1w", 604800), ("1y", 31536000)]
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds
    assert clock.parse_shift(f"+{text}") == seconds
    assert clock.parse_shift(f"-{text}") == -seconds


@pytest.mark.parametrize("text", ["", "h", "1", "1 h", "-1h", "1.5h", "1H", "9999999s"])
def test_what_is_no_duration_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="not a duration; write a number and one of"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["1h", "", "1"])
def test_a_shift_has_a_direction(text: str) -> None:
    with pytest.raises(UserError, match="neither forward nor back"):
        clock.parse_shift(text)


def test_a_container_keeps_the_hosts_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with state.locked("one", make=True):
        make_cluster().save()
    with pytest.raises(UserError, match=r"^one-1 is a container and has this host's clock; use a cluster of --driver"):
        clock.shift("one", "1", "+1h")


@pytest.mark.parametrize("text", ["-1h", "+1h", "-30m", "-1y", "-2d"])
def test_a_shift_back_is_no_option(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    asked: list[tuple[Any, ...]] = []

    def shift(*arguments: Any) -> dict[str, Any]:
        asked.append(arguments)
        return {"node": "one-1", "before": 0.0, "after": 3600.0}

    monkeypatch.setattr(fault_command.clocks, "shift", shift)
    result = CliRunner().invoke(cluster, ["clock", "1", text, "--name", "one"])
    assert result.output == "one-1: from 1970-01-01 00:00:00 to 1970-01-01 01:00:00 UTC\n"
    assert asked == [("one", "1", text)]
