"""Certificates that live for two minutes: all are renewed in time, and no server is restarted for it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import Node, boot, wait_for

from kmagent import babel
from kmcluster import state
from kmplan import files
from kmplan.cluster import read_cluster

LIFE_S = 120
PKI = "/run/kubermesh/pki"
# The kubelet's own place for what it has been signed by the API.
SERVING = "/var/lib/kubelet/pki/kubelet-server-current.pem"


@pytest.fixture(scope="module")
def pair(bench_home: Path, busybox: Path) -> Iterator[dict[int, Node]]:
    """A voter and a worker that were powered on again with short-lived certificates."""
    booted = boot("nspawn", busybox, "pair", "short")
    first = next(booted)
    for machine in state.load("short").machines:
        path = first.cluster.machine_folder(machine) / "credentials/kubermesh.tuning"
        tuning = json.loads(path.read_text()) | {"certificate_days": LIFE_S / 86400}
        tuning["arguments"] = {"kube-controller-manager": {"cluster-signing-duration": f"{LIFE_S}s"}}
        files.write(path, json.dumps(tuning), 0o600)
    nodes = {number: Node("short", number) for number in (1, 2)}
    for node in nodes.values():
        node.power("cut")
    for node in nodes.values():
        node.power("on")
    nodes[1].wait_ready(120)
    # What they were given by others before lives for long: they ask for another.
    nodes[2].output("sh", "-c", "rm -rf /var/lib/kubermesh/kubelet /run/kubermesh/pki/kubelet/client.*")
    for node in nodes.values():
        node.output("sh", "-c", f"rm {SERVING}; systemctl restart kmagent kubelet")
    for node in nodes.values():
        node.wait_ready(120)
        wait_for("serving certificate", lambda one=node: one.run("test", "-e", SERVING).code == 0, 60, 1)
    yield nodes
    next(booted, None)


SERIAL = """
import sys
from cryptography import x509
print(x509.load_pem_x509_certificate(open(sys.argv[1], "rb").read()).serial_number)
"""


def serial(node: Node, path: str) -> str:
    return node.python(SERIAL, path)


def starts(node: Node) -> dict[str, int]:
    """How often each server of the control plane was started.

    Clients among them (controller manager, scheduler, kubelet) look at their files every five minutes only (client-go,
    CertCallbackRefreshDuration): with certificates of two minutes they fail for a while, and come back.
    """
    items = json.loads(node.kubectl("get", "pods", "-n", "kube-system", "-l", "tier=control-plane", "-o", "json"))[
        "items"
    ]
    return {
        item["metadata"]["name"]: item["status"]["containerStatuses"][0]["restartCount"]
        for item in items
        if "etcd" in item["metadata"]["name"] or "apiserver" in item["metadata"]["name"]
    }


@pytest.mark.turn(3)
def test_certificates_are_renewed_and_nothing_is_started_anew(pair: dict[int, Node]) -> None:
    watched = [
        (1, f"{PKI}/etcd/server.crt"),
        (1, f"{PKI}/kube-apiserver/server.crt"),
        (1, f"{PKI}/kubelet/client.crt"),
        (2, f"{PKI}/kubelet/client.crt"),
    ]
    serving = {number: serial(node, SERVING) for number, node in pair.items()}
    before = {(number, path): serial(pair[number], path) for number, path in watched}
    counts = starts(pair[1])
    # Twice, so that all that is in use by then was renewed while it was in use.
    for _ in range(2):
        known = {(number, path): serial(pair[number], path) for number, path in watched}
        wait_for(
            "renewed certificates",
            lambda old=known: all(serial(pair[number], path) != old[number, path] for number, path in watched),
            LIFE_S,
            3,
        )
    assert {key: serial(pair[key[0]], key[1]) for key in before} != before
    for node in pair.values():
        node.wait_ready(330)
    assert starts(pair[1]) == counts
    assert pair[1].kubectl("create", "configmap", "renewed", "--from-literal=kept=yes")
    # These take a controller manager that has looked at its own. The API server checks what the kubelets show.
    for number, node in pair.items():
        wait_for(
            "renewed serving certificate", lambda one=node, old=number: serial(one, SERVING) != serving[old], 330, 3
        )
        path = f"/api/v1/nodes/{node.machine.name}/proxy/healthz"
        wait_for("kubelet", lambda asked=path: pair[1].kubectl("get", "--raw", asked) == "ok", 60, 2)


def metrics(node: Node, address: str) -> list[int]:
    """Those of babeld's ways to an address."""
    return [route.metric for route in node.babel().routes if route.prefix == f"{address}/128"]


@pytest.mark.turn(3)
def test_neighbours_hear_that_an_address_is_withdrawn_also_where_there_is_no_other(pair: dict[int, Node]) -> None:
    """The only API server's: babeld by itself tells nobody. What is worse than any other way leaves the choice to them."""
    api = str(read_cluster(pair[1].cluster.directory).plan.api)
    wait_for("way to the API", lambda: metrics(pair[2], api) == [babel.WIRED], 60)
    pair[1].output("systemctl", "stop", "kmagent")
    wait_for("bad way", lambda: min(metrics(pair[2], api), default=babel.INFINITY) > babel.FAR, 4)
    pair[1].output("systemctl", "start", "kmagent")
    wait_for("way that is back", lambda: metrics(pair[2], api) == [babel.WIRED], 60)
