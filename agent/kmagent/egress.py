"""Ways out of the cluster: ports that lead outside get a default route, which the mesh announces while its router answers.

systemd-networkd configures such a port (addresses given, DHCP, router advertisements) with its routes in a table of its
own; the agent copies the default routes whose router answers into the main table, from where babeld takes them.
"""

import asyncio
import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmagent import babel
from kmagent.facts import Facts
from kmagent.mesh import Mesh
from kmagent.programs import run_async
from kmagent.state import State
from kmplan.files import write_if_changed

log = logging.getLogger(__name__)

TABLE = 9440
NETWORKS = Path("/run/systemd/network")
PERIOD_S = 1.0
# How soon this looks again while nobody knows which ports there are.
STARTING_S = 0.2
BAD_TO_WITHDRAW = 2
METRIC = 512

NETWORK = """\
[Match]
Name={port}

[Link]
RequiredForOnline=no

[Network]
LinkLocalAddressing=ipv6
IPv6AcceptRA={dynamic}
DHCP={dynamic}
KeepConfiguration=no
{addresses}
[DHCPv4]
RouteTable={table}
UseDNS=no
UseHostname=no

[IPv6AcceptRA]
RouteTable={table}
UseDNS=no
{routes}"""


@dataclass(frozen=True)
class Router:
    """A default route's next hop: its family (4 or 6), address, and the port it is behind."""

    family: int
    address: str
    port: str


def network_file(gateway: dict[str, Any]) -> str:
    """Return a port's systemd.network(5): what the cluster file gives, or whatever the network out there offers."""
    routes = "".join(f"\n[Route]\nGateway={router}\nTable={TABLE}\n" for router in gateway["routers"])
    return NETWORK.format(
        port=gateway["port"],
        table=TABLE,
        dynamic="no" if gateway["addresses"] else "yes",
        addresses="".join(f"Address={address}\n" for address in gateway["addresses"]),
        routes=routes,
    )


def default_routes(listing: str, family: int) -> set[Router]:
    """Read `ip --json route show`: the routers of default routes, also of those that the kernel has made one route of."""
    try:
        entries = json.loads(listing or "[]")
    except ValueError:
        return set()
    hops = [hop for entry in entries if entry.get("dst") == "default" for hop in [entry, *entry.get("nexthops", [])]]
    return {Router(family, str(hop["gateway"]), str(hop["dev"])) for hop in hops if "gateway" in hop and "dev" in hop}


def choose(good: Iterable[Router], announced: Collection[Router]) -> set[Router]:
    """Return one router of each family, the one that is announced already first: the kernel has one route of a metric."""
    found: dict[int, Router] = {}
    for router in sorted(good, key=lambda one: (one not in announced, one.port, one.address)):
        found.setdefault(router.family, router)
    return set(found.values())


async def run(state: State, mesh: Mesh, facts: Facts, routers: Mapping[str, float]) -> None:
    """Configure this node's gateway ports, and announce what leads outside while it does.

    `routers` are the ports on which a router was heard.
    """
    configured = {str(gateway["port"]): gateway for gateway in facts.gateways}
    if not configured and not facts.discover_gateways:
        return
    misses: dict[Router, int] = {}
    # What an agent before this one announced, also by routers that it heard.
    announced = await _routers("main", "proto", "static")
    heard = {router.port for router in announced}
    known: frozenset[str] = frozenset()
    while True:
        if not mesh.ports:
            await asyncio.sleep(STARTING_S)
            continue
        heard |= set(routers)
        for port in heard - set(configured) if facts.discover_gateways else ():
            log.info("%s: a router is heard, the port leads outside", port)
            configured[port] = {"port": port, "addresses": [], "routers": []}
        ports = frozenset(configured) & set(mesh.ports)
        if ports != mesh.gateways:
            await mesh.set_gateways(ports)
        if ports != known:
            known = ports
            await _configure([configured[port] for port in sorted(ports)])
        misses = {
            router: await _probe(router, misses.get(router, BAD_TO_WITHDRAW)) for router in await _routers(str(TABLE))
        }
        good = {router for router, missed in misses.items() if missed < BAD_TO_WITHDRAW}
        now_so = await _announce(choose(good, announced), announced)
        for router in sorted(now_so ^ announced, key=str):
            state.record(f"gateway {'up' if router in now_so else 'down'} {router.address} on {router.port}")
        announced = now_so
        await asyncio.sleep(PERIOD_S * facts.probe_scale)


async def _configure(gateways: list[dict[str, Any]]) -> None:
    NETWORKS.mkdir(parents=True, exist_ok=True)
    # systemd-networkd has a user of its own, who has to read this.
    NETWORKS.chmod(0o755)
    for gateway in gateways:
        path = NETWORKS / f"10-kubermesh-{gateway['port']}.network"
        await asyncio.to_thread(write_if_changed, path, network_file(gateway))
    await run_async(["systemctl", "start", "systemd-networkd.service"], check=False)
    await run_async(["networkctl", "reload"], check=False)


async def end() -> None:
    """Leave the ports that led outside: this node was removed."""
    for path in NETWORKS.glob("10-kubermesh-*.network"):
        path.unlink()
    await run_async(["networkctl", "reload"], check=False)


async def _routers(table: str, *selector: str) -> set[Router]:
    """Return the routers of a routing table's default routes, or of those that ip-route(8) selects."""
    found: set[Router] = set()
    for family in (4, 6):
        argv = ["ip", f"-{family}", "--json", "route", "show", "table", table, *selector]
        found |= default_routes((await run_async(argv, check=False))[1], family)
    return found


async def _probe(router: Router, missed: int) -> int:
    """Ask a router for an echo; returns how often in a row it has not answered."""
    argv = ["ping", "-n", "-q", "-c", "1", "-W", "1", "-I", router.port, router.address]
    code, _ = await run_async(argv, check=False)
    return 0 if code == 0 else missed + 1


async def _announce(wanted: set[Router], announced: set[Router]) -> set[Router]:
    """Have the wanted default routes in the main table, where babeld finds them by their protocol; returns those there are."""
    for router in announced - wanted:
        await run_async(["ip", f"-{router.family}", "route", "del", *_route(router)], check=False)
    there = set()
    for router in wanted:
        code, said = await run_async(["ip", f"-{router.family}", "route", "replace", *_route(router)], check=False)
        if code == 0:
            there.add(router)
        else:
            log.warning("%s on %s: no route: %s", router.address, router.port, said.strip())
    if there != announced:
        # The kernel does not tell of IPv4 routes that go with their port: have babeld look.
        await run_async(["systemctl", "kill", "--signal=SIGUSR2", babel.UNIT], check=False)
    return there


def _route(router: Router) -> list[str]:
    """Return a route's words; `onlink`, as the prefix of a leased address is in the table of its own, too."""
    words = ["default", "via", router.address, "dev", router.port, "onlink"]
    return [*words, "proto", "static", "metric", str(METRIC)]
