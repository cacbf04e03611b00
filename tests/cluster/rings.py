"""A handle to a cluster of several nodes, and what all of its tests ask of it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machines import Node, cable, wait_for

MESH = (Path(__file__).parent / "mesh.yaml").read_text()


@dataclass(frozen=True)
class Pod:
    """A pod of the DaemonSet: its name, node number and addresses."""

    name: str
    number: int
    address6: str
    address4: str


class Ring:
    """A cluster by its name; nodes are known by their numbers, from 1."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.first = Node(name)
        self.nodes = {machine.number: Node(name, machine.number) for machine in self.first.cluster.machines}

    def __getitem__(self, number: int) -> Node:
        return self.nodes[number]

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        return self.first.kubectl(*arguments, given=given)

    def with_role(self, role: str) -> set[int]:
        """Nodes that are on and say that they have this part in the control plane."""
        return {number for number, node in self.nodes.items() if node.is_on and node.status().get("role") == role}

    def voters(self) -> set[int]:
        return self.with_role("voter")

    def ready(self) -> set[str]:
        """Names of the nodes that Kubernetes takes for Ready."""
        items = json.loads(self.kubectl("get", "nodes", "-o", "json"))["items"]
        kinds = {
            item["metadata"]["name"]: {c["type"]: c["status"] for c in item["status"]["conditions"]} for item in items
        }
        return {name for name, kind in kinds.items() if kind["Ready"] == "True"}

    def is_whole(self) -> bool:
        """Whether every node is Ready and has a way to all others, and the wanted number votes."""
        names = {node.machine.name for node in self.nodes.values()}
        assert self.ready() == names, f"Ready: {sorted(self.ready())}"
        assert len(self.voters()) == 3, f"voters: {self.voters()}"
        said = {node.machine.name: node.status() for node in self.nodes.values()}
        states = {name: (status.get("state"), status.get("routes")) for name, status in said.items()}
        ways = 3 * (len(self.nodes) - 1)
        assert all(state == "ready" and routes >= ways for state, routes in states.values()), states
        return len(self.pods()) == len(self.nodes)

    def settle(self) -> None:
        """Wait until all is as it should be, with the test's pods."""
        wait_for("applied objects", lambda: self.kubectl("apply", "-f", "-", given=MESH), 60, 1)
        wait_for("whole ring", self.is_whole, 120, 1)

    def pods(self) -> dict[int, Pod]:
        """The test's pods that are ready, by node number."""
        items = json.loads(self.kubectl("get", "pods", "-l", "app=any", "-o", "json"))["items"]
        return {pod.number: pod for item in items if _is_ready(item) and (pod := _pod(item))}

    def pod(self, number: int) -> Pod:
        """The test's pod on a node; none that is ready fails, and may be waited for."""
        pods = self.pods()
        assert number in pods, f"ready pods: {sorted(pods)}"
        return pods[number]

    def fetch(self, number: int, url: str) -> str:
        """Fetch a page from inside the pod on a node."""
        return self.kubectl("exec", self.pod(number).name, "--", "wget", "-q", "-T", "5", "-O", "-", url).strip()

    def reaches(self, number: int, other: int) -> bool:
        """Whether the pod on one node reaches that on another over both families."""
        pod = self.pod(other)
        for host in (f"[{pod.address6}]", pod.address4):
            page = self.fetch(number, f"http://{host}:8080/")
            assert page == self[other].machine.name, page
        return True

    def next_hop(self, number: int, other: int) -> str:
        """The port by which a node reaches another."""
        routes = json.loads(self[number].output("ip", "-6", "--json", "route", "get", self[other].address))
        return str(routes[0].get("dev"))

    def cable(self, a: int | str, b: int | str, action: str, **values: float) -> None:
        cable(self.name, a, b, action, **values)

    def heal(self, cables: Iterable[tuple[int, int]]) -> None:
        """Plug cables in again, and wait until all is well."""
        for a, b in cables:
            self.cable(a, b, "plug")
        wait_for("whole ring", self.is_whole, 120, 1)


def _is_ready(item: dict[str, Any]) -> bool:
    conditions = {one["type"]: one["status"] for one in item["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in item["metadata"]


def _pod(item: dict[str, Any]) -> Pod:
    addresses = [one["ip"] for one in item["status"]["podIPs"]]
    number = int(item["spec"]["nodeName"].rpartition("-")[2])
    address6 = next(address for address in addresses if ":" in address)
    address4 = next(address for address in addresses if ":" not in address)
    return Pod(item["metadata"]["name"], number, address6, address4)
