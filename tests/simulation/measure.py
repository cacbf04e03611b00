"""What is measured on a mesh: how soon it is whole, what it costs, and how long a fault is felt."""

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kmplan.errors import UserError

from .mesh import Mesh, wait_until
from .probe import Probe, longest_gap

TICKS = os.sysconf("SC_CLK_TCK")
# In hello intervals: how long is waited after a fault, for an answer after that, and for links to be as good as new.
WATCH, LATE, HISTORY = 20, 100, 20


@dataclass(frozen=True)
class Cost:
    """What one babeld takes: its share of one core, its resident memory, and what of that is no file's, in MB."""

    core_percent: float
    resident_mb: float
    anonymous_mb: float


def wait_whole(mesh: Mesh, timeout_s: float) -> float | None:
    """Wait until every node has a way to every other; returns seconds, None if not in time.

    Nodes that are whole are looked at again only when all were: on a large mesh looking costs as much as routing.
    """
    left = list(mesh.nodes.values())

    def look() -> bool:
        left[:] = [node for node in left if not mesh.is_whole(node)]
        if not left:
            left[:] = [node for node in mesh.nodes.values() if not mesh.is_whole(node)]
        return not left

    return wait_until(look, timeout_s)


def cost(mesh: Mesh, period_s: float) -> tuple[list[Cost], float]:
    """Look at every babeld for a while; returns what each took, and how busy all cores were with everything (%)."""
    pids = [node.babeld.pid for node in mesh.nodes.values() if node.babeld]
    before, idle, start = [cpu_s(pid) for pid in pids], idle_s(), time.monotonic()
    time.sleep(period_s)
    took, idle = time.monotonic() - start, idle_s() - idle
    used = [cpu_s(pid) - then for pid, then in zip(pids, before, strict=True)]
    costs = [Cost(100 * seconds / took, *memory_mb(pid)) for pid, seconds in zip(pids, used, strict=True)]
    return costs, 100 * (1 - idle / took / (os.cpu_count() or 1))


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far (proc(5), stat: utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def idle_s() -> float:
    """Seconds that this machine's cores had nothing to do so far, together (proc(5), stat: idle and iowait)."""
    fields = Path("/proc/stat").read_text().split(maxsplit=6)
    return (int(fields[4]) + int(fields[5])) / TICKS


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory of a process, and what of it is anonymous (proc(5), status)."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    resident, anonymous = (int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "RssAnon"))
    return resident, anonymous


Fault = Callable[[Mesh, list[int]], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def silent_loss(mesh: Mesh, path: list[int]) -> Iterator[None]:
    """A link in the middle of the path loses all, both ways; its ports keep their carrier."""
    here, there = middle_link(path)
    node = mesh.nodes[here]
    node.lose([mesh.port(here, there)])
    yield
    node.lose_nothing()


@contextlib.contextmanager
def link_down(mesh: Mesh, path: list[int]) -> Iterator[None]:
    """A link in the middle of the path is set down at its far end, so that the near one loses its carrier."""
    here, there = middle_link(path)
    node, port = mesh.nodes[there], mesh.port(there, here)
    node.namespace.run("ip", "link", "set", port, "down")
    yield
    node.namespace.run("ip", "link", "set", port, "up")


@contextlib.contextmanager
def node_death(mesh: Mesh, path: list[int]) -> Iterator[None]:
    """A node in the middle of the path stops at once; its neighbours' ports keep their carrier."""
    node = mesh.nodes[path[len(path) // 2]]
    node.lose(node.ports)
    node.stop()
    yield
    node.forget_routes()
    node.lose_nothing()
    node.start()


FAULTS: dict[str, Fault] = {"silent loss": silent_loss, "link down": link_down, "node death": node_death}


def middle_link(path: list[int]) -> tuple[int, int]:
    """The nodes at the ends of the path's middle link."""
    at = (len(path) - 1) // 2
    return path[at], path[at + 1]


def reroute(mesh: Mesh, fault: Fault, source: random.Random) -> float:
    """Do something to the path between two nodes far apart, and undo it; returns the longest gap in seconds.

    Raises UserError when nothing goes between the two before the fault, or long after it.
    """
    hello_s = mesh.routing.hello_s
    settle(mesh)
    here, there = far_pair(mesh, source)
    one, other = mesh.nodes[here], mesh.nodes[there]
    with Probe(one.namespace, one.facts.address, other.namespace, other.facts.address) as probe:
        probe.wait_answers(time.monotonic(), LATE * hello_s)
        since = time.monotonic()
        with fault(mesh, mesh.path(here, there)):
            time.sleep(WATCH * hello_s)
            probe.wait_answers(time.monotonic(), LATE * hello_s)
            until = time.monotonic()
    return longest_gap(probe.answers, since, until)


def settle(mesh: Mesh) -> None:
    """Wait until the mesh is whole and every link has a history of sixteen hellos, on which its cost depends."""
    limit_s = 60 * mesh.routing.update_s
    if wait_whole(mesh, limit_s) is None:
        raise UserError(f"the mesh is not whole {limit_s:g} s after a fault was undone")
    time.sleep(HISTORY * mesh.routing.hello_s)


def far_pair(mesh: Mesh, source: random.Random) -> tuple[int, int]:
    """A random node, and one of those farthest from it; raises UserError where every node is its neighbour."""
    here = source.choice(sorted(mesh.nodes))
    distances = mesh.distances(here)
    farthest = max(distances.values())
    if farthest < 2:
        raise UserError(f"node {here} has no node between it and any other", "use more nodes, or a lower degree")
    return here, source.choice(sorted(node for node, away in distances.items() if away == farthest))
