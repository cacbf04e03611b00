"""When the leading node has a snapshot taken, and who keeps it."""

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from agent_fakes import FACTS, Shop
from agent_recoveries import Node

from kmagent import removed_data, snapshot_files, snapshots, take_snapshot
from kmagent.paths import Paths
from kmagent.registry import Registry
from kmagent.snapshots import AGAIN_S, Snapshots
from kmplan.errors import UserError


class Keeping:
    """Node 1, its snapshots, and the nodes that would keep a copy."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths = replace(Paths(), state=folder)
        self.asked: list[list[str]] = []
        self.now = 1000.0
        monkeypatch.setattr(snapshots, "child", self.child)
        monkeypatch.setattr(snapshots.time, "monotonic", lambda: self.now)
        self.keeper = Snapshots(self.paths, replace(FACTS, number=1))

    async def child(self, _command: str, nodes: str) -> dict[str, Any]:
        addresses = [one["address"] for one in json.loads(nodes)]
        self.asked.append([address.rpartition(":")[2] for address in addresses])
        self.paths.snapshots.mkdir(exist_ok=True)
        name = f"1-{len(self.asked)}-{int(time.time())}.sealed"
        (self.paths.snapshots / name).touch()
        return {"name": name, "kept_by": addresses[:2]}

    def look(self, registry: Registry, *reachable: int) -> int:
        """Take one if it is due, at once; returns how many there were so far."""

        async def scenario() -> None:
            self.keeper.take_if_due(registry, frozenset({1, *reachable}))
            if self.keeper._taking:
                await self.keeper._taking

        asyncio.run(scenario())
        self.now += AGAIN_S
        return len(self.asked)


@pytest.fixture
def keeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keeping:
    return Keeping(tmp_path, monkeypatch)


def registry_of(*roles: str, diskless: int = 0) -> Registry:
    known = Registry("shop")
    for number, role in enumerate(roles, 1):
        known = known.put(replace(Shop.node(number), role=role, diskless=number == diskless))
    return known


def test_one_is_enough_for_ten_minutes_where_all_that_can_keep_it(keeping: Keeping) -> None:
    """Two nodes have one copy, a single one none: there is nobody else to keep another."""
    two = registry_of("voter", "worker")
    assert [keeping.look(two, 2) for _ in range(3)] == [1, 1, 1]
    # A third has come, or a node that was away.
    three = registry_of("voter", "worker", "worker")
    assert [keeping.look(three, 2, 3) for _ in range(3)] == [2, 2, 2]


def test_who_refuses_a_snapshot_is_not_given_another_one_every_minute(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve are kept: history would be as short as that."""

    async def refused(_command: str, nodes: str) -> dict[str, Any]:
        return {**await keeping.child(_command, nodes), "kept_by": []}

    monkeypatch.setattr(snapshots, "child", refused)
    known = registry_of("voter", "worker", "worker", "worker")
    assert [keeping.look(known, 2, 3) for _ in range(6)] == [1, 1, 1, 1, 1, 2]
    # One that was not asked yet.
    assert [keeping.look(known, 2, 3, 4) for _ in range(3)] == [3, 3, 3]


def test_no_snapshot_is_taken_that_etcd_needs_the_room_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Node(tmp_path)
    room = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=2 * 3))
    monkeypatch.setattr(snapshot_files, "shutil", room)
    with pytest.raises(UserError, match="not enough room"):
        take_snapshot.take(machine.paths, [])
    assert list(machine.paths.snapshots.iterdir()) == []


@pytest.mark.parametrize("goes_on", [True, False])
def test_what_a_power_cut_has_left_is_removed_when_the_agent_starts(tmp_path: Path, goes_on: bool) -> None:
    paths = replace(Paths(), state=tmp_path)
    kept = tmp_path / "etcd.removed-1", paths.snapshots / "1-2-3.sealed"
    left = tmp_path / "etcd.epoch-2", paths.begun(2), tmp_path / f".{paths.begun(2).name}.x"
    copies = paths.snapshots / ".look-x/db", paths.snapshots / ".new-x/db"
    for path in (*kept, *left, *copies):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    removed_data.tidy(paths, goes_on=goes_on)
    assert {*tmp_path.iterdir(), *paths.snapshots.iterdir()} == {*kept, paths.snapshots, *(left if goes_on else ())}


def test_those_with_disks_that_do_not_vote_keep_it_first(keeping: Keeping) -> None:
    keeping.look(registry_of("voter", "voter", "worker", "worker", "standby", diskless=3), 2, 3, 4, 5)
    assert keeping.asked == [["4", "5", "2", "3"]]


def test_a_change_waits_once_for_a_snapshot_that_is_not_older(keeping: Keeping) -> None:
    async def scenario() -> list[bool]:
        three = registry_of("voter", "worker", "worker")
        return [await keeping.keeper.take_before_change(three, frozenset({1, 2, 3})) for _ in range(3)]

    assert asyncio.run(scenario()) == [True, False, False]
    keeping.now += snapshots.TOGETHER_S
    assert asyncio.run(scenario()) == [True, False, False]
    assert len(keeping.asked) == 2


def test_a_change_waits_for_a_snapshot_that_is_under_way(keeping: Keeping) -> None:
    """One that was begun in the same turn says nothing before it is there."""

    async def scenario() -> bool:
        three = registry_of("voter", "worker", "worker")
        keeping.keeper.take_if_due(three, frozenset({1, 2, 3}))
        return await keeping.keeper.take_before_change(three, frozenset({1, 2, 3}))

    assert asyncio.run(scenario()) is True and len(keeping.asked) == 1
