"""An oracle: a child that connects to a service again and again, from inside a pod on another node.

`python -m kmcluster.prober ADDRESS` opens a TCP connection to the service 50 times a second, in the network of a pod. Each
line on standard output is a `Probe` as JSON. It ends with its standard input.

Where a scenario harms a machine, the only pod of the service is there: then this is how long the pods of a dead node are away.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from kmcluster import inside, steady, witness
from kmcluster.drivers import driver_of
from kmcluster.state import Cluster, Machine
from kmcluster.writer import gaps
from kmplan.errors import UserError

NAME = "kubermesh-verify-service"
PORT, POD_PORT = 80, 5300
PERIOD_S, TIMEOUT_S = 0.02, 1.0
# Pods' networks have names, given by containerd.
FIND = """for name in /run/netns/*; do
  nsenter --net=$name ip -oneline address show to "$1" | grep -q . && echo $name
done"""
# Answers nothing, and takes connections.
CONFIG = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": NAME},
    "data": {"Corefile": f".:{POD_PORT} {{\n  errors\n}}\n"},
}
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": NAME},
    "spec": {"selector": {"app": NAME}, "ports": [{"port": PORT, "targetPort": POD_PORT}]},
}


class Probe(msgspec.Struct, frozen=True):
    """A connection, and whether it was opened; `begun` and `ended` are seconds of the monotonic clock."""

    begun: float
    ended: float
    opened: bool


def silences(log: Sequence[Probe], since: float, until: float) -> list[tuple[float, float]]:
    """When no connection was opened between two moments: from one to the next."""
    return gaps((one.ended for one in log if one.opened), since, until)


def answered(log: Sequence[Probe], until: float) -> bool:
    """Whether any connection was opened before a moment."""
    return any(one.opened and one.ended < until for one in log)


def place(cluster: Cluster, home: Machine, harmed: Sequence[Machine]) -> str:
    """Have the service, its pod on a machine that will be harmed, if any is, and never at `home`; returns its address."""
    image = steady.kubectl(
        cluster, "-n", "kube-system", "get", "daemonset", "coredns", "--output=jsonpath={..containers[0].image}"
    )
    steady.kubectl(cluster, "delete", "deployment", NAME, "--ignore-not-found")
    witness.roll_out(cluster, NAME, [CONFIG, SERVICE, deployment(image, home, harmed)])
    return steady.kubectl(cluster, "get", "service", NAME, "--output=jsonpath={.spec.clusterIP}")


def deployment(image: str, home: Machine, harmed: Sequence[Machine]) -> dict[str, Any]:
    """One pod, with a server that every image has: CoreDNS."""

    def where(operator: str, machines: Sequence[Machine]) -> dict[str, Any]:
        names = [machine.name for machine in machines]
        return {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": operator, "values": names}]}

    affinity: dict[str, Any] = {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [where("NotIn", [home])]}
    }
    if harmed:
        preferred = [{"weight": 100, "preference": where("In", harmed)}]
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
    server = {
        **witness.CONTAINER,
        "image": image,
        "command": ["/usr/bin/coredns", "-conf", "/etc/coredns/Corefile"],
        "readinessProbe": {"tcpSocket": {"port": POD_PORT}, "periodSeconds": 1},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
    }
    made = witness.deployment(NAME, 1, {"nodeAffinity": affinity}, server)
    made["spec"]["template"]["spec"]["volumes"] = [{"name": "config", "configMap": {"name": NAME}}]
    return made


def network_of(cluster: Cluster, machine: Machine) -> Path:
    """The network namespace of the witness's pod on a machine; UserError when there is none."""
    address = witness.addresses(cluster)[machine.name]
    argv = ["sh", "-c", FIND, "sh", address]
    found = inside.run(driver_of(cluster), machine, argv).stdout.strip()
    if not found:
        raise UserError(f"{machine.name}: no network of a pod has the address {address}")
    return Path(f"/proc/{machine.processes['init'].pid}/root{found}")


async def probe(address: str) -> None:
    """Open one connection, and say whether it was."""
    begun, opened = time.monotonic(), False
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(TIMEOUT_S):
            _, writer = await asyncio.open_connection(address, PORT)
        opened = True
        # Reset instead of ended: nothing is left of it that would count.
        writer.transport.abort()
    os.write(1, msgspec.json.encode(Probe(begun, time.monotonic(), opened)) + b"\n")


async def main(address: str) -> None:
    """Probe until standard input ends."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
    due = time.monotonic()
    async with asyncio.TaskGroup() as probes:
        while not ended.is_set():
            probes.create_task(probe(address))
            due = max(due + PERIOD_S, time.monotonic())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), due - time.monotonic())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
