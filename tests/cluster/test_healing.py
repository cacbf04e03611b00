"""What heals by itself: pods of a dead node run elsewhere, and a voter that is gone for good is replaced."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import boot, wait_for
from rings import Ring

from kmbuild.cluster import make_directory

pytestmark = pytest.mark.turn(3)

GRACE_S = 20
TAINT = "kubermesh.io/lost"

# One pod that would rather be on a node that can be spared, and a service for it.
ONE = """
apiVersion: apps/v1
kind: Deployment
metadata: {{name: one}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: one}}}}
  template:
    metadata: {{labels: {{app: one}}}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      securityContext: {{runAsUser: 1000, runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}
      affinity:
        nodeAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
          - weight: 100
            preference: {{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [{node}]}}]}}
      containers:
      - name: web
        image: kubermesh.local/busybox:1
        imagePullPolicy: Never
        env: [{{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}]
        command: [sh, -c, "mkdir -p /tmp/www && echo $NODE > /tmp/www/index.html && exec httpd -f -p '[::]:8080' -h /tmp/www"]
        securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
        readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: one}}
spec: {{selector: {{app: one}}, ports: [{{port: 80, targetPort: 8080}}]}}
"""


@pytest.fixture(scope="module")
def heal(bench_home: Path, busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    """Five nodes in a ring, which replace a voter that is away for twenty seconds."""
    directory = tmp_path_factory.mktemp("clusters") / "heal"
    make_directory(directory, "heal", voter_grace_s=GRACE_S)
    topology = Path(__file__).parent / "ring.yaml"
    booted = boot("nspawn", busybox, topology, "heal", "--cluster", str(directory))
    next(booted)
    ring = Ring("heal")
    ring.settle()
    yield ring
    next(booted, None)


def taints(ring: Ring, number: int) -> list[str]:
    shown = ring.kubectl("get", "node", ring[number].machine.name, "-o", "jsonpath={.spec.taints[*].key}")
    return shown.split()


def test_one_node_is_kept_warm(heal: Ring) -> None:
    assert (len(heal.voters()), len(heal.with_role("standby")), len(heal.with_role("worker"))) == (3, 1, 1)


def test_pods_of_a_dead_node_run_elsewhere_soon_and_it_is_welcome_back(heal: Ring) -> None:
    (worker,) = heal.with_role("worker")
    name = heal[worker].machine.name
    page = "http://one.default.svc.cluster.local/"
    heal.kubectl("apply", "-f", "-", given=ONE.format(node=name))
    wait_for("page from the worker", lambda: heal.fetch(1, page) == name, 60, 1)
    heal[worker].power("cut")
    others = {node.machine.name for number, node in heal.nodes.items() if number != worker}
    try:
        wait_for("page from another node", lambda: heal.fetch(1, page) in others, 20)
        assert TAINT in taints(heal, worker)
    finally:
        heal[worker].power("on")
    wait_for("node without taint", lambda: TAINT not in taints(heal, worker), 60, 1)
    wait_for("whole ring", heal.is_whole, 120, 1)


def test_a_seed_that_dies_for_good_is_replaced_and_nothing_is_lost(heal: Ring) -> None:
    (standby,) = heal.with_role("standby")
    heal.kubectl("create", "configmap", "kept", "--from-literal=kept=yes")
    heal[1].power("cut")
    voters = sorted((heal.voters() | {standby}) - {1})
    wait_for("the standby's vote", lambda: sorted(heal.voters()) == voters, GRACE_S + 60, 1)
    wait_for("another standby", lambda: len(heal.with_role("standby")) == 1, 60, 1)
    assert heal.kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.kept}") == "yes"
    wait_for("a write", lambda: heal.kubectl("create", "configmap", "after", "--from-literal=kept=yes"), 30, 1)
    wait_for("roles that kubectl shows", lambda: shows_roles_after_the_seed(heal), 30, 1)


def shows_roles_after_the_seed(heal: Ring) -> bool:
    """Whether the objects say who votes now: the leading agent writes them a turn after it has changed it."""
    listed = json.loads(heal.kubectl("get", "meshnodes", "-o", "json"))["items"]
    roles = {item["status"]["number"]: item["status"]["role"] for item in listed}
    assert roles[1] == "worker" and sorted(roles.values()) == ["standby", "voter", "voter", "voter", "worker"], roles
    return True


def test_a_seed_that_was_replaced_comes_back_as_a_worker_without_secrets(heal: Ring) -> None:
    heal[1].power("on")
    wait_for("worker", lambda: heal[1].status().get("role") == "worker", 90, 1)
    wait_for("whole ring", heal.is_whole, 180, 1)
    left = heal[1].output(
        "find", "/var/lib/kubermesh", "-name", "*.key", "-not", "-path", "*/kubelet/*", "-printf", "%f\\n"
    )
    assert left.split() == ["identity.key"]
    assert heal[1].output("sh", "-c", "ls -d /var/lib/kubermesh/etcd.removed-*")
    assert len(heal.voters()) == 3 and len(heal.with_role("standby")) == 1


def test_no_unit_failed(heal: Ring) -> None:
    for node in heal.nodes.values():
        assert node.output("systemctl", "--failed", "--no-legend", "--plain") == "", node.machine.name
