"""This node's addresses and routes. Every command may be repeated without harm."""

import functools
import logging
import socket

from kmagent.facts import Facts
from kmagent.programs import run_async
from kmplan.addresses import AddressPlan

log = logging.getLogger(__name__)

# A routing protocol's number of our own (/etc/iproute2/rt_protos), and how long such a route lasts, in seconds.
DETOUR, DETOUR_S = 201, 10
# Before babeld's own routes, which have the metric 1024, and after a node's own way out, which has 512.
AROUND = f"proto {DETOUR} metric 768"
# Another one: of a route that stands for an anycast address which is about to be withdrawn.
LEAVING = 202


async def set_up(facts: Facts) -> None:
    """Give this node its name, addresses and routes."""
    socket.sethostname(facts.name)
    await ip_batch(node_commands(facts))
    log.info("%s has %s", facts.name, ", ".join(facts.addresses))


def node_commands(facts: Facts) -> list[str]:
    """Return the `ip` commands that make a node of a machine.

    What the mesh does not know is unreachable, even where there is a default route: kubelet mounts nothing while it waits
    for an API server that neither answers nor refuses. The pods' prefixes are unreachable as a whole, so that they can be
    announced as a whole; each pod has its own route.
    Services need a route or nothing local would reach the rules that translate them; its source must be the node.
    `nodad`: without it an address is tentative for a moment and no route may name it.
    """
    return [
        "link set lo up",
        f"address replace {facts.address}/128 dev lo nodad",
        f"address replace {facts.address4}/32 dev lo",
        f"route replace unreachable {facts.prefix}",
        f"route replace unreachable {facts.pods}",
        f"route replace unreachable {facts.pods4}",
        f"route replace {facts.services} dev lo src {facts.address}",
        f"route replace {facts.services4} dev lo src {facts.address4}",
    ]


async def give_back() -> None:
    """Take back what makes a node of a machine: addresses on `lo`, routes of every kind that the agent sets, ways out.

    Removed, it may come back with another number, and its old one is another node's then.
    """
    await run_async(["ip", "address", "flush", "dev", "lo", "scope", "global"], check=False)
    for family in ("-4", "-6"):
        # What ip(8) sets by itself, and what the agent copies for gateways.
        for protocol in ("boot", "static"):
            await run_async(["ip", family, "route", "flush", "proto", protocol], check=False)
    await leave_detours()


def anycast_commands(address: str, present: bool) -> list[str]:
    """Return the commands that take or leave an anycast address, which is never the source of anything."""
    if present:
        return [f"address replace {address}/128 dev lo preferred_lft 0 nodad"]
    return [f"address del {address}/128 dev lo"]


def detour_command(address: str, via: str, port: str) -> str:
    """Return the command that leads an anycast address to another node for some seconds, if babeld does not."""
    return f"route replace {address}/128 via {via} dev {port} proto {DETOUR} metric 2048 expires {DETOUR_S}"


def leaving_command(address: str, present: bool) -> str:
    """Return the command that makes or takes a route which babeld announces as the worst of all ways to an anycast address."""
    action = "replace" if present else "del"
    return f"route {action} unreachable {address}/128 proto {LEAVING} metric 2048"


def take_detour(facts: Facts, prefix: str, via: str, port: str) -> str:
    """Return the command that leads a prefix by a neighbour, in the place of babeld's routes (detours.py)."""
    if ":" in prefix:
        return f"route replace {prefix} via {via} dev {port} src {facts.address} {AROUND} expires {DETOUR_S}"
    return f"route replace {prefix} via inet6 {via} dev {port} src {facts.address4} {AROUND}"


def leave_detour(prefix: str) -> str:
    """Return the command that takes such a route back."""
    return f"route del {prefix} {AROUND}"


async def leave_detours() -> None:
    """Take back all detours, also those that an agent before this one has left."""
    for family in ("-4", "-6"):
        await run_async(["ip", family, "route", "flush", *AROUND.split()], check=False)
    await run_async(["ip", "-6", "route", "flush", "proto", str(LEAVING)], check=False)


async def has_address(address: str) -> bool:
    """Tell whether `lo` has an address."""
    _, text = await run_async(["ip", "-6", "-oneline", "address", "show", "dev", "lo", "to", address], check=False)
    return address in text


async def ip_batch(commands: list[str], *, force: bool = False) -> None:
    """Run `ip` commands in one process; with `force` one that fails, for example as its port has gone, stops no other."""
    options = ["-force"] if force else []
    await run_async(["ip", *options, "-batch", "-"], input=_script(commands), check=not force)


def node_address(prefix: str, number: int) -> str:
    """Return the address of another node of the cluster with this prefix."""
    return str(AddressPlan.parse(prefix).node(number))


def node_addresses(prefix: str, number: int) -> list[str]:
    """Return the addresses of a node, IPv6 and IPv4."""
    return [node_address(prefix, number), str(AddressPlan.parse(prefix).node4(number))]


def owner(cluster_prefix: str, prefix: str) -> int | None:
    """Return the number of the node that a prefix of the mesh belongs to; None when it is no single node's."""
    return AddressPlan.parse(cluster_prefix).owner(prefix)


def node_of(cluster_prefix: str, address: str) -> int | None:
    """Return the number of the node whose own address this is; None when it is no node's, but a pod's perhaps."""
    number = owner(cluster_prefix, f"{address}/128") if ":" in address and "%" not in address else None
    return number if number is not None and node_address(cluster_prefix, number) == address else None


def pod_prefixes(prefix: str, number: int) -> list[str]:
    """Return the prefixes of a node's pods, IPv6 and IPv4."""
    plan = AddressPlan.parse(prefix)
    return [str(plan.pods(number)), str(plan.pods4(number))]


@functools.cache
def peer_url(prefix: str, number: int) -> str:
    """Return where a node's etcd listens for its peers."""
    return f"https://[{node_address(prefix, number)}]:2380"


def _script(commands: list[str]) -> str:
    return "".join(f"{command}\n" for command in commands)
