"""How a node follows the cluster: what it says of itself, and how often."""

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from agent_fakes import FACTS
from agent_sockets import live, until

from kmagent import candidates, follow
from kmagent.candidates import Report
from kmagent.follow import Follower
from kmagent.hello import Hello, Neighbour
from kmagent.http import Response
from kmagent.mesh import Self
from kmagent.paths import Paths
from kmagent.ports import Port
from kmagent.state import State


@dataclass
class Cables:
    """A mesh as far as reports tell of it."""

    believed_now: frozenset[int] = frozenset({2})
    offers: dict[str, str] = field(default_factory=dict)
    serial: int = 7
    looked: int = 0
    asked: int = 0
    trust: tuple[bool, ...] = (True,)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    me: Self = field(default_factory=lambda: Self("shop", 1, "shop-1", {1: "ab" * 32}, serial=7))

    def tell(self) -> None:
        """There is news."""
        self.news.set()
        self.news = asyncio.Event()

    def believed(self) -> frozenset[int]:
        self.looked += 1
        return self.believed_now

    def neighbours(self) -> list[tuple[Port, Neighbour]]:
        """Some, which have a registry of this serial, and let this node in or not."""
        found = []
        for number, trusts in enumerate(self.trust, 2):
            said = Hello("shop", number, f"shop-{number}", "eth0", 1500, self.serial, "", "", 1, (1,), trusts=trusts)
            port = Port(f"eth{number}", number, "", True, 1500)
            found.append((port, Neighbour(said, f"fe80::{number}", trusts, 0.0, 0.0)))
        return found

    def routes(self) -> frozenset[str]:
        self.asked += 1
        return frozenset({f"{FACTS.join}/128"})


@dataclass
class JoinApi:
    """Takes reports, or refuses them."""

    status: int = 200
    told: list[Report] = field(default_factory=list)
    registry_asked: int = 0

    async def request(self, method: str, path: str, body: bytes = b"") -> Response:
        if (method, path) == ("GET", "/v1/registry"):
            self.registry_asked += 1
            return Response(503, b"")
        assert (method, path) == ("POST", "/v1/report")
        self.told.append(candidates.from_text(body.decode()))
        return Response(self.status, b"")


class Reporting:
    """A node with a clock of its own, which looks every second whether to report."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, up_s: float) -> None:
        self.now, self.up_s = 1000.0, up_s
        self.mesh, self.api = Cables(), JoinApi()
        monkeypatch.setattr(follow, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(follow, "boot_seconds", lambda: self.up_s)
        given: Any = self.mesh
        paths = Paths(state=tmp_path, run=tmp_path)
        # It has been admitted: its certificates are not due.
        (paths.pki / "kubelet").mkdir(parents=True)
        (paths.pki / "kubelet/client.crt").touch()
        self.follower = Follower(State(), paths, given, FACTS)
        self.follower._client = self.api  # type: ignore[assignment]

    def reports_within(self, seconds: int) -> int:
        before = len(self.api.told)
        for _ in range(seconds):
            asyncio.run(self.follower._report_if_due())
            self.now += 1
            self.up_s += 1
        return len(self.api.told) - before


@pytest.mark.parametrize(("up_s", "pause_s"), [(5, 60), (200, 200), (86400, 300)])
def test_a_node_reports_the_less_often_the_longer_it_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, up_s: float, pause_s: int
) -> None:
    node = Reporting(tmp_path, monkeypatch, up_s)
    assert node.reports_within(pause_s) == 1
    assert node.reports_within(1) == 1
    first, second = node.api.told
    assert (first.up_s, second.up_s) == (up_s, up_s + pause_s) and first.free_bytes > 0


def test_what_changes_on_a_cable_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Reporting(tmp_path, monkeypatch, 86400)
    assert node.reports_within(10) == 1
    node.mesh.believed_now = frozenset({2, 3})
    assert node.reports_within(10) == 1
    node.mesh.offers["eth2"] = "fetching, 40 %"
    assert node.reports_within(10) == 1
    last = node.api.told[-1]
    assert (last.neighbours, last.offers) == (frozenset({2, 3}), {"eth2": "fetching, 40 %"})


def test_a_report_that_was_not_taken_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Reporting(tmp_path, monkeypatch, 86400)
    node.api.status = 503
    assert node.reports_within(3) == 3
    node.api.status = 200
    assert node.reports_within(10) == 1


def test_a_node_says_that_it_was_left_behind_when_it_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its neighbours have a newer registry, and the join API that it reaches, perhaps its own, has none."""
    node = Reporting(tmp_path, monkeypatch, 86400)
    seen = []
    for serial in (7, 8, 8, 8, 8, 8, 8, 7):
        node.mesh.serial = serial
        node.follower._note_behind()
        seen.append(node.follower._state.left_behind)
        node.now += 1
    assert seen == [False, False, False, False, False, True, True, False]


def test_the_way_to_the_join_api_is_looked_for_when_there_is_something_to_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "BUSY_S", 0.001)

    async def scenario() -> None:
        node = Reporting(tmp_path, monkeypatch, 86400)
        mesh, api = node.mesh, node.api
        following = asyncio.create_task(node.follower.run())

        async def turn() -> None:
            before = mesh.looked
            mesh.tell()
            await until(lambda: mesh.looked > before)
            await asyncio.sleep(0.01)

        async def after_news() -> int:
            """How often it has looked for the way, some turns later."""
            for _ in range(3):
                await turn()
            return mesh.asked

        try:
            await until(lambda: len(api.told) == 1)
            quiet = await after_news()
            assert await after_news() == quiet, "nothing is due"
            mesh.serial = 8
            assert await after_news() > quiet and api.registry_asked
            mesh.serial, node.now = 7, node.now + 300
            await after_news()
            assert len(api.told) == 2
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following

    live(scenario())


@pytest.mark.parametrize(
    ("trust", "asked"),
    [
        ((True, True), {}),
        # Two that were cut off together let each other in, and nobody else does.
        ((True, False), {"fe80::3%eth3": 2}),
        ((False, False), {"fe80::2%eth2": 60, "fe80::3%eth3": 60}),
    ],
)
def test_who_is_refused_by_a_neighbour_asks_over_its_relay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust: tuple[bool, ...], asked: dict[str, int]
) -> None:
    node, seen, left = Reporting(tmp_path, monkeypatch, 86400), Counter[str](), list[Paths]()
    node.mesh.trust = trust

    async def child(_command: str, address: str) -> dict[str, str]:
        seen[address] += 1
        return {"state": "unreachable" if sum(seen.values()) < 120 else "unknown"}

    async def leave(paths: Paths) -> None:
        left.append(paths)

    monkeypatch.setattr(follow, "child", child)
    monkeypatch.setattr(follow, "leave", leave)
    with pytest.raises(follow.RestartError) if not any(trust) else contextlib.nullcontext():
        for _ in range(75):
            asyncio.run(node.follower._check_refused())
            node.now += 1
    assert seen == asked and bool(left) is not any(trust)
