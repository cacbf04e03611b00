"""babeld(8): its configuration, and the conversation over its local socket."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kmagent import seqno
from kmagent.facts import Facts
from kmagent.network import LEAVING

log = logging.getLogger(__name__)

HELLO_S = 0.2
UPDATE_S = 2.0
SMOOTHING_S = 1
# From which round trip (ms) on a cable costs more, and up to which; and how much: more than a long way around, at 96 per cable.
# What is measured counts by half, of 256 parts: babeld's own 42 take seconds to see it.
SLOW_MS, SLOWEST_MS, SLOWEST_COST, DECAY = 100, 200, 2048, 128
UNIT = "kubermesh-babeld.service"
# What a good cable costs, the metric of a route that leads nowhere, and of one that is worse than all ways through the mesh.
WIRED, INFINITY, FAR = 96, 0xFFFF, 0x8000
RETRY_S, ASK_S = 0.3, 1.0
# How often babeld is asked: often for a while after something changed.
OFTEN_S, BUSY_S, PERIOD_S = 0.3, 8.0, 3.0
# It learns of what happens when the agent does: how often it is asked once more, and when.
SOON, SOON_S = 3, 0.05


@dataclass(frozen=True)
class Link:
    """babeld's view of a neighbour: costs of receiving and sending (96 is a perfect wire, 65535 none), and both.

    `reach` are the last 16 hellos, the newest first; `rtt_ms` is what an answer takes (RFC 9616), smoothed; None when unknown.
    """

    address: str
    rxcost: int
    txcost: int
    cost: int
    reach: int
    rtt_ms: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Way:
    """The neighbour that a route leads to, and by which port."""

    via: str
    port: str


@dataclass(frozen=True)
class Route:
    """A route that babeld knows, in use or not: the distances (metric) from here and from the neighbour that it leads by."""

    prefix: str
    metric: int
    refmetric: int
    way: Way
    installed: bool

    @property
    def in_use(self) -> bool:
        """Whether packets go by it. One that was retracted stays for minutes, as unreachable (RFC 8966, "Hold Time")."""
        return self.installed and self.metric < INFINITY


@dataclass(frozen=True)
class Table:
    """What babeld knows: (port, link) of every neighbour, the prefixes that a route in use leads to, and all else.

    Two are equal when links and prefixes are: there is news in nothing else. `own` are the prefixes that are announced here,
    `interfaces` the ports on which it speaks; None when there is nobody to ask. The agent, as its neighbour, is left out.
    """

    neighbours: tuple[tuple[str, Link], ...] = ()
    installed: frozenset[str] = frozenset()
    routes: tuple[Route, ...] = field(default=(), compare=False)
    own: frozenset[str] = field(default=frozenset(), compare=False)
    interfaces: frozenset[str] | None = field(default=None, compare=False)

    def link(self, port: str) -> Link | None:
        """The best neighbour on a port."""
        found = [link for name, link in self.neighbours if name == port]
        return min(found, key=lambda link: link.cost, default=None)

    def heard(self) -> frozenset[Way]:
        """The ways to neighbours that are heard: one without a cable stays for seconds."""
        return frozenset(Way(link.address, port) for port, link in self.neighbours if link.cost < INFINITY)

    def ways(self) -> dict[str, Way]:
        """The way that packets go, by prefix."""
        return {route.prefix: route.way for route in self.routes if route.in_use}

    def best_way(self, prefix: str) -> Way | None:
        """The best route to a prefix, in use or not; None when there is none."""
        found = [route for route in self.routes if route.prefix == prefix and route.metric < INFINITY]
        best = min(found, key=lambda route: route.metric, default=None)
        return best.way if best else None


def configuration(facts: Facts, ports: Iterable[tuple[str, str]], socket: Path, hello_s: float = HELLO_S) -> str:
    """Return babeld's configuration; `ports` are names with the mesh key (hex) to use there.

    Announced are the node's address, the anycast addresses it holds, its pods' prefixes as a whole, and a default route
    if it has one; taken are routes of the cluster only. Each port has a key of its own name, so that it can be replaced
    on that port while babeld runs.
    """
    return "\n".join(
        [
            f"local-path-readwrite {socket}",
            "skip-kernel-setup true",
            # A pulled cable shows at once; by its hellos alone it takes three times as long.
            "link-detect true",
            "ipv6-subtrees true",
            "random-id true",
            "kernel-priority 1024",
            # A cable that is back is used after ten seconds; babeld's own 4 s make it forty.
            f"smoothing-half-life {SMOOTHING_S}",
            f"redistribute local ip {facts.address}/128 eq 128 allow",
            f"redistribute local ip {facts.api}/128 eq 128 allow",
            f"redistribute local ip {facts.join}/128 eq 128 allow",
            "redistribute local deny",
            *(f"redistribute ip {place}/128 eq 128 proto {LEAVING} metric {FAR}" for place in (facts.api, facts.join)),
            # 3 is `boot`, what ip(8) gives a route; 4 `static`, 9 `ra`, 16 `dhcp`: see /etc/iproute2/rt_protos.
            f"redistribute ip {facts.pods} eq 64 proto 3 allow",
            f"redistribute ip {facts.pods4} eq 24 proto 3 allow",
            *(
                f"redistribute ip {prefix} eq 0 proto {proto} metric 128"
                for prefix in ("::/0", "0.0.0.0/0")
                for proto in (4, 9, 16)
            ),
            "redistribute deny",
            # Any process of this machine could speak there: it may request, and announce nothing.
            f"in if {seqno.BABELD_END} deny",
            *(f"in ip {prefix} allow" for prefix in (facts.prefix, "10.0.0.0/8")),
            *(f"in ip {prefix} eq 0 allow" for prefix in ("::/0", "0.0.0.0/0")),
            "in deny",
            f"install ip ::/0 pref-src {facts.address}",
            f"install ip 0.0.0.0/0 pref-src {facts.address4}",
            *(line for name, key in ports for line in interface(facts, name, key, hello_s)),
            seqno.INTERFACE,
            "",
        ]
    )


def interface(facts: Facts, name: str, key: str, hello_s: float = HELLO_S) -> list[str]:
    """Return the lines that make babeld speak on a port.

    Each port has all that counts there: a `default` is not for those that come later (1.14, `finalise_config`).
    """
    slow, slowest = (round(limit * facts.probe_scale) for limit in (SLOW_MS, SLOWEST_MS))
    words = [
        f"interface {name} key {name} type wired v4-via-v6 true",
        f"hello-interval {hello_s:g} update-interval {UPDATE_S * hello_s / HELLO_S:g}",
        # babeld puts a route that a neighbour took back in the place of one that is lost (1.14, `route_lost`). With split
        # horizon it does not tell that neighbour, which may send everything this way: a black hole for a quarter of a minute.
        "split-horizon false",
        # A cable that has become slow is for those only who have no other (RFC 9616): `wired` by itself counts lost packets.
        f"enable-timestamps true rtt-decay {DECAY} rtt-min {slow} rtt-max {slowest} max-rtt-penalty {SLOWEST_COST}",
    ]
    return [replace_key(name, key), " ".join(words)]


def replace_key(name: str, key: str) -> str:
    """Return the line that gives a port another key; babeld takes it from the next packet on, neighbours stay."""
    return f"key id {name} type blake2s128 value {key}"


def parse(dump: Iterable[str]) -> Table:
    """Read the lines that babeld answers to `dump`: an action, a kind, a name, and values behind their names."""
    neighbours, routes, own, interfaces = list[tuple[str, Link]](), list[Route](), set[str](), set[str]()
    for line in dump:
        action, kind, *words = [*line.split(), "", ""]
        if action != "add":
            continue
        values = dict(zip(words[1::2], words[2::2], strict=False))
        if kind == "interface" and words[0] != seqno.BABELD_END:
            interfaces.add(words[0])
        elif kind == "neighbour" and values["if"] != seqno.BABELD_END:
            rxcost, txcost, cost = (int(values[name]) for name in ("rxcost", "txcost", "cost"))
            rtt_ms = float(values["rtt"]) if "rtt" in values else None
            link = Link(values["address"], rxcost, txcost, cost, int(values["reach"], 16), rtt_ms)
            neighbours.append((values["if"], link))
        elif kind == "route":
            metric, refmetric = int(values["metric"]), int(values["refmetric"])
            way = Way(values["via"], values["if"])
            routes.append(Route(values["prefix"], metric, refmetric, way, values["installed"] == "yes"))
        elif kind == "xroute":
            own.add(values["prefix"])
    installed = frozenset(route.prefix for route in routes if route.in_use)
    return Table(tuple(neighbours), installed, tuple(routes), frozenset(own), frozenset(interfaces))


def parse_router_id(greeting: Iterable[str]) -> bytes | None:
    """Read the router-id (8 bytes) in what babeld says first: `my-id 02:aa:…`."""
    words = (line.split() for line in greeting)
    return next((bytes.fromhex(pair[1].replace(":", "")) for pair in words if pair[:1] == ["my-id"]), None)


async def ask_best_way(socket: Path, prefix: str) -> Way | None:
    """Ask babeld for its best route to a prefix, also to one that is announced here; None when it does not say."""
    with contextlib.suppress(OSError, EOFError, ValueError, KeyError, TimeoutError):
        async with asyncio.timeout(ASK_S):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                await _answer(reader)
                writer.write(b"dump\n")
                return parse(await _answer(reader)).best_way(prefix)
            finally:
                writer.close()
    return None


class Babel:
    """The conversation with the running babeld: commands go in, and it is asked again and again for what it knows.

    `told` is given each answer, an empty one when there is nobody to ask any more, and says whether to ask again soon;
    `changed` is called when there is news in it.
    Asked, not monitored: its monitor tells every step of every metric, a hundred lines per second and neighbour.
    """

    def __init__(self, socket: Path, changed: Callable[[], None], told: Callable[[Table], Awaitable[bool]]) -> None:
        self.table = Table()
        # Of the babeld that runs; None while there is none.
        self.router_id: bytes | None = None
        self._socket = socket
        self._changed, self._told = changed, told
        self._orders: list[str] = []
        self._hurry = asyncio.Event()
        self._busy_until = 0.0

    async def run(self) -> None:
        """Keep a connection; a babeld that was started anew is asked anew."""
        while True:
            with contextlib.suppress(OSError, EOFError, ValueError, KeyError):
                await self._converse()
            self.table, self.router_id = Table(), None
            with contextlib.suppress(OSError):
                await self._told(self.table)
            await asyncio.sleep(RETRY_S)

    def send(self, lines: Iterable[str]) -> None:
        """Send commands; without a connection they are dropped, as babeld's next start reads the configuration."""
        self._orders += lines
        self.hurry()

    def hurry(self) -> None:
        """Ask often for a while: something is about to change."""
        self._busy_until = time.monotonic() + BUSY_S
        self._hurry.set()

    def glance(self) -> None:
        """Ask now, and a few times soon: a route has changed."""
        self._hurry.set()

    async def _converse(self) -> None:
        reader, writer = await asyncio.open_unix_connection(self._socket)
        try:
            self.router_id = parse_router_id(await _answer(reader))
            self._busy_until = time.monotonic() + BUSY_S
            soon = SOON
            while True:
                orders, self._orders = self._orders, []
                for order in orders:
                    writer.write(f"{order}\n".encode())
                    await _answer(reader)
                asked = time.monotonic()
                writer.write(b"dump\n")
                table = parse(await _answer(reader))
                soon = SOON if await self._told(table) else soon
                before, self.table = self.table, table
                if table != before:
                    self._changed()
                pause = OFTEN_S if time.monotonic() < self._busy_until else PERIOD_S
                if soon:
                    pause, soon = SOON_S, soon - 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), pause)
                    soon = SOON
                    await asyncio.sleep(asked + SOON_S - time.monotonic())
                self._hurry.clear()
        finally:
            self._orders = []
            writer.close()


async def _answer(reader: asyncio.StreamReader) -> list[str]:
    """Read up to the word that ends every answer."""
    lines: list[str] = []
    while data := await reader.readline():
        line = data.decode(errors="replace").strip()
        if line == "ok":
            return lines
        if line.startswith(("bad", "no")):
            log.warning("babeld: %s", line)
            return lines
        lines.append(line)
    raise EOFError("babeld closed the connection")
