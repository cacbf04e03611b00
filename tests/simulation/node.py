"""One simulated node: what the agent makes of a machine, in a bare network namespace, with the image's babeld."""

import signal
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from kmagent import babel, network
from kmagent.facts import Facts
from kmcluster.tools import LIBRARIES, LOADER
from kmplan.addresses import AddressPlan
from kmplan.errors import UserError
from kmplan.run import die_with_parent, spawn

from . import namespace

# A node's setting of the image (60-kubermesh.conf), and what the agent does to a port when it brings it up.
SYSCTLS = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv6/conf/default/forwarding": "1",
    "ipv6/conf/default/dad_transmits": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/autoconf": "0",
    "ipv6/conf/default/accept_redirects": "0",
}
# Nothing passes these ports, and their carrier stays.
LOSS = """\
table inet loss {{
  chain in {{ type filter hook prerouting priority -300; iifname {{ {ports} }} drop; }}
  chain out {{ type filter hook postrouting priority 300; oifname {{ {ports} }} drop; }}
}}
"""
REJECT = 0x0200  # RTF_REJECT of route(8): a route that leads nowhere


@dataclass(frozen=True)
class Routing:
    """How babeld is told to route: its intervals in seconds, and the mesh key (hex)."""

    hello_s: float
    update_s: float
    key: str


def facts_of(plan: AddressPlan, number: int) -> Facts:
    """What an agent would know of its node."""
    return Facts(
        cluster="simulation", name=f"node-{number}", number=number, role="worker", image="", prefix=str(plan.prefix),
        address=str(plan.node(number)), address4=str(plan.node4(number)), pods=str(plan.pods(number)),
        pods4=str(plan.pods4(number)), services=str(plan.services), services4=str(plan.services4), api=str(plan.api),
        join=str(plan.join), dns=str(plan.dns), dns4=str(plan.dns4),
    )  # fmt: skip


def configuration(facts: Facts, ports: Iterable[str], socket: Path, routing: Routing) -> str:
    """The agent's own configuration of babeld, with these intervals; ValueError when they cannot be put in."""
    text = babel.configuration(facts, [(port, routing.key) for port in ports], socket, routing.hello_s)
    agents = f"update-interval {babel.UPDATE_S * routing.hello_s / babel.HELLO_S:g}"
    if agents not in text:
        raise ValueError(f"the agent's configuration has no {agents}")
    return text.replace(agents, f"update-interval {routing.update_s:g}")


def babeld_argv(tree: Path, config: Path) -> list[str]:
    """The argv of the image's babeld, with the arguments of its unit, by the loader of its tree."""
    loader = [str(tree / LOADER), "--library-path", str(tree / LIBRARIES)]
    return [*loader, str(tree / "usr/sbin/babeld"), "-c", str(config), "-S", "", "-I", ""]


def key6(prefix: IPv6Network) -> str:
    """How /proc/net/ipv6_route writes a destination."""
    return f"{int(prefix[0]):032x} {prefix.prefixlen:02x}"


def key4(prefix: IPv4Network) -> str:
    """How /proc/net/route writes a destination and its mask: in the byte order of this machine."""
    return " ".join(f"{int.from_bytes(part.packed, 'little'):08X}" for part in (prefix[0], prefix.netmask))


def read_ways(ipv6_route: str, route: str) -> dict[str, str]:
    """Destinations with a way, and the port that leads there, of the two files in /proc/PID/net."""
    lines6 = (line.split() for line in ipv6_route.splitlines())
    ways = {f"{words[0]} {words[1]}": words[9] for words in lines6 if not int(words[8], 16) & REJECT}
    lines4 = (line.split() for line in route.splitlines()[1:])
    return ways | {f"{words[1]} {words[7]}": words[0] for words in lines4 if not int(words[3], 16) & REJECT}


class Node:
    """A namespace, its ports and its babeld, which does not run yet."""

    def __init__(self, facts: Facts, ports: Sequence[str], folder: Path, tree: Path, routing: Routing) -> None:
        self.facts, self.ports = facts, list(ports)
        self.babeld: subprocess.Popen[bytes] | None = None
        self._config, self._log, self._socket = (folder / f"{facts.number}.{kind}" for kind in ("conf", "log", "sock"))
        self._config.write_text(configuration(facts, ports, self._socket, routing))
        self._tree = tree
        self.namespace = namespace.new()
        self.namespace.do(_write_sysctls)

    @property
    def address_key(self) -> str:
        """The node's address as a key of `ways`."""
        return key6(IPv6Network(f"{self.facts.address}/128"))

    @property
    def announced(self) -> set[str]:
        """What every other node should have a way to, as keys of `ways`."""
        return {self.address_key, key6(IPv6Network(self.facts.pods)), key4(IPv4Network(self.facts.pods4))}

    def bring_up(self) -> None:
        """Addresses and routes as the agent makes them, and all ports up."""
        commands = [*network.node_commands(self.facts), *(f"link set {port} up" for port in self.ports)]
        self.namespace.run("ip", "-batch", "-", text="\n".join(commands))

    def has_links(self) -> bool:
        """Whether all ports have their link-local address: the kernel gives it some time after the carrier."""
        addresses = self.namespace.do(Path("/proc/thread-self/net/if_inet6").read_text)
        return sum(line.startswith("fe80") for line in addresses.splitlines()) == len(self.ports)

    def start(self, gate: Path = Path("/dev/null")) -> None:
        """Start babeld; it waits until `gate` can be read to its end."""
        wait = ["sh", "-c", f'read _ < {gate}; exec "$@"', "babeld"]
        argv = self.namespace.inside([*wait, *babeld_argv(self._tree, self._config)])
        self.babeld = spawn(die_with_parent(argv), log=self._log)

    def stop(self) -> None:
        """Kill babeld, if it runs."""
        if self.babeld:
            self.babeld.send_signal(signal.SIGKILL)
            self.babeld.wait()
            self.babeld = None
            # babeld does not start where a killed one left its socket.
            self._socket.unlink(missing_ok=True)

    def ways(self) -> dict[str, str]:
        """What there is a way to, and by which port; nothing while babeld is stopped.

        Raises UserError when it has ended by itself.
        """
        if self.babeld is None:
            return {}
        if self.babeld.poll() is not None:
            words = self._log.read_text().strip().splitlines()
            raise UserError(f"{self.facts.name}: babeld ended: {words[-1] if words else 'without a word'}")
        folder = Path(f"/proc/{self.babeld.pid}/net")
        return read_ways((folder / "ipv6_route").read_text(), (folder / "route").read_text())

    def lose(self, ports: Iterable[str]) -> None:
        """Let nothing through these ports, silently."""
        quoted = ", ".join(f'"{port}"' for port in ports)
        self.namespace.run("nft", "-f", "-", text=LOSS.format(ports=quoted))

    def lose_nothing(self) -> None:
        """Undo `lose`."""
        self.namespace.run("nft", "delete", "table", "inet", "loss")

    def forget_routes(self) -> None:
        """Remove what a babeld that was killed left in the kernel, as a power cycle does."""
        for family in ("-6", "-4"):
            self.namespace.run("ip", family, "route", "flush", "proto", "babel")


def _write_sysctls() -> None:
    for name, value in SYSCTLS.items():
        Path("/proc/sys/net", name).write_text(f"{value}\n")
