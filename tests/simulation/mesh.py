"""A mesh of bare network namespaces: what the agent makes of a machine, without the agent and without a machine."""

import contextlib
import os
import random
import secrets
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from kmagent import babel, network
from kmagent.facts import Facts
from kmcluster.cable import Cable, Port
from kmcluster.random_mesh import add_chords, ordered
from kmcluster.tools import LIBRARIES, LOADER
from kmplan.addresses import AddressPlan, random_prefix
from kmplan.errors import UserError
from kmplan.run import die_with_parent, spawn

from . import namespace
from .namespace import Namespace

# What the agent does to a port when it brings it up (kmagent.mesh), and a node's setting of the image.
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
class Timers:
    """babeld's intervals in seconds."""

    hello_s: float
    update_s: float


def draw(nodes: int, degree: int, seed: int) -> list[Cable]:
    """Cables of a random mesh: a ring through all nodes, and chords until each has `degree` neighbours."""
    source = random.Random(seed)  # noqa: S311
    edges = None
    while edges is None:
        order = source.sample(range(1, nodes + 1), nodes)
        edges = add_chords(source, [ordered(order[at - 1], order[at]) for at in range(nodes)], nodes, degree)
    used = dict.fromkeys(range(1, nodes + 1), 0)
    cables = []
    for number, (a, b) in enumerate(sorted(edges), 1):
        cables.append(Cable(number=number, a=Port(a, used[a]), b=Port(b, used[b])))
        used[a] += 1
        used[b] += 1
    return cables


def facts_of(plan: AddressPlan, number: int) -> Facts:
    """What an agent would know of its node."""
    return Facts(
        cluster="simulation", name=f"node-{number}", number=number, role="worker", image="", prefix=str(plan.prefix),
        address=str(plan.node(number)), address4=str(plan.node4(number)), pods=str(plan.pods(number)),
        pods4=str(plan.pods4(number)), services=str(plan.services), services4=str(plan.services4), api=str(plan.api),
        join=str(plan.join), dns=str(plan.dns), dns4=str(plan.dns4),
    )  # fmt: skip


def configuration(facts: Facts, ports: Iterable[str], key: str, socket: Path, timers: Timers) -> str:
    """The agent's own configuration of babeld, with these intervals."""
    text = babel.configuration(facts, [(port, key) for port in ports], socket, timers.hello_s)
    agents = f"update-interval {babel.UPDATE_S * timers.hello_s / babel.HELLO_S:g}"
    if agents not in text:
        raise ValueError(f"the agent's configuration has no {agents}")
    return text.replace(agents, f"update-interval {timers.update_s:g}")


def babeld_argv(tree: Path, config: Path) -> list[str]:
    """The argv of the image's babeld, with the arguments of its unit, by the loader of its tree."""
    loader = [str(tree / LOADER), "--library-path", str(tree / LIBRARIES)]
    return [*loader, str(tree / "usr/sbin/babeld"), "-c", str(config), "-S", "", "-I", ""]


def key6(prefix: IPv6Network) -> str:
    """How /proc/net/ipv6_route writes a destination."""
    return f"{int(prefix[0]):032x} {prefix.prefixlen:02x}"


def key4(prefix: IPv4Network) -> str:
    """How /proc/net/route writes a destination: in the byte order of this machine, and its mask."""
    return " ".join(f"{int.from_bytes(part.packed, 'little'):08X}" for part in (prefix[0], prefix.netmask))


def read_ways(ipv6_route: str, route: str) -> dict[str, str]:
    """Destinations with a way, and the port that leads there, of the two files in /proc/PID/net."""
    lines6 = (line.split() for line in ipv6_route.splitlines())
    ways = {f"{words[0]} {words[1]}": words[9] for words in lines6 if not int(words[8], 16) & REJECT}
    lines4 = (line.split() for line in route.splitlines()[1:])
    return ways | {f"{words[1]} {words[7]}": words[0] for words in lines4 if not int(words[3], 16) & REJECT}


class Node:
    """One node: its namespace, its ports and its babeld."""

    def __init__(self, facts: Facts, ports: Sequence[str], folder: Path, key: str, timers: Timers) -> None:
        self.facts, self.ports, self.namespace = facts, list(ports), namespace.new()
        self.babeld: subprocess.Popen[bytes] | None = None
        self.config, self.log = folder / f"{facts.number}.conf", folder / f"{facts.number}.log"
        self.config.write_text(configuration(facts, ports, key, folder / f"{facts.number}.sock", timers))
        self.namespace.do(self._write_sysctls)

    @property
    def announced(self) -> set[str]:
        """What every other node should have a way to: keys as of `read_ways`."""
        node, pods, pods4 = f"{self.facts.address}/128", self.facts.pods, self.facts.pods4
        return {key6(IPv6Network(node)), key6(IPv6Network(pods)), key4(IPv4Network(pods4))}

    def bring_up(self) -> None:
        """Addresses and routes as the agent makes them, and all ports up."""
        commands = [*network.node_commands(self.facts), *(f"link set {port} up" for port in self.ports)]
        self.namespace.run("ip", "-batch", "-", text="\n".join(commands))

    def has_links(self) -> bool:
        """Whether all ports have their link-local address: the kernel gives it some time after the carrier."""
        addresses = self.namespace.do(Path("/proc/thread-self/net/if_inet6").read_text)
        return sum(line.startswith("fe80") for line in addresses.splitlines()) == len(self.ports)

    def start(self, tree: Path, gate: Path = Path("/dev/null")) -> None:
        """Start babeld; it waits until `gate` can be read to its end."""
        wait = ["sh", "-c", f"read _ < {gate}; exec \"$@\"", "babeld"]
        argv = die_with_parent(self.namespace.inside([*wait, *babeld_argv(tree, self.config)]))
        self.babeld = spawn(argv, log=self.log)

    def stop(self) -> None:
        """Kill babeld, if it runs."""
        if self.babeld:
            self.babeld.send_signal(signal.SIGKILL)
            self.babeld.wait()
            self.babeld = None

    def ways(self) -> dict[str, str]:
        """What babeld has a way to, and by which port; nothing while it is stopped. Raises UserError when it has ended."""
        if self.babeld is None:
            return {}
        if self.babeld.poll() is not None:
            words = self.log.read_text().strip().splitlines()
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

    @staticmethod
    def _write_sysctls() -> None:
        for name, value in SYSCTLS.items():
            Path("/proc/sys/net", name).write_text(f"{value}\n")


class Mesh:
    """All nodes and the cables between them; made whole by `open_mesh`."""

    def __init__(self, nodes: dict[int, Node], cables: Sequence[Cable], tree: Path, timers: Timers) -> None:
        self.nodes, self.cables, self.tree, self.timers = nodes, list(cables), tree, timers
        self._far_end = {(one.node, one.name): other.node for cable in cables for one, other in _both_ways(cable)}
        self._wanted = set().union(*(node.announced for node in nodes.values()))

    def start(self) -> None:
        """Start babeld on all nodes at the same moment."""
        reader, writer = os.pipe()
        try:
            gate = Path(f"/proc/{os.getpid()}/fd/{reader}")
            for node in self.nodes.values():
                node.start(self.tree, gate)
        finally:
            os.close(writer)
            os.close(reader)

    def is_whole(self, node: Node) -> bool:
        """Whether a node has a way to every other."""
        return self._wanted - node.announced <= node.ways().keys()

    def path(self, source: int, target: int) -> list[int]:
        """The nodes that a packet passes, both ends included; raises LookupError when there is no way now."""
        passed = [source]
        key = key6(IPv6Network(f"{self.nodes[target].facts.address}/128"))
        while passed[-1] != target:
            port = self.nodes[passed[-1]].ways()[key]
            passed.append(self._far_end[passed[-1], port])
            if len(passed) > len(self.nodes):
                raise LookupError(f"packets from {source} to {target} go round: {passed}")
        return passed

    def port(self, node: int, neighbour: int) -> str:
        """The port of a node that leads to a neighbour."""
        return next(name for (here, name), there in self._far_end.items() if (here, there) == (node, neighbour))

    def distances(self, start: int) -> dict[int, int]:
        """How many cables away every node is."""
        found, queue = {start: 0}, deque([start])
        while queue:
            here = queue.popleft()
            for (node, _), there in self._far_end.items():
                if node == here and there not in found:
                    found[there] = found[here] + 1
                    queue.append(there)
        return found


@contextlib.contextmanager
def open_mesh(count: int, degree: int, seed: int, tree: Path, timers: Timers) -> Iterator[Mesh]:
    """Make a mesh, with all ports up and babeld not started; whatever happens, nothing of it is left."""
    cables = draw(count, degree, seed)
    ends = [end for cable in cables for end in (cable.a, cable.b)]
    plan, key = AddressPlan(random_prefix()), secrets.token_hex(16)
    nodes: dict[int, Node] = {}
    with tempfile.TemporaryDirectory(prefix="kubermesh-simulation-") as folder:
        try:
            for number in range(1, count + 1):
                ports = [end.name for end in ends if end.node == number]
                nodes[number] = Node(facts_of(plan, number), ports, Path(folder), key, timers)
            _connect(nodes, cables)
            for node in nodes.values():
                node.bring_up()
            wait_until(lambda: all(node.has_links() for node in nodes.values()), 30)
            yield Mesh(nodes, cables, tree, timers)
        finally:
            for node in nodes.values():
                node.stop()
                node.namespace.close()


def wait_until(look: Callable[[], bool], timeout_s: float, period_s: float = 0.05) -> float | None:
    """Wait until `look` is true; returns the seconds it took, None when it was not in time."""
    start = time.monotonic()
    while not look():
        if time.monotonic() - start > timeout_s:
            return None
        time.sleep(period_s)
    return time.monotonic() - start


def _connect(nodes: dict[int, Node], cables: Iterable[Cable]) -> None:
    def place(end: Port) -> str:
        return f"name {end.name} netns {nodes[end.node].namespace.path}"

    workshop = namespace.new()
    batch = "".join(f"link add {place(cable.a)} type veth peer {place(cable.b)}\n" for cable in cables)
    workshop.run("ip", "-batch", "-", text=batch)
    workshop.close()


def _both_ways(cable: Cable) -> list[tuple[Port, Port]]:
    return [(cable.a, cable.b), (cable.b, cable.a)]
