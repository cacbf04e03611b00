"""What a node says when most voters are away."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kmagent import console, majority, registry
from kmagent.paths import Paths
from kmagent.registry import Node, Registry
from kmagent.state import State


def of_voters(count: int, workers: int = 1) -> Registry:
    nodes = [
        Node(number, f"shop-{number}", "voter" if number <= count else "worker", "f", "c")
        for number in range(1, count + workers + 1)
    ]
    return Registry("shop", serial=1, nodes=tuple(nodes))


@pytest.mark.parametrize(
    ("voters", "away", "said"),
    [
        (3, {3}, ""),
        (3, {2, 3}, "2 of 3 voters are away (shop-2, shop-3)"),
        (3, {1, 2, 3}, "3 of 3 voters"),
        (5, {4, 5, 6}, ""),
        (5, {3, 4, 5}, "3 of 5 voters"),
        (2, {2}, "1 of 2 voters"),
        (1, {2}, ""),
        (0, {1}, ""),
    ],
)
def test_it_is_said_that_nothing_can_be_written(voters: int, away: set[int], said: str) -> None:
    text = majority.lost(of_voters(voters), lambda number: number not in away)
    assert said in text and bool(said) == bool(text)


def test_only_what_lasts_is_an_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all are switched on one after the other a majority is away for a moment."""
    state, facts = State(), SimpleNamespace(cluster="shop", probe_scale=1.0)
    away, shown = [{2, 3}] * 4 + [set()] + [{2, 3}] * 5 + [set()], list[str]()

    async def look(_: float) -> None:
        shown.append(state.alarm)
        away.pop(0)
        if not away:
            raise asyncio.CancelledError

    mesh: Any = SimpleNamespace(me=SimpleNamespace(serial=1), reaches=lambda _, number: number not in away[0])
    monkeypatch.setattr(registry, "load_or_empty", lambda *_: of_voters(3))
    monkeypatch.setattr(majority.asyncio, "sleep", look)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(majority.run(state, Paths(run=tmp_path), mesh, facts))  # type: ignore[arg-type]
    assert [bool(text) for text in shown] == [False] * 9 + [True, False]
    assert [event["name"] for event in state.events] == ["alarm", "alarm-lost"]


def test_an_alarm_is_on_the_screen() -> None:
    state = State()
    state.warn("no majority", "2 of 3 voters are away")
    assert "no majority: 2 of 3 voters are away" in console.block(state)
    assert state.document()["alarm"] == state.document()["message"] == "no majority: 2 of 3 voters are away"
    state.warn("etcd's room", "delete objects")
    assert state.alarm == "etcd's room: delete objects; no majority: 2 of 3 voters are away"
    state.warn("no majority", "")
    state.warn("etcd's room", "")
    assert "no majority" not in console.block(state)
