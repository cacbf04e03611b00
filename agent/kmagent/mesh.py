"""The mesh: ports come up, neighbours are greeted, babeld routes, and only who belongs to the cluster gets through."""

import asyncio
import contextlib
import logging
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from kmagent import babel, firewall, hello, network, ports, seqno
from kmagent.detours import Detours
from kmagent.facts import Facts
from kmagent.hello import Hello, Link
from kmagent.paths import Paths
from kmagent.ports import Port
from kmagent.programs import run_async
from kmagent.state import State
from kmplan.errors import UserError
from kmplan.files import write_if_changed

log = logging.getLogger(__name__)

# An answer to news is sent at once, but not more often than this.
ANSWER_S = 0.05
# When one port is greeted, so are those that are due so soon after.
TOGETHER_S = 1.0
# What an agent before this one trusted stays trusted for so long, while its neighbours are greeted anew.
INHERIT_S = 5.0
# How long is waited until babeld has left a port; nobody is trusted there in any case.
LEND_S = 1.0
SYSCTL = "/proc/sys/net/ipv6/conf"


@dataclass(frozen=True)
class Self:
    """What a machine says of itself in hellos: `keys` are the mesh keys (hex) by generation, empty when not admitted.

    `registered` are the numbers of all nodes, as of the registry's `serial`.
    """

    cluster: str
    number: int
    name: str
    keys: dict[int, str] = field(default_factory=dict)
    serial: int = 0
    registered: frozenset[int] = frozenset()


class Mesh:
    """All ports of this machine; `me` may be replaced while it runs.

    With `facts` the machine is a node: it routes and guards its ports. Without, it only greets, to find who may admit it.
    """

    def __init__(
        self, state: State, paths: Paths, me: Self, ignored: tuple[str, ...] = (), facts: Facts | None = None
    ) -> None:
        self.me = me
        self.ports: dict[str, Port] = {}
        self.links: dict[str, Link] = {}
        self.gateways = frozenset(str(gateway["port"]) for gateway in facts.gateways) if facts else frozenset[str]()
        # Ports on which a machine is offered a system, and what it does.
        self.offers: dict[str, str] = {}
        # Ports that are left to strangers: an agent before this one may have left some.
        self._lent = {path.stem for path in paths.provision.glob("*.dnsmasq")}
        self.on_port: list[Callable[[], None]] = []
        self._state, self._paths, self._ignored, self._facts = state, paths, ignored, facts
        self._trusted: frozenset[str] | None = None
        self._inherited: frozenset[str] = frozenset()
        self._started = time.monotonic()
        self._rules = asyncio.Lock()
        self._keys: dict[str, int] = {}
        self._was_asked = False
        self._reachable: frozenset[str] = frozenset()
        self._ways: dict[str, babel.Way] = {}
        self._changed_ways = asyncio.Event()
        self._answer_at: dict[str, float] = {}
        self.news = asyncio.Event()
        self._wake = asyncio.Event()
        self._socket = _hello_socket()
        self._babel = babel.Babel(paths.babel_socket, self._on_babel, self._on_answer)
        self._detours = Detours(facts) if facts else None

    async def run(self) -> None:
        """Run until cancelled."""
        asyncio.get_running_loop().add_reader(self._socket, self._read)
        if self._facts:
            await network.leave_detours()
            # Also those on which an agent before this one has heard a router.
            self.gateways |= await firewall.members_of("gateways")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch_ports())
                group.create_task(self._greet())
                if self._facts:
                    group.create_task(self._babel.run())
                    group.create_task(self._watch_routes())
                    group.create_task(self._renew(self._facts))
        finally:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()

    def neighbours(self) -> list[tuple[Port, hello.Neighbour]]:
        """Who was heard, by port."""
        return [
            (self.ports[name], link.neighbour)
            for name, link in self.links.items()
            if link.neighbour and name in self.ports
        ]

    def replace_self(self, me: Self) -> None:
        """Say something else from now on; links go to a new key together with the neighbour."""
        self.me = me
        self._settle(*self._keys)
        for name in list(self.links):
            self._answer(name)

    def believed(self) -> frozenset[int]:
        """The numbers of neighbours that belong to the cluster."""
        return frozenset(one.hello.number for port, one in self.neighbours() if self._believes(port.name))

    def wake(self) -> None:
        """Tell whoever waits for `news` that there are some."""
        self.news.set()
        self.news = asyncio.Event()

    def routes(self) -> frozenset[str]:
        """Prefixes that the mesh leads to."""
        return self._babel.table.installed

    def reaches(self, me: Facts, number: int) -> bool:
        """Whether a way leads to a node, or it is this one."""
        return number == me.number or f"{network.node_address(me.prefix, number)}/128" in self.routes()

    async def _watch_ports(self) -> None:
        watcher = ports.Watcher()
        while True:
            found = {port.name: port for port in ports.physical_ports(ignored=self._ignored)}
            if found != self.ports:
                await self._take_ports(found)
            await watcher.wait(60)

    async def _watch_routes(self) -> None:
        """A route that has gone, or leads nowhere now, is replaced by a detour: babeld knows which."""
        watcher = ports.Watcher(ports.ROUTES)
        while True:
            await watcher.wait(3600)
            self._babel.glance()

    async def _renew(self, facts: Facts) -> None:
        """Where a way from here has changed, one that leads here may have: longer ones are taken with a newer number only."""
        await seqno.set_up()
        while True:
            await self._changed_ways.wait()
            self._changed_ways.clear()
            with contextlib.suppress(OSError):
                if self._babel.router_id:
                    seqno.renew(self._babel.router_id, facts.address)
            await asyncio.sleep(seqno.PAUSE_S)

    async def _take_ports(self, found: dict[str, Port]) -> None:
        had_neighbours = any(map(self.is_neighbour, self.links))
        before, self.ports = self.ports, found
        for name in sorted(set(before) - set(found)):
            self._drop(name, f"port-gone {name}")
        if set(before) != set(found):
            # Before a new port is brought up: it begins as a stranger's.
            await self._guard()
        for name, port in found.items():
            known = before.get(name)
            if known is None or known.index != port.index:
                await self._bring_up(port)
            if known and known.carrier and not port.carrier:
                self._drop(name, f"link-lost {name}")
            if port.carrier and name not in self.links:
                self.links[name] = hello.new_link()
                self._answer(name)
        if had_neighbours and not any(map(self.is_neighbour, self.links)):
            # With nobody left, babeld may go on and on about what it had to tell one of them (1.13, `flushbuf`).
            await run_async(["systemctl", "try-restart", babel.UNIT], check=False)
        for callback in self.on_port:
            callback()
        self._publish()

    async def _bring_up(self, port: Port) -> None:
        """A router's advertisement must not change anything, and what is forwarded is the mesh's affair."""
        name = port.name
        # Without a wait for duplicates: on a cable there is nobody else, and nothing can be sent meanwhile.
        for setting, value in (
            ("dad_transmits", "0"),
            ("accept_ra", "0"),
            ("autoconf", "0"),
            ("accept_redirects", "0"),
        ):
            with contextlib.suppress(OSError):
                await asyncio.to_thread(_write, f"{SYSCTL}/{name}/{setting}", value)
        await run_async(["ip", "link", "set", name, "up"], check=False)
        request = socket.inet_pton(socket.AF_INET6, hello.GROUP) + struct.pack("@I", port.index)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)

    async def _guard(self) -> None:
        """Tell firewall and babeld which ports there are."""
        if self._facts is None:
            return
        mesh_ports = self.mesh_ports()
        async with self._rules:
            me = self._facts
            await firewall.apply(
                firewall.ruleset(mesh_ports, self.gateways, me.api, me.address, provision=me.provision)
            )
        if self._trusted is None:
            self._trusted = await firewall.members_of("trusted")
            self._inherited = self._trusted & {name for name, port in self.ports.items() if port.carrier}
        await self._start_babel(mesh_ports)

    def is_neighbour(self, name: str) -> bool:
        """Whether one of the cluster is on a port."""
        return name in self.links and self._believes(name)

    def mesh_ports(self) -> list[str]:
        """Ports that are for neighbours."""
        return [name for name in self.ports if name not in self.gateways]

    async def lend(self, name: str) -> None:
        """Leave a port to strangers, who are given addresses there: until it is taken back nobody is trusted on it.

        Nor does babeld speak there. It would name the port's IPv4 address as the way to this node's pods, and a neighbour keeps
        the first way that it hears of (babeld 1.14, `update_route`), also when that address is long gone.
        """
        if name not in self._lent:
            self._lent.add(name)
            self._write_config()
            self._trust()
        end = time.monotonic() + LEND_S
        while (known := self._babel.table.interfaces) is None or name in known:
            if time.monotonic() > end:
                return
            self._babel.hurry()
            await asyncio.sleep(babel.SOON_S)

    def take_back(self, name: str) -> None:
        """Use a port for neighbours again, when the last address of strangers is gone."""
        self._lent.discard(name)
        self._write_config()
        self._babel.hurry()
        self._trust()

    async def _start_babel(self, mesh_ports: list[str]) -> None:
        for name in mesh_ports:
            self._keys.setdefault(name, max(self.me.keys))
        self._write_config()
        await run_async(["systemctl", "start", babel.UNIT], check=False)
        self._babel.hurry()

    def _spoken(self) -> list[str]:
        """Ports on which babeld speaks."""
        return [name for name in self.mesh_ports() if name in self._keys and name not in self._lent]

    def _correct(self, facts: Facts, interfaces: frozenset[str], is_new: bool) -> None:
        """Have babeld speak where it shall, and on no other port; one that was not asked before may have old keys."""
        spoken = self._spoken()
        orders = [f"flush interface {name}" for name in sorted((interfaces & set(self.ports)) - set(spoken))]
        for name, key in self._port_keys(spoken):
            if name not in interfaces:
                orders += babel.interface(facts, name, key)
            elif is_new:
                orders.append(babel.replace_key(name, key))
        if orders:
            self._babel.send(orders)

    def _write_config(self) -> None:
        """Write what a babeld that is started anew begins with."""
        assert self._facts is not None  # noqa: S101 - a node's
        text = babel.configuration(self._facts, self._port_keys(self._spoken()), self._paths.babel_socket)
        write_if_changed(self._paths.babel_config, text, 0o600)

    def _port_keys(self, names: list[str]) -> list[tuple[str, str]]:
        return [(name, self.me.keys[self._keys[name]]) for name in names]

    async def set_gateways(self, names: frozenset[str]) -> None:
        """Make these ports lead outside, and no others."""
        if names != self.gateways:
            for name in names - self.gateways:
                self._drop(name, f"gateway {name}")
            self.gateways = names
            await self._guard()

    def _drop(self, name: str, event: str) -> None:
        link = self.links.pop(name, None)
        if link is not None:
            self._state.record(event)
        self._inherited -= {name}
        self._trust()

    async def _greet(self) -> None:
        """Say hello on every port again and again, and at once when there is news."""
        while True:
            now = time.monotonic()
            is_due = any(self._answer_at.get(name, 0.0) <= now for name in self.links)
            for name, link in list(self.links.items()):
                self.links[name] = fresh = hello.expire(link, now)
                if link.neighbour and not fresh.neighbour:
                    self._state.record(f"neighbour-lost {name}")
                if is_due and self._answer_at.get(name, 0.0) <= now + TOGETHER_S:
                    self._send(name)
                    self._answer_at[name] = now + hello.PERIOD_S
            self._trust()
            pause = min([self._answer_at[name] - time.monotonic() for name in self.links], default=hello.PERIOD_S)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(pause, 0.001))

    def _answer(self, name: str) -> None:
        now = time.monotonic()
        self._answer_at[name] = min(self._answer_at.get(name, now), now + ANSWER_S)
        self._wake.set()

    def _send(self, name: str) -> None:
        link, port, me = self.links[name], self.ports.get(name), self.me
        if port is None or name in self.gateways:
            return
        link = replace(link, sequence=max(link.sequence + 1, time.time_ns() // 1_000_000))
        self.links[name] = link
        # A hello has to fit into a packet.
        keys = {generation: me.keys[generation] for generation in sorted(me.keys)[-hello.MAX_GENERATIONS :]}
        message = Hello(
            cluster=me.cluster, number=me.number, name=me.name, port=name, mtu=port.mtu, serial=me.serial,
            nonce=link.nonce, heard=link.heard, sequence=link.sequence, generations=tuple(keys), trusts=self._believes(name),
            around=self._leads_around(name),
        )  # fmt: skip
        with contextlib.suppress(OSError):
            self._socket.sendto(hello.encode(message, keys), (hello.GROUP, hello.PORT, 0, port.index))

    def _leads_around(self, name: str) -> tuple[int, ...]:
        """The nodes to which the neighbour on a port may go by this one: not those whose way leads by that port."""
        around = self._detours.around if self._detours else {}
        return tuple(sorted(number for number, ports in around.items() if name not in ports)[: hello.MAX_AROUND])

    def _read(self) -> None:
        for _ in range(64):
            try:
                data, (address, _, _, index) = self._socket.recvfrom(hello.MAX_BYTES + 1)
            except OSError:
                return
            name = next((port.name for port in self.ports.values() if port.index == index), None)
            message = hello.decode(data, self.me.keys)
            if name is None or name in self.gateways or message is None:
                continue
            if message[0].number != self.me.number or not self.me.number:
                self._receive(name, message[0], message[1], address.partition("%")[0])

    def _receive(self, name: str, message: Hello, good: bool, address: str) -> None:
        old = self.links.get(name) or hello.new_link()
        new = hello.receive(old, message, good, address, time.monotonic())
        self.links[name] = new
        if new.heard != old.heard:
            self._answer(name)
        if new.neighbour is old.neighbour or new.neighbour is None:
            return
        before, believed = old.neighbour, new.neighbour.authenticated
        # What a stranger calls itself is no news when it was one before.
        if not before or before.authenticated != believed or (believed and before.hello.name != message.name):
            self._answer(name)
            self._state.record(f"neighbour {message.name or 'a stranger'} on {name}")
        elif (message.heard != old.nonce) or before.hello.serial != message.serial:
            self._answer(name)
        self._settle(name)
        self._trust()
        self._compare(name, before)
        if self._believes(name) and message.around != (before.hello.around if before else ()):
            self._babel.glance()
        if before is None or before.hello.serial != message.serial or before.hello.trusts != message.trusts:
            self._publish()
            self.wake()

    def _compare(self, name: str, before: hello.Neighbour | None) -> None:
        """Tell when the ends of a cable take packets of different sizes: one drops what is too large, and tells nobody."""
        port, neighbour = self.ports.get(name), self.links[name].neighbour
        if port is None or neighbour is None or not self._believes(name) or neighbour.hello.mtu == port.mtu:
            return
        if before is None or not before.authenticated or before.hello.mtu != neighbour.hello.mtu:
            self._state.record(f"mtu {port.mtu} on {name}, and {neighbour.hello.mtu} at the other end")

    def _settle(self, *names: str) -> None:
        """Use the newest mesh key that both ends have; the newest of all where nobody is who belongs to the cluster."""
        known = {name: self._generation(name) for name in names if name in self._keys and self.me.keys}
        changed = [name for name, generation in known.items() if self._keys[name] != generation]
        self._keys |= known
        if changed:
            self._babel.send(babel.replace_key(name, key) for name, key in self._port_keys(changed))
            self._write_config()
        for name in changed:
            if name in self.links:
                self._answer(name)

    def _generation(self, name: str) -> int:
        newest = max(self.me.keys)
        neighbour = self.links[name].neighbour if name in self.links and self._believes(name) else None
        theirs = neighbour.hello.generations if neighbour else ()
        return hello.common_generation(self.me.keys, theirs) or newest

    def _believes(self, name: str) -> bool:
        """Whether the neighbour on a port belongs to the cluster: its MAC is good, and the registry knows it.

        One that has a newer registry than ours may be newer itself.
        """
        neighbour = self.links[name].neighbour
        if neighbour is None or not neighbour.authenticated:
            return False
        return neighbour.hello.number in self.me.registered or neighbour.hello.serial > self.me.serial

    def _trust(self) -> None:
        trusted = frozenset(name for name in self.links if self._believes(name))
        if time.monotonic() - self._started < INHERIT_S:
            trusted |= self._inherited
        trusted -= self._lent
        if self._trusted is None or trusted == self._trusted:
            return
        self._trusted = trusted
        self._babel.hurry()
        asyncio.get_running_loop().create_task(self._apply_trust())
        self._publish()

    async def _apply_trust(self) -> None:
        try:
            async with self._rules:
                await firewall.apply(firewall.trust(self._trusted or ()))
        except UserError as error:
            log.error("firewall: %s", error)

    async def _on_answer(self, table: babel.Table) -> bool:
        if (ways := table.ways()) != self._ways:
            self._ways = ways
            self._changed_ways.set()
        if table.interfaces is None:
            self._was_asked = False
        elif self._facts and self._keys:
            self._correct(self._facts, table.interfaces, not self._was_asked)
            self._was_asked = True
        if self._detours is None:
            return False
        before, since = self._detours.around, time.monotonic() - hello.PERIOD_S - ANSWER_S
        others = {
            babel.Way(one.address, port.name): one.hello.around
            for port, one in self.neighbours()
            if self._believes(port.name) and one.seen > since
        }
        there_are = await self._detours.follow(table, others)
        if self._detours.around != before:
            # At once: neighbours without a way wait for it.
            for name in self.links:
                self._send(name)
        return there_are

    def _on_babel(self) -> None:
        reachable = self.routes()
        if reachable != self._reachable:
            self._reachable = reachable
            self.wake()
        self._publish()

    def _publish(self) -> None:
        self._state.mesh, self._state.routes = self.document, lambda: len(self.routes())
        self._state.touch()

    def document(self) -> list[dict[str, Any]]:
        """Return every port and who is on it, as plain data."""
        return [self._describe(port) for port in self.ports.values()]

    def _describe(self, port: Port) -> dict[str, Any]:
        link = self.links.get(port.name)
        neighbour = link.neighbour if link else None
        kind = "gateway" if port.name in self.gateways else "mesh"
        shown = {"name": port.name, "mac": port.mac, "carrier": port.carrier, "mtu": port.mtu, "kind": kind}
        shown["offer"] = self.offers.get(port.name)
        if neighbour is None:
            return {**shown, "neighbour": None}
        cost = self._babel.table.link(port.name)
        return {
            **shown,
            "neighbour": {
                "name": neighbour.hello.name,
                "number": neighbour.hello.number,
                "port": neighbour.hello.port,
                "mtu": neighbour.hello.mtu,
                "address": neighbour.address,
                "authenticated": self._believes(port.name),
                "since_s": round(time.monotonic() - neighbour.since, 1),
                "rxcost": cost.rxcost if cost else None,
                "txcost": cost.txcost if cost else None,
                "cost": cost.cost if cost else None,
                "reach": f"{cost.reach:04x}" if cost else None,
                "rtt_ms": cost.rtt_ms if cost else None,
            },
        }


def _hello_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
    made.bind(("::", hello.PORT))
    return made


def _write(path: str, value: str) -> None:
    with open(path, "w") as file:  # noqa: PTH123 - one of the files of /proc/sys
        file.write(value)
