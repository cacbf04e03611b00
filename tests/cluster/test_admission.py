"""Who becomes a node: people and policies decide, and what was decided holds."""

import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machines import IMAGE, KMBUILD, Node, kmbuild, wait_for
from stranger import PORT, join_request, plugged_in

from kmagent import ledger
from kmbuild.cluster import make_directory
from kmcluster import state
from kmplan import pki
from kmplan.errors import UserError
from kmplan.fingerprint import compared

pytestmark = pytest.mark.turn(2)

LINE = Path(__file__).parent / "line.yaml"

# Asks to be admitted as so many machines at once, each with a key of its own. Arguments: address, body for a CSR, how many.
FLOOD = """
import asyncio, collections, json, ssl, sys
from kmplan import pki
context = ssl._create_unverified_context()
asked = json.loads(sys.argv[2])
bodies = [json.dumps({**asked, "csr": pki.create_request(pki.create_key(), "machine")}) for _ in range(int(sys.argv[3]))]
async def one(body):
    head = f"POST /v1/join HTTP/1.1\\r\\nHost: join\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
    try:
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection(sys.argv[1], 9442, ssl=context, server_hostname="join.kubermesh")
            writer.write((head + body).encode())
            line = (await reader.readline()).split()
            writer.close()
            return line[1].decode() if len(line) > 1 else "closed"
    except (OSError, TimeoutError, ssl.SSLError):
        return "closed"
async def main():
    print(json.dumps(collections.Counter(await asyncio.gather(*map(one, bodies)))))
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cluster directory whose machines wait for approval, but for the third, which is on the list."""
    directory = tmp_path_factory.mktemp("clusters") / "line"
    listed = str(uuid.uuid5(uuid.NAMESPACE_URL, "kubermesh:line:3"))
    make_directory(directory, "line", admission={"policy": "allowlist", "allowlist": [listed]})
    return directory


@pytest.fixture(scope="module")
def line(bench_home: Path, directory: Path) -> Iterator[dict[int, Node]]:
    """Three machines in a line, powered on; nobody was approved yet."""
    options = ["--name", "line", "--image", str(IMAGE), "--cluster", str(directory), "--timeout", "600"]
    log = directory.parent / "up.log"
    with log.open("w") as sink:
        child = subprocess.Popen([str(KMBUILD), "cluster", "up", str(LINE), *options], stdout=sink, stderr=sink)
    try:
        wait_for("three machines", lambda: "line" in state.cluster_names() and machines_on("line"), 60)
        yield {number: Node("line", number) for number in (1, 2, 3)}
    finally:
        child.terminate()
        child.wait()
        kmbuild("cluster", "down", "line")


def machines_on(name: str) -> bool:
    try:
        return all("init" in machine.processes for machine in state.load(name).machines)
    except UserError:
        return False


def nodes(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return kmbuild("nodes", *arguments, "--cluster", directory)


def listed(directory: Path) -> list[dict[str, Any]]:
    done = nodes(directory, "list", "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def one_with(directory: Path, phase: str) -> dict[str, Any] | None:
    return next((item for item in listed(directory) if item["status"].get("phase") == phase), None)


def kubernetes_nodes(node: Node) -> set[str]:
    return set(node.kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.name}").split())


def test_a_machine_waits_and_both_ends_show_the_same_fingerprint(line: dict[int, Node], directory: Path) -> None:
    line[1].wait_ready(90)
    asked = wait_for("machine that asks", lambda: one_with(directory, "Pending"), 60, 1)
    fingerprint = asked["status"]["fingerprint"]
    wait_for("fingerprint on the console", lambda: compared(fingerprint) in "\n".join(line[2].console_lines()), 30)
    theirs = compared(pki.fingerprint((directory / "pki/node-ca.crt").read_text()))
    assert f"cluster    line, fingerprint {theirs}" in "\n".join(line[2].console_lines())
    assert f"cluster line, fingerprint {theirs}" in nodes(directory, "list").stderr
    assert line[2].status()["asking"]["state"] == "pending"
    assert asked["status"]["via"] == "line-1 eth0"
    assert [port["name"] for port in asked["status"]["ports"]] == ["eth0", "eth1", "eth2"]
    assert kubernetes_nodes(line[1]) == {"line-1"}
    # It was given neither a key nor a route.
    kept = line[2].output("find", "/var/lib/kubermesh", "-type", "f", "-printf", "%f\\n").split()
    assert sorted(kept) == ["identity.key", "join.json"]
    assert "fd" not in line[2].output("ip", "-6", "route").replace("fe80", "")


def test_a_denied_machine_stays_out(line: dict[int, Node], directory: Path) -> None:
    name = one_with(directory, "Pending")["metadata"]["name"]  # type: ignore[index]
    done = nodes(directory, "deny", name)
    assert done.returncode == 0, done.stderr
    wait_for("denied machine", lambda: line[2].status()["asking"]["state"] == "denied", 60)
    assert kubernetes_nodes(line[1]) == {"line-1"}


def test_an_approved_machine_becomes_a_node_and_lets_the_listed_one_in(line: dict[int, Node], directory: Path) -> None:
    name = one_with(directory, "Denied")["metadata"]["name"]  # type: ignore[index]
    done = nodes(directory, "approve", name)
    assert done.returncode == 0, done.stderr
    for number in (2, 3):
        line[number].wait_ready(120)
    numbers = {item["status"]["name"]: item["status"]["number"] for item in listed(directory)}
    assert numbers == {"line-1": 1, "line-2": 2, "line-3": 3}
    shown = line[1].kubectl("get", "meshnodes")
    assert shown.count("Admitted") == 3
    wait_for("three voters", lambda: {node.status()["role"] for node in line.values()} == {"voter"}, 120, 1)


def test_approving_again_changes_nothing(line: dict[int, Node], directory: Path) -> None:
    assert nodes(directory, "approve", "line-2").returncode == 0
    assert len(listed(directory)) == 3


def test_a_removed_node_is_out_and_its_number_is_free(line: dict[int, Node], directory: Path) -> None:
    # As if it had been another node before.
    prefix = line[3].address.rpartition("::")[0]
    had = f"{prefix}::77"
    line[3].output("ip", "address", "add", f"{had}/128", "dev", "lo", "nodad")
    line[3].output("ip", "route", "add", "unreachable", "10.0.77.0/24")
    done = nodes(directory, "remove", "line-3", "--yes")
    assert done.returncode == 0, done.stderr
    assert "line-3" not in kubernetes_nodes(line[1])
    # It finds out, forgets the cluster, and asks again: the list lets it in, with the number that is free.
    wait_for(
        "machine that asks", lambda: line[3].status().get("asking") or line[3].status().get("role") == "worker", 90
    )
    line[3].wait_ready(180)
    assert {item["status"]["name"] for item in listed(directory)} == {"line-1", "line-2", "line-3"}
    old = line[3].output("sh", "-c", "ls -d /var/lib/kubermesh/removed-*").split()
    assert len(old) == 1
    # It leads nobody to itself who looks for who has its number now.
    assert f"{had}/" not in line[3].output("ip", "address", "show", "dev", "lo")
    assert "10.0.77.0" not in line[3].output("ip", "-4", "route")
    assert f"{line[3].address}/" in line[3].output("ip", "address", "show", "dev", "lo")


def test_a_thousand_machines_that_ask_at_once_disturb_nothing(line: dict[int, Node], directory: Path) -> None:
    """They wait, a few of them: somebody has to let each of them in. The others may ask again later."""
    with plugged_in(line[1].cluster, "1:eth2") as stranger:
        there = f"{line[1].link_local('eth2')}%{PORT}"
        outcome = json.loads(stranger.python(FLOOD, there, join_request("line", ""), "1000", timeout_s=300))
    assert outcome.keys() <= {"202", "429", "closed"} and outcome.get("202"), outcome

    def phases() -> list[str] | None:
        """None while an object is new, and says nothing yet."""
        shown = [item["status"].get("phase") for item in listed(directory)]
        return None if None in shown else shown

    waiting = [phase for phase in wait_for("phases", phases, 20, 1) if phase == "Pending"]
    assert 1 <= len(waiting) <= ledger.MAX_ASKED_AT_ONE, outcome
    assert kubernetes_nodes(line[1]) == {"line-1", "line-2", "line-3"}
    # A host that stands still for half a second is one whose nodes all miss hellos: ways are lost for a moment then.
    wait_for("way", lambda: line[3].run("ping", "-c", "1", "-W", "1", line[1].address).code == 0, 5, 1)
    assert {node.status()["state"] for node in line.values()} == {"ready"}


def make_node(line: dict[int, Node], number: int) -> str:
    """Make a node's object as its kubelet does; returns what is refused."""
    name = f"line-{number}"
    made = json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    groups = ("--as-group", "system:nodes", "--as-group", "system:authenticated")
    try:
        line[1].kubectl("create", "-f", "-", "--as", f"system:node:{name}", *groups, given=made)
    except UserError as error:
        return str(error)
    return ""


def test_nobody_is_a_removed_node_with_the_certificate_of_its_kubelet(line: dict[int, Node], directory: Path) -> None:
    """It lives on for a while: somebody may have copied it, and come to a port where plain computers are let in."""
    line[3].power("off")
    assert nodes(directory, "remove", "line-3", "--yes").returncode == 0
    wait_for("refusal", lambda: "this node was removed from the cluster" in make_node(line, 3), 20, 0.5)
    wait_for("end of one that came before", lambda: "line-3" not in kubernetes_nodes(line[1]), 30, 0.5)
    assert make_node(line, 4) == ""
