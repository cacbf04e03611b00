"""Machines without a system, on this node's cables: where no node of the cluster is on a port, it is offered one.

dnsmasq(8) gives addresses and boot files, radvd(8) a route to the cluster, and `kmagent provide` the system itself. Ports that
lead outside are left alone, and so are those on which a router is heard: somebody else gives addresses there.
"""

import asyncio
import contextlib
import json
import logging
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from kmagent import routers
from kmagent.boot_image import PORT
from kmagent.facts import Facts
from kmagent.mesh import Mesh
from kmagent.paths import Paths
from kmagent.ports import Port
from kmagent.programs import run_async
from kmagent.state import State
from kmplan.files import write_if_changed

log = logging.getLogger(__name__)

PERIOD_S = 1.0
# A neighbour of the cluster is known after a hello or two; firmware does not wait for long.
STRANGE_S = 5.0
# The others of a cluster that is switched on as a whole are there before.
FREE_S = 30.0
SERVER = "kubermesh-provide.service"
PER_PORT = ("kubermesh-dnsmasq@{}.service", "kubermesh-radvd@{}.service")
# For cables only, and never announced: a prefix of our own as RFC 4193 has them, and RFC 2544's range.
PREFIX, PREFIX4 = int(IPv6Address("fd6b:6d00::")), int(IPv4Address("198.19.0.0"))
SHOWN_S, TELL_S, CHECK_S = 120.0, 3.0, 10.0

# Firmware only is given an address: nobody who has another way to one shall notice a node on his network (dnsmasq(8)).
# Client architectures are RFC 4578's and IANA's: 7 and 9 are x86-64 UEFI by PXE, 16 is x86-64 UEFI by HTTP; 61 is RFC 5970's.
# Over IPv6 UEFI looks for HTTPClient behind an enterprise's number (UEFI 2.10, 24.7.3; RFC 8415, 21.16). dnsmasq writes words,
# each with its length before it: length and letters of the first one, `km`, stand in the number's place, which nobody reads.
DNSMASQ = """\
port=0
interface={port}
bind-dynamic
user=dnsmasq
dhcp-leasefile={folder}/{port}.leases
pid-file=
dhcp-range={first4},{last4},255.255.255.240,10m
dhcp-range={prefix}100,{prefix}1ff,64,10m
dhcp-option=option:router
dhcp-option=option:dns-server
dhcp-vendorclass=set:firmware,PXEClient
dhcp-vendorclass=set:firmware,HTTPClient
dhcp-vendorclass=set:firmware,enterprise:343,PXEClient
dhcp-vendorclass=set:firmware,enterprise:343,HTTPClient
dhcp-userclass=set:ipxe,iPXE
dhcp-ignore=tag:!firmware,tag:!ipxe
dhcp-match=set:pxe,option:client-arch,7
dhcp-match=set:pxe,option:client-arch,9
dhcp-match=set:http,option:client-arch,16
dhcp-match=set:pxe6,option6:61,7
dhcp-match=set:pxe6,option6:61,9
dhcp-match=set:http6,option6:61,16
dhcp-option-force=tag:http,60,HTTPClient
dhcp-boot=tag:http,http://{address4}:{server}/kubermesh.efi
dhcp-boot=tag:ipxe,http://{address4}:{server}/boot.ipxe
dhcp-boot=tag:pxe,tag:!ipxe,snponly.efi
dhcp-option=tag:http6,option6:16,km,HTTPClient
dhcp-option=tag:http6,option6:59,http://[{address}]:{server}/kubermesh.efi
dhcp-option=tag:ipxe,option6:59,http://[{address}]:{server}/boot.ipxe
dhcp-option=tag:pxe6,tag:!ipxe,option6:59,tftp://[{address}]/snponly.efi
enable-tftp
tftp-root=/usr/lib/ipxe
tftp-single-port
"""

# No default route: the lifetime is that of one. The route is RFC 4191's.
RADVD = """\
interface {port} {{
  AdvSendAdvert on;
  IgnoreIfMissing on;
  AdvManagedFlag on;
  AdvOtherConfigFlag on;
  AdvDefaultLifetime 0;
  MinRtrAdvInterval 3;
  MaxRtrAdvInterval 10;
  prefix {prefix}/64 {{ AdvValidLifetime 600; AdvPreferredLifetime 300; }};
  route {cluster} {{ AdvRouteLifetime 600; }};
}};
"""


@dataclass(frozen=True)
class Place:
    """The addresses of one port: this node's, and what it gives away."""

    prefix: str
    address: str
    address4: str
    first4: str
    last4: str


def place_of(number: int, index: int) -> Place:
    """Return the addresses for the port with this index of the node with this number; those of its other ports are others."""
    prefix = IPv6Address(PREFIX | number << 80 | (index & 0xFFFF) << 64)
    block = PREFIX4 + ((number * 61 + index) % 4096) * 16
    first, second, last = (str(IPv4Address(block + offset)) for offset in (1, 2, 14))
    return Place(str(prefix), f"{prefix}1", first, second, last)


class Provision:
    """What is offered on which port. `routers` says on which a router was heard, and until when it is one."""

    def __init__(self, state: State, paths: Paths, mesh: Mesh, me: Facts, routers: dict[str, float]) -> None:
        self._state, self._paths, self._mesh, self._me, self._routers = state, paths, mesh, me, routers
        self._strange: dict[str, float] = {}
        self._offered: dict[str, Port] = {}
        self._tell_at = self._check_at = 0.0
        # What does not run of what serves a port, by name, since the last look or for longer.
        self._failing: dict[str, str] = {}
        self._broken: dict[str, str] = {}
        self._full_at = time.monotonic()

    async def run(self) -> None:
        """Offer until cancelled. What an agent before this one offered stays, unless a node of the cluster is there."""
        while not self._mesh.ports:
            await asyncio.sleep(PERIOD_S)
        before = {path.stem for path in self._paths.provision.glob("*.dnsmasq")}
        while True:
            news = self._mesh.news
            self._forget_routers()
            if self._is_free(time.monotonic()):
                await run_async(["systemctl", "start", "--no-block", SERVER], check=False)
            wanted = self._wanted(time.monotonic())
            for name in {*before, *self._offered}:
                if not self._is_strange(name):
                    before.discard(name)
                    await self._withdraw(name)
            new = {name: port for name, port in wanted.items() if self._offered.get(name) != port}
            if new and await self._serves():
                for name, port in new.items():
                    # A neighbour may have come while others were offered something.
                    if self._is_strange(name):
                        before.discard(name)
                        await self._offer(port)
            await self._check()
            self._look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), PERIOD_S)

    async def _serves(self) -> bool:
        """Have the image served, and return whether it is: firmware that has an address gives up where nobody listens."""
        code, _ = await run_async(["systemctl", "is-active", "--quiet", SERVER], check=False)
        if code != 0:
            await run_async(["systemctl", "start", "--no-block", SERVER], check=False)
        return code == 0

    def _forget_routers(self) -> None:
        """Who was on a cable that is plugged in somewhere else now says nothing about this one."""
        for name in list(self._routers):
            port = self._mesh.ports.get(name)
            if port is None or not port.carrier:
                del self._routers[name]

    def _is_free(self, now: float) -> bool:
        """Whether a machine may be plugged in that has no system: now and then, once there was a free port for some time.

        What serves it has a small share of a busy processor, and firmware gives up where nobody serves: it is started before.
        """
        if not self._me.provision or all(port.carrier for port in self._mesh.ports.values()):
            self._full_at = now
        if now - self._full_at < FREE_S:
            return False
        self._full_at = now
        return True

    def _wanted(self, now: float) -> dict[str, Port]:
        """The ports that a stranger is on, some time after the last one of the cluster was."""
        strange = {name for name in self._mesh.ports if self._is_strange(name)}
        for name in sorted(strange - set(self._strange)):
            routers.solicit(self._mesh.ports[name])
        self._strange = {name: self._strange.get(name, now) for name in strange}
        return {name: self._mesh.ports[name] for name, since in self._strange.items() if now - since >= STRANGE_S}

    def _is_strange(self, name: str) -> bool:
        """Whether nobody is on a port who has a system: such a one says hello."""
        port, link = self._mesh.ports.get(name), self._mesh.links.get(name)
        if not self._me.provision or port is None or not port.carrier:
            return False
        heard = link is not None and link.neighbour is not None
        return not heard and name not in self._mesh.gateways and self._routers.get(name, 0.0) < time.monotonic()

    async def _offer(self, port: Port) -> None:
        place, folder = place_of(self._me.number, port.index), self._paths.provision
        folder.mkdir(mode=0o755, exist_ok=True)
        dnsmasq = DNSMASQ.format(
            port=port.name, folder=folder, server=PORT, prefix=place.prefix, address=place.address,
            address4=place.address4, first4=place.first4, last4=place.last4,
        )  # fmt: skip
        radvd = RADVD.format(port=port.name, prefix=place.prefix, cluster=self._me.prefix)
        changed = write_if_changed(folder / f"{port.name}.dnsmasq", dnsmasq)
        changed |= write_if_changed(folder / f"{port.name}.radvd", radvd)
        await self._mesh.lend(port.name)
        for address in (f"{place.address}/64", f"{place.address4}/28"):
            await run_async(["ip", "address", "replace", address, "dev", port.name, *_nodad(address)], check=False)
        units = [unit.format(port.name) for unit in PER_PORT]
        await run_async(["systemctl", "restart" if changed else "start", *units], check=False)
        self._offered[port.name] = port
        self._state.record(f"offered {port.name}")
        log.info("%s: no node of the cluster there: offering it a system", port.name)

    async def _withdraw(self, name: str) -> None:
        await withdraw(self._paths, name)
        self._mesh.take_back(name)
        if self._offered.pop(name, None):
            self._state.record(f"offered-lost {name}")

    async def _check(self) -> None:
        """Note where what serves a port did not run twice in a row: another program may have its place."""
        if time.monotonic() < self._check_at:
            return
        self._check_at = time.monotonic() + CHECK_S
        failing = {name: down for name in self._offered if (down := await _not_running(name))}
        self._broken = {name: down for name, down in failing.items() if name in self._failing}
        self._failing = failing

    def _look(self) -> None:
        """Show what the machines do that were heard of lately."""
        if not self._offered and not self._mesh.offers:
            return
        try:
            heard: dict[str, dict[str, Any]] = json.loads(self._paths.provided.read_text())
        except (OSError, ValueError):
            heard = {}
        now = time.time()
        fresh = {name: str(one["text"]) for name, one in heard.items() if abs(now - one["at"]) < SHOWN_S}
        shown = {name: self._broken.get(name) or fresh.get(name, "offered") for name in self._offered}
        if shown != self._mesh.offers and time.monotonic() >= self._tell_at:
            self._tell_at = time.monotonic() + TELL_S
            self._mesh.offers = shown
            self._state.touch()
            self._mesh.wake()


async def end(paths: Paths) -> None:
    """Take back all that is offered: this machine belongs to no cluster any more."""
    for path in paths.provision.glob("*.dnsmasq"):
        await withdraw(paths, path.stem)
    await run_async(["systemctl", "stop", SERVER], check=False)


async def withdraw(paths: Paths, name: str) -> None:
    """Take back what is offered on a port; the file that says that something is goes last."""
    await run_async(["systemctl", "stop", *(unit.format(name) for unit in PER_PORT)], check=False)
    for family, known in (("-6", "fd6b:6d00::/32"), ("-4", "198.19.0.0/16")):
        await run_async(["ip", family, "address", "flush", "dev", name, "to", known], check=False)
    for path in sorted(paths.provision.glob(f"{name}.*"), key=lambda path: path.suffix == ".dnsmasq"):
        path.unlink(missing_ok=True)


async def _not_running(name: str) -> str:
    """What serves a port and does not run, in words; empty when all does."""
    units = [unit.format(name) for unit in PER_PORT]
    # Its status is that of the best of them.
    _, said = await run_async(["systemctl", "is-active", *units], check=False)
    down = [unit for unit, how in zip(PER_PORT, said.split(), strict=False) if how != "active"]
    return f"cannot be offered anything: {' and '.join(map(_program, down))} not running" if down else ""


def _program(unit: str) -> str:
    return unit.removeprefix("kubermesh-").partition("@")[0]


def _nodad(address: str) -> list[str]:
    return ["nodad"] if ":" in address else []
