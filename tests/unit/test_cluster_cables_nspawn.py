"""Real cables between the network namespaces of machines that have nothing else: needs root, ip and nft."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from test_cluster_state import make_cluster

from kmcluster import bench, cabling, process, state
from kmcluster.nspawn import NspawnDriver
from kmcluster.state import Cluster, Machine
from kmcluster.topology import count_ports, find_topology, plug, read_topology

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("ip", "nft", "nsenter"))), reason="needs root, ip, nft and nsenter"
)

# Frames of an experimental EtherType (RFC 5342) with the time of sending; the receiver prints their delays in ms.
SEND = """
import socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind((sys.argv[1], 0))
for n in range(int(sys.argv[2])):
    s.send(b"\\xff" * 6 + b"\\x02" * 6 + b"\\x88\\xb5" + b"sent %f" % time.monotonic()); time.sleep(0.001)
"""
# Ends when nothing comes any more and standard input is closed.
RECEIVE = """
import select, socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88b5)); s.bind((sys.argv[1], 0x88b5))
print("listening", flush=True); s.settimeout(0.5)
while True:
    try:
        sent = s.recv(2000)[14:].rstrip(b"\\0").split()[1]
    except TimeoutError:
        if select.select([sys.stdin], [], [], 0)[0]: break
    else:
        print((time.monotonic() - float(sent)) * 1000)
"""


class Lab:
    """A cluster whose machines are network namespaces only."""

    def __init__(self, topology: str) -> None:
        drawn = read_topology(find_topology(topology))
        machines = [
            Machine(name=f"lab-{number}", number=number, node=node, ports=ports)
            for number, (node, ports) in enumerate(zip(drawn.nodes, count_ports(drawn), strict=True), 1)
        ]
        with state.locked("lab", make=True):
            made = replace(make_cluster("lab"), machines=machines, drawn=drawn.cables, cables=plug(drawn))
            made.save()
        for machine in machines:
            made.machine_folder(machine).mkdir(parents=True)
            self.on(made, machine)

    @property
    def cluster(self) -> Cluster:
        return state.load("lab")

    def on(self, cluster: Cluster, machine: Machine) -> None:
        driver = NspawnDriver(cluster)
        driver.cables.connect(machine, driver.start_forward(machine))
        for port in machine.port_list:
            self.inside(machine.number, "ip", "link", "set", port.name, "up")

    def argv(self, number: int, *argv: str) -> list[str]:
        holder = self.cluster.machines[number - 1].processes["forward"]
        return ["nsenter", f"--net=/proc/{holder.pid}/ns/net", *argv]

    def inside(self, number: int, *argv: str) -> str:
        return subprocess.run(self.argv(number, *argv), check=True, capture_output=True, text=True).stdout

    def carrier(self, number: int, port: str = "eth0") -> bool:
        return self.inside(number, "ip", "-brief", "link", "show", "dev", port).split()[1] == "UP"

    def received(self, source: int, target: int, frames: int = 20) -> list[float]:
        """The delays of those frames that went from one machine's eth0 to another's, in milliseconds."""
        argv = self.argv(target, "python3", "-c", RECEIVE, "eth0")
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as receiver:
            assert receiver.stdout
            assert receiver.stdout.readline() == "listening\n"
            self.inside(source, "python3", "-c", SEND, "eth0", str(frames))
            return [float(line) for line in receiver.communicate()[0].splitlines()]

    def all_received(self, source: int, target: int) -> list[float]:
        """The delays if nothing was lost, else none: a relay takes a moment to start."""
        delays = self.received(source, target)
        return delays if len(delays) == 20 else []

    def change(self, action: str, **bad: Any) -> None:
        cabling.change("lab", "1", "2", action, bad.get("loss_percent"), bad.get("delay_ms"))


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    try:
        yield Lab("pair")
    finally:
        bench.down("lab")


def wait_for(look: Callable[[], Any], timeout_s: float = 10) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (seen := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return seen


def test_a_cable_carries_both_ways(pair: Lab) -> None:
    assert pair.carrier(1)
    assert pair.carrier(2)
    assert len(pair.received(1, 2)) == 20
    assert len(pair.received(2, 1)) == 20


def test_a_cut_takes_the_carrier_from_both_and_a_plug_gives_it_back(pair: Lab) -> None:
    pair.change("cut")
    assert (pair.carrier(1), pair.carrier(2)) == (False, False)
    pair.change("plug")
    assert (pair.carrier(1), pair.carrier(2)) == (True, True)
    assert len(pair.received(1, 2)) == 20


def test_a_one_way_cable_keeps_its_carrier(pair: Lab) -> None:
    pair.change("one-way")
    assert pair.received(1, 2) == []
    assert len(pair.received(2, 1)) == 20
    assert pair.carrier(2)


def test_a_lossy_cable_loses_about_what_it_was_told(pair: Lab) -> None:
    pair.change("lossy", loss_percent=50)
    assert 50 < len(pair.received(1, 2, 200)) < 150


def test_a_slow_cable_delays_and_is_quick_again_when_plugged(pair: Lab) -> None:
    pair.change("slow", delay_ms=100)
    delays = wait_for(lambda: pair.all_received(1, 2))
    assert 100 <= min(delays) <= 200
    pair.change("plug")
    assert min(pair.received(1, 2)) < 100


def test_a_machine_without_power_takes_its_neighbours_carrier(pair: Lab) -> None:
    cluster = pair.cluster
    NspawnDriver(cluster).cleanup(cluster.machines[1])
    assert not pair.carrier(1)
    pair.change("slow", delay_ms=1)
    pair.on(cluster := pair.cluster, cluster.machines[1])
    assert pair.carrier(1)
    assert wait_for(lambda: pair.all_received(2, 1))


def test_a_machine_that_switched_itself_off_takes_its_neighbours_carrier_at_the_next_command(pair: Lab) -> None:
    """Its network namespace is still there until it is powered on again."""
    with state.locked("lab"):
        cluster = pair.cluster
        cluster.machines[1].processes["init"] = replace(process.identify(os.getpid()), started=1)
        cluster.save()
    pair.change("plug")
    assert not pair.carrier(1)
    NspawnDriver(cluster := pair.cluster).cleanup(cluster.machines[1])
    pair.on(cluster, cluster.machines[1])
    assert pair.carrier(1)
    assert len(pair.received(1, 2)) == 20


def test_nothing_is_left_when_the_cluster_is_down(pair: Lab) -> None:
    pair.change("slow")
    cluster = pair.cluster
    started = [*cluster.processes.values(), *(one for node in cluster.machines for one in node.processes.values())]
    assert len(started) == 4
    bench.down("lab")
    assert not [one for one in started if process.is_running(one)]
    assert not cluster.folder.exists()
