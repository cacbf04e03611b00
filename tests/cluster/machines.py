"""Handles to booted machines, and deadlines that follow this machine's speed."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import testinfra
import testinfra.host
from testinfra.backend import base

from kmagent import babel
from kmcluster import access, bench, cabling, console, state
from kmcluster.driver import Driver, Result
from kmcluster.drivers import driver_of
from kmcluster.state import Cluster, Machine
from kmplan import run
from kmplan.cluster import read_cluster
from kmplan.errors import UserError

KMBUILD = Path(sys.executable).parent / "kmbuild"
IMAGE = Path(os.environ.get("KUBERMESH_IMAGE", "out")).resolve()
REFERENCE_S = 0.16


# Shows all that babeld knows.
DUMP = """
import socket
peer = socket.socket(socket.AF_UNIX)
peer.connect("/run/kubermesh/babeld.sock")
peer.sendall(b"dump\\nquit\\n")
print(peer.makefile().read())
"""

# Shows what services and pods have said that may tell of a fault: all of it would be much for an emulated serial port.
SAID = """
{ journalctl --boot=all --output=cat --no-pager --quiet; find /var/log/pods -name '*.log' -exec cut -d' ' -f4- {} +; } |
  grep -Ei 'panic|goroutine|fatal|fault|failed with|cycle|traceback|bug|oops|memory|oom' || true
"""


def measure_slowness() -> float:
    """By how much deadlines are stretched: twice what this machine's speed asks for, at least 2."""
    block = bytes(1 << 20)
    start = time.perf_counter()
    for _ in range(64):
        hashlib.sha256(block).digest()
    return max(2.0, 2 * (time.perf_counter() - start) / REFERENCE_S)


SLOWNESS = measure_slowness()


def wait_for(what: str, look: Callable[[], Any], timeout_s: float, period_s: float = 0.3) -> Any:
    """Wait until `look` returns something true, and return it; the failure shows what was seen last."""
    deadline = time.monotonic() + timeout_s * SLOWNESS
    seen: Any = "nothing"
    while time.monotonic() < deadline:
        try:
            seen = look()
            if seen:
                return seen
        except (UserError, AssertionError) as error:
            seen = error
        time.sleep(period_s)
    raise AssertionError(f"no {what} within {timeout_s * SLOWNESS:.0f} s; seen last: {seen}")


class BenchBackend(base.BaseBackend):
    """testinfra over the driver's own way to run commands."""

    NAME = "kubermesh"

    def __init__(self, node: "Node") -> None:
        super().__init__(node.machine.name)
        self.node = node

    def run(self, command: str, *args: str, **kwargs: Any) -> base.CommandResult:
        result = self.node.run("/bin/sh", "-c", self.get_command(command, *args))
        return self.result(result.code, self.encode(command), result.stdout, result.stderr)


class Node:
    """One machine of a cluster, by its number, and handles to it and to the cluster."""

    def __init__(self, name: str, number: int = 1) -> None:
        self.name = name
        self.number = number
        self.host = testinfra.host.Host(BenchBackend(self))

    @property
    def cluster(self) -> Cluster:
        return state.load(self.name)

    @property
    def machine(self) -> Machine:
        return self.cluster.machines[self.number - 1]

    @property
    def driver(self) -> Driver:
        return driver_of(self.cluster)

    @property
    def address(self) -> str:
        return str(read_cluster(self.cluster.directory).plan.node(self.number))

    def run(self, *argv: str, stdin: bytes = b"") -> Result:
        return self.driver.execute(self.machine, argv, stdin)

    def output(self, *argv: str) -> str:
        result = self.run(*argv)
        assert result.code == 0, f"{argv}: {result}"
        return result.stdout

    def status(self) -> dict[str, Any]:
        """What the agent says; one that is emulated may need more than one question."""
        return next(filter(None, (self.driver.read_status(self.machine) for _ in range(3))), {})

    @property
    def is_on(self) -> bool:
        return self.driver.power(self.machine) == "on"

    def event(self, name: str) -> dict[str, Any]:
        """An event of the agent by name."""
        return next(event for event in self.status()["events"] if event["name"] == name)

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        argv, environment = access.kubectl(self.cluster)
        done = run.run([*argv, "--request-timeout=60s", *arguments], env=environment, input=given, timeout_s=180)
        return done.stdout

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until agent and API both say that the node is Ready."""
        wait_for("agent that says ready", lambda: self.status().get("state") == "ready", timeout_s)
        path = '{.status.conditions[?(@.type=="Ready")].status}'
        look = ("get", "node", self.machine.name, "-o", f"jsonpath={path}")
        wait_for("Ready node", lambda: self.kubectl(*look) == "True", timeout_s, 1)

    def console_lines(self) -> list[str]:
        return console.read_lines(self.driver.console(self.machine))

    def power(self, action: str) -> None:
        bench.power(self.name, str(self.number), action)

    def neighbour(self, port: str) -> str:
        """Name of the trusted neighbour on a port, or nothing."""
        found = next((one["neighbour"] for one in self.status().get("ports", []) if one["name"] == port), None)
        return str(found["name"]) if found and found["authenticated"] else ""

    def link_local(self, port: str) -> str:
        """The node's own address on a port."""
        shown = self.output("ip", "-6", "-o", "address", "show", "dev", port, "scope", "link")
        return shown.split()[3].partition("/")[0]

    def has_way_to(self, other: "Node") -> bool:
        """Whether its kernel has a way to another node."""
        return self.run("ip", "-6", "route", "get", other.address).code == 0

    def babel(self) -> babel.Table:
        """What the node's babeld knows."""
        return babel.parse(self.python(DUMP).splitlines())

    def python(self, script: str, *arguments: str) -> str:
        """Run a script in the machine."""
        return self.output("python3", "-c", script, *arguments).strip()


def kmbuild(*arguments: str | Path, timeout_s: float = 1800) -> subprocess.CompletedProcess[str]:
    """Run the tool as a user does."""
    return subprocess.run(
        [str(word) for word in (KMBUILD, *arguments)], capture_output=True, text=True, timeout=timeout_s, check=False
    )


def boot(driver: str, busybox: Path, topology: str | Path = "one", name: str = "", *more: str | Path) -> Iterator[Node]:
    """Bring a cluster up with the test image in it, and down again; gives its first node."""
    name = name or f"test-{driver}"
    options = ["--driver", driver, "--name", name, "--image", IMAGE, "--load", busybox, "--json"]
    # Longer than it waits itself.
    done = kmbuild("cluster", "up", topology, *options, *more, timeout_s=4200)
    assert done.returncode == 0, done.stderr
    print(done.stderr)
    # One without a cable is off, and one that is emulated may not answer in time when it is asked once more.
    assert {node["state"] for node in json.loads(done.stdout)["nodes"]} - {"off", "unknown"} == {"ready"}
    yield Node(name)
    done = kmbuild("cluster", "down", name)
    assert done.returncode == 0, done.stderr


def bad_words(name: str) -> dict[str, list[str]]:
    """What a cluster's machines have told of faults since they were made: consoles, and services of those that are on."""
    nodes = [Node(name, machine.number) for machine in state.load(name).machines]
    said = {node.machine.name: node.console_lines() for node in nodes}
    for node in nodes:
        if node.is_on:
            said[node.machine.name] += node.output("sh", "-c", SAID).splitlines()
    return {name: faults for name, lines in said.items() if (faults := console.find_faults(lines))}


def below_root(node: Node) -> set[str]:
    """The disks' partitions that the root is read from."""
    return set(node.output("ls", "/sys/class/block/dm-0/slaves").split())


def cable(name: str, a: int | str, b: int | str, action: str, **values: float) -> None:
    """Do something to a cable."""
    cabling.change(name, str(a), str(b), action, values.get("loss"), values.get("delay"))


WEB = (Path(__file__).parent / "web.yaml").read_text()


def fetch(node: Node, service: str) -> str:
    """Fetch the page of a service by its name, from the client pod."""
    url = f"http://{service}.default.svc.cluster.local/"
    return node.kubectl("exec", "client", "--", "wget", "-q", "-T", "20", "-O", "-", url).strip()
