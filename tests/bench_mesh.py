"""Figures of a ring of five machines: how soon it is up, how long a fault is felt, and what it costs to do nothing."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from tests.row import ROOT, Row, kmbuild, spread
from tests.simulation import namespace
from tests.simulation.measure import cpu_s, memory_mb
from tests.simulation.mesh import wait_until
from tests.simulation.probe import Probe, longest_gap
from tests.simulation.report import Figures

from kmbuild.locate import locate_image
from kmcluster import access, bench, cabling, state, testimage
from kmcluster.drivers import driver_of
from kmcluster.state import Cluster, Machine
from kmplan import document
from kmplan.errors import UserError
from kmplan.run import run

NAME = "bench"
UP = "kmbuild cluster up ring5"
# Nodes with pods; what is between two of them goes through the third, which is not the seed.
ENDS, MIDDLE = ("2", "4"), "3"
FAULTS_PER_REPEAT = 4
SETTLE_S, WATCH_S = 4.0, 4.0
IDLE_AFTER_S, IDLE_FOR_S = 120.0, 60.0
SCALE = "python -m tests.simulation --nodes 16,50,100,200"

POD = """\
apiVersion: v1
kind: Pod
metadata: {{name: probe-{number}}}
spec:
  nodeName: {node}
  automountServiceAccountToken: false
  tolerations: [{{operator: Exists}}]
  securityContext: {{runAsUser: 1000, runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
  - name: probe
    image: {image}
    imagePullPolicy: Never
    command: [sleep, "1000000"]
    securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
---
"""


@contextlib.contextmanager
def ring(*options: str | Path) -> Iterator[tuple[float, Cluster]]:
    """Five machines in a ring, while they are needed; gives the seconds that they took, too."""
    try:
        seconds, _ = kmbuild("cluster", "up", "ring5", "--name", NAME, *options)
        yield seconds, state.load(NAME)
    finally:
        kmbuild("cluster", "down", NAME)


def ring_up(repeat: int) -> list[Row]:
    """From power on of a seed and four blank machines until all are Ready and three of them vote."""
    times = []
    for _ in range(repeat):
        with ring() as (seconds, _cluster):
            times.append(seconds)
    return [Row("ring of five: power on to all Ready, three voters", "<= 40 s", spread(times), UP)]


def reroute(repeat: int) -> list[Row]:
    """The longest silence between two pods after a fault on the way between them."""
    with tempfile.TemporaryDirectory() as folder:
        busybox = locate_image(ROOT / "out").tools / "usr/bin/busybox"
        archive = testimage.make_archive(busybox, Path(folder) / "busybox.tar")
        with ring("--load", archive) as (_, cluster):
            addresses = start_pods(cluster)
            gaps = {
                name: [gap(cluster, addresses, ends, fault) for _ in range(FAULTS_PER_REPEAT * repeat)]
                for name, ends, fault, *_ in FAULTS
            }
    return [
        Row(f"ring of five: {name}, longest gap", target, spread(gaps[name], 2), command)
        for name, _, _, target, command in FAULTS
    ]


def start_pods(cluster: Cluster) -> dict[str, str]:
    """Start a pod at each end and one between; returns their IPv6 addresses by the machines' numbers."""
    numbers = (*ENDS, MIDDLE)
    pods = (POD.format(number=number, node=cluster.machine(number).name, image=testimage.NAME) for number in numbers)
    kubectl(cluster, "apply", "-f", "-", given="".join(pods))
    kubectl(cluster, "wait", "--for=condition=Ready", "--timeout=120s", *(f"pod/probe-{number}" for number in numbers))
    found = {number: json.loads(kubectl(cluster, "get", "pod", f"probe-{number}", "-o", "json")) for number in numbers}
    return {
        number: next(one["ip"] for one in pod["status"]["podIPs"] if ":" in one["ip"]) for number, pod in found.items()
    }


def kubectl(cluster: Cluster, *arguments: str, given: str | None = None) -> str:
    """Run kubectl as the administrator."""
    argv, environment = access.kubectl(cluster)
    return run([*argv, *arguments], env=environment, input=given).stdout


Fault = Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def cable_cut() -> Iterator[None]:
    """The cable loses its carrier at both ends."""
    cabling.change(NAME, ENDS[0], MIDDLE, "cut", None, None)
    yield
    cabling.change(NAME, ENDS[0], MIDDLE, "plug", None, None)


@contextlib.contextmanager
def cable_lossy() -> Iterator[None]:
    """The cable loses everything, both ways, and keeps its carrier."""
    cabling.change(NAME, ENDS[0], MIDDLE, "lossy", 100, None)
    yield
    cabling.change(NAME, ENDS[0], MIDDLE, "plug", None, None)


@contextlib.contextmanager
def node_dead() -> Iterator[None]:
    """The node in the middle loses its power."""
    bench.power(NAME, MIDDLE, "cut")
    yield
    bench.power(NAME, MIDDLE, "on")


# What it is called, between the pods of which machines, the fault, what it may take, and how it is made by hand.
FAULTS: list[tuple[str, tuple[str, str], Fault, str, str]] = [
    ("cable pulled", ENDS, cable_cut, "<= 0.2 s", "kmbuild cluster cable 2 3 cut"),
    ("cable pulled between two pods", (ENDS[0], MIDDLE), cable_cut, "<= 0.2 s", "kmbuild cluster cable 2 3 cut"),
    ("silent loss", ENDS, cable_lossy, "<= 0.7 s", "kmbuild cluster cable 2 3 lossy --loss 100"),
    ("node dead", ENDS, node_dead, "<= 0.9 s", "kmbuild cluster power 3 cut"),
]


def gap(cluster: Cluster, addresses: dict[str, str], ends: tuple[str, str], fault: Fault) -> float:
    """Make a fault and undo it, on a ring that is as good as new; returns the longest gap in seconds."""
    wait_for("the way by the cable", lambda: goes_by_cable(addresses, ends), 180)
    time.sleep(SETTLE_S)
    here, there = ends
    spaces = [pod_namespace(cluster.machine(number), addresses[number]) for number in ends]
    try:
        with Probe(spaces[0], addresses[here], spaces[1], addresses[there]) as probe:
            probe.wait_answers(time.monotonic(), 10)
            since = time.monotonic()
            with fault():
                time.sleep(WATCH_S)
                probe.wait_answers(time.monotonic(), 30)
                until = time.monotonic()
    finally:
        for space in spaces:
            space.close()
    seconds = longest_gap(probe.answers, since, until)
    print(f"  {fault.__name__}, {' to '.join(ends)}: {seconds:.2f} s", file=sys.stderr, flush=True)
    return seconds


def goes_by_cable(addresses: dict[str, str], ends: tuple[str, str]) -> bool:
    """Whether all nodes are ready, and the way between the pods leads by or to the middle one, there and back."""
    cluster = state.load(NAME)
    driver = driver_of(cluster)
    statuses = [driver.read_status(machine) or {} for machine in cluster.machines]
    if any(status.get("state") != "ready" for status in statuses):
        return False
    return all(
        port_to(cluster, here, addresses[there]) == port_of_cable(cluster, here, there if here == MIDDLE else MIDDLE)
        for here, there in (ends, ends[::-1])
    )


def port_to(cluster: Cluster, number: str, address: str) -> str:
    """The port by which a node sends to an address."""
    argv = ["ip", "-6", "-json", "route", "get", address]
    shown = driver_of(cluster).execute(cluster.machine(number), argv).stdout
    routes: list[dict[str, Any]] = json.loads(shown or "[]")
    return str(routes[0].get("dev", "")) if routes else ""


def port_of_cable(cluster: Cluster, number: str, other: str) -> str:
    """A node's port whose cable leads to another."""
    cable, turned = cabling.find(cluster, number, other)
    return (cable.b if turned else cable.a).name


def pod_namespace(machine: Machine, address: str) -> namespace.Namespace:
    """Hold the network namespace of the pod with this address."""
    wanted = f"{int(IPv6Address(address)):032x}"
    for pid in processes(machine):
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{pid}/net/if_inet6").read_text():
                return namespace.of_process(pid)
    raise UserError(f"no process on {machine.name} has the address {address}")


def processes(machine: Machine) -> list[int]:
    """All processes in a machine, by their ids out here."""
    tree = os.walk(machine.cgroups[0])
    return [int(pid) for folder, _, _ in tree for pid in (Path(folder) / "cgroup.procs").read_text().split()]


def wait_for(what: str, look: Callable[[], bool], timeout_s: float) -> None:
    """Wait; raises UserError when it does not come."""
    if wait_until(look, timeout_s, 0.5) is None:
        raise UserError(f"{what}: not within {timeout_s:g} s")


def idle(_repeat: int) -> list[Row]:
    """What five machines take that have nothing to do, and what the agent has in it."""
    with ring() as (_, cluster):
        time.sleep(IDLE_AFTER_S)
        agents = [agent(machine) for machine in cluster.machines]
        before, start = [cgroup_cpu_s(machine) for machine in cluster.machines], time.monotonic()
        agents_before = [cpu_s(pid) for pid in agents]
        time.sleep(IDLE_FOR_S)
        took = time.monotonic() - start
        used = sum(map(cgroup_cpu_s, cluster.machines)) - sum(before)
        by_agent = [100 * (cpu_s(pid) - then) / took for pid, then in zip(agents, agents_before, strict=True)]
        memory_gb = sum(map(proportional_mb, cluster.machines)) / 1000
        agent_mb = [memory_mb(pid)[0] for pid in agents]
    return [
        Row("ring of five, idle: CPU", "<= 25 % of 2 cores", f"{100 * used / took / 2:.0f} % of 2 cores", UP),
        Row("ring of five, idle: memory (PSS of all processes)", "<= 2.2 GB", f"{memory_gb:.1f} GB", UP),
        Row("agent, idle: CPU per node", "<= 0.5 % of a core", f"{max(by_agent):.1f} % at most", UP),
        Row("agent, idle: memory per node", "<= 40 MB", f"{max(agent_mb):.0f} MB at most", UP),
    ]


def agent(machine: Machine) -> int:
    """The agent's process, out here."""
    for pid in processes(machine):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"\0-m\0kmagent\0"):
                return pid
    raise UserError(f"{machine.name} has no agent")


def cgroup_cpu_s(machine: Machine) -> float:
    """CPU seconds of everything in a machine so far, on cgroup v1 or v2."""
    for folder in map(Path, machine.cgroups):
        if (folder / "cpuacct.usage").exists():
            return int((folder / "cpuacct.usage").read_text()) / 1e9
    lines = (Path(machine.cgroups[0]) / "cpu.stat").read_text().splitlines()
    return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6


def proportional_mb(machine: Machine) -> float:
    """Memory of all processes in a machine, what several share divided among them (proc(5), smaps_rollup: Pss)."""
    total_kib = 0
    for pid in processes(machine):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total_kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total_kib * 1024 / 1e6


def scale(_repeat: int) -> list[Row]:
    """Routing alone, in meshes of more nodes than one has machines for; drawn in docs/mesh-scale.svg."""
    with tempfile.TemporaryDirectory() as folder:
        figures, plot = Path(folder) / "figures.json", ROOT / "docs/mesh-scale.svg"
        argv = [sys.executable, *SCALE.split()[1:], "--repeat", "4", "--json", str(figures), "--plot", str(plot)]
        subprocess.run(argv, cwd=ROOT, check=True)
        meshes = document.read(figures, list[Figures])
    return [
        Row(f"mesh of {mesh.nodes} nodes: all babelds started to whole", "none", costs(mesh), SCALE) for mesh in meshes
    ]


def costs(mesh: Figures) -> str:
    """What a simulated mesh takes of time, and of each node."""
    whole = "not in time" if mesh.whole_s is None else f"{mesh.whole_s:.1f} s"
    whole += f" with timers of {mesh.hello_s:g} s and {mesh.update_s:g} s" if mesh.is_scaled else ""
    return f"{whole}; babeld: {mesh.core_percent[0]:.2f} % of a core, {mesh.resident_mb[0]:.1f} MB"


MEASUREMENTS: dict[str, Callable[[int], list[Row]]] = {
    "ring": ring_up,
    "reroute": reroute,
    "idle": idle,
    "scale": scale,
}
