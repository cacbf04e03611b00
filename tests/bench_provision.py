"""Figures of a machine's way into a cluster: sticks, how fast a neighbour serves the system, and the whole of it."""

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from tests import bench_mesh
from tests.row import ROOT, Row, kmbuild, spread
from tests.simulation import namespace
from tests.simulation.mesh import wait_until
from tests.simulation.namespace import Namespace

from kmbuild import bmap, stick
from kmbuild.locate import locate_image
from kmcluster import state
from kmcluster.cable import Port
from kmcluster.console import read_lines
from kmcluster.drivers import driver_of
from kmcluster.nspawn_cables import HOLDER, middle
from kmcluster.state import Cluster
from kmplan.errors import UserError
from kmplan.run import run, spawn

NAME = "bench"
PAIR = """\
version: 1
nodes: [{role: seed, ports: 2}, {}]
cables: [{a: "1:eth0", b: "2:eth0"}]
"""
SPARE = Port(1, 1)

# As many askers as keep two processors busy: with fewer a node that also serves is the faster one, as its processors sleep less.
PODS_S, ASKERS = 8.0, 3

LOOK_S, UP_S = 0.2, 3000.0
# What takes how long on the way of a blank machine, and what its console shows when that is done.
SHARES = {
    "firmware": "EFI stub: ",
    "boot": " has this system, version ",
    "fetch": "the system is here: ",
    "boot of the system": ": installing",
    "write and read back": "installed; this machine runs from it",
    "admission": f"node       {NAME}-2 (number 2, ",
}

# Reads the root from a node again and again until its standard input ends; shows bytes per second of each time.
READ = """
import http.client, select, sys, time
buffer = bytearray(1 << 20)
while True:
    connection = http.client.HTTPConnection(sys.argv[1], 9445, timeout=30)
    start, count = time.monotonic(), 0
    connection.request("GET", "/v1/root")
    answer = connection.getresponse()
    while got := answer.readinto(buffer):
        count += got
    print(count / (time.monotonic() - start), flush=True)
    if select.select([sys.stdin], [], [], 0)[0]:
        break
"""

# Asks a pod again and again for so many seconds; shows how often it answered.
ASK = """
import http.client, sys, time
connection = http.client.HTTPConnection(sys.argv[1], 8181, timeout=10)
count, end = 0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    connection.request("GET", "/ready")
    connection.getresponse().read()
    count += 1
print(count)
"""


def flash(repeat: int) -> list[Row]:
    """Writing the image to a file, by turns with bmaptool(1) and the same map; and with reading it back."""
    ours, whole, theirs = [], [], []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        target, directory = Path(folder) / "stick.img", Path(folder) / "shop"
        kmbuild("init", directory)
        raw = locate_image(ROOT / "out").raw
        for _ in range(repeat):
            make_empty(target)
            seconds, said = kmbuild("flash", "out", target, "--cluster", directory, "--json")
            whole.append(seconds)
            ours.append(seconds - json.loads(said)["verify_s"])
            make_empty(target)
            start = time.monotonic()
            run(["bmaptool", "copy", "--bmap", bmap.beside(raw), raw, target])
            theirs.append(time.monotonic() - start)
        assert run(["cmp", "-n", str(raw.stat().st_size), raw, target], check=False).returncode == 0
    command, base = "python -m tests.bench flash", statistics.median(theirs)
    return [
        Row(what, f"<= {limit} x bmaptool", f"{statistics.median(times) / base:.2f} x ({spread(times)})", command)
        for what, limit, times in (("flash to a file", 1.1, ours), ("flash and verify", 2.2, whole))
    ]


def make_empty(path: Path) -> None:
    """A file in the place of a stick, without a block of its own."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(stick.FILE_BYTES)


def serve(repeat: int) -> list[Row]:
    """Bytes per second over a cable between two containers, and requests per second of a pod meanwhile."""
    with pair() as (cluster, blank):
        assert wait_until(lambda: bool(offered(cluster)), 60, 0.5), "nothing is offered on the spare port"
        address = offered(cluster)
        speeds = [speed for _ in range(repeat) for speed in read(blank, address, lambda: None)]
        alone, beside = [], []
        for _ in range(repeat):
            alone.append(requests(cluster))
            read(blank, address, lambda: beside.append(requests(cluster)))
    ratio = statistics.median(beside) / statistics.median(alone)
    command = "python -m tests.bench serve"
    return [
        Row("image served over a cable", ">= 400 MB/s", f"{statistics.median(speeds) / 1e6:.0f} MB/s", command),
        Row("requests to the serving node's pods", ">= 0.9 x without", f"{ratio:.2f} x", command),
    ]


@contextlib.contextmanager
def pair() -> Iterator[tuple[Cluster, Namespace]]:
    """Two nodes, and a namespace on a spare port of the first."""
    with tempfile.TemporaryDirectory() as folder:
        topology = Path(folder) / "pair.yaml"
        topology.write_text(PAIR)
        try:
            kmbuild("cluster", "up", topology, "--name", NAME)
            cluster, blank = state.load(NAME), namespace.new()
            holder, end = cluster.processes[HOLDER].pid, middle(SPARE)
            run(["nsenter", f"--net=/proc/{holder}/ns/net", "ip", "link", "set", end, "netns", blank.path])
            blank.run("ip", "link", "set", end, "name", "blank0", "up")
            yield cluster, blank
            blank.close()
        finally:
            kmbuild("cluster", "down", NAME)


def offered(cluster: Cluster) -> str:
    """The address of the node's port as the namespace has to write it, once something is offered there."""
    driver, first = driver_of(cluster), cluster.machines[0]
    status = driver.read_status(first) or {}
    if not [port for port in status.get("ports", []) if port["name"] == SPARE.name and port["offer"]]:
        return ""
    shown = driver.execute(first, ["ip", "-6", "-o", "address", "show", "dev", SPARE.name, "scope", "link"]).stdout
    return f"{shown.split()[3].partition('/')[0]}%blank0"


def read(blank: Namespace, address: str, meanwhile: Callable[[], None]) -> list[float]:
    """Read the root until something is done, as the least of this machine's work; returns bytes per second of each time."""
    with tempfile.NamedTemporaryFile() as log:
        argv = ["nice", "-n", "19", *blank.inside([sys.executable, "-c", READ, address])]
        child = spawn(argv, log=Path(log.name), tied=True)
        meanwhile()
        child.communicate()
        return [float(line) for line in Path(log.name).read_text().split()]


def requests(cluster: Cluster) -> float:
    """Requests per second that a pod of the serving node answers to the other node."""
    pods = json.loads(bench_mesh.kubectl(cluster, "get", "pods", "-A", "-l", "k8s-app=kube-dns", "-o", "json"))["items"]
    first = cluster.machines[0].name
    pod = next(pod["status"]["podIP"] for pod in pods if pod["spec"]["nodeName"] == first)

    inside = namespace.of_process(cluster.machines[1].processes["init"].pid)
    with ThreadPoolExecutor(ASKERS) as pool:
        argv = inside.inside([sys.executable, "-c", ASK, pod, str(PODS_S)])
        return sum(pool.map(lambda _: int(run(argv).stdout), range(ASKERS))) / PODS_S


def netboot(_repeat: int) -> list[Row]:
    """A blank virtual machine on the cable of a seed that is Ready, from power on to admitted, and what takes how long."""
    with ThreadPoolExecutor(1) as pool:
        up = pool.submit(kmbuild, "cluster", "up", "netboot", "--driver", "qemu", "--name", NAME)
        try:
            wait_until(lambda: up.done() or is_on(), UP_S, LOOK_S)
            assert is_on(), "the blank machine was not switched on"
            times = [time.monotonic()]
            for share, end in SHARES.items():
                wait_until(lambda wanted=end: up.done() or wanted in shown(), UP_S, LOOK_S)
                assert end in shown(), f"{share} did not end: nothing says {end}"
                times.append(time.monotonic())
            up.result()
        finally:
            kmbuild("cluster", "down", NAME)
    shares = [f"{share} {end - start:.0f} s" for share, (start, end) in zip(SHARES, pairwise(times), strict=True)]
    measured = f"{(times[-1] - times[0]) / 60:.1f} min: {', '.join(shares)}"
    return [
        Row("blank machine: power on to admitted", "<= 8 min without KVM", measured, "python -m tests.bench netboot")
    ]


def is_on() -> bool:
    """Whether the blank machine was switched on."""
    with contextlib.suppress(UserError):
        return not state.load(NAME).machines[1].waits
    return False


def shown() -> str:
    """What the blank machine's console has shown so far."""
    cluster = state.load(NAME)
    return "\n".join(read_lines(driver_of(cluster).console(cluster.machines[1])))


MEASUREMENTS: dict[str, Callable[[int], list[Row]]] = {"flash": flash, "serve": serve, "netboot": netboot}
