"""One node of the image in a container: Ready, serving, and healing after every kill and power cut."""

import re
from pathlib import Path

import pytest
from machines import WEB, Node, fetch, wait_for

from kmplan import run

FIND = """
import os, sys
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline").read().split("\\0")
    except OSError:
        continue
    if os.path.basename(words[0]) == sys.argv[1]:
        print(pid)
"""

UNITS = {"agent": "kmagent.service", "kubelet": "kubelet.service", "containerd": "containerd.service"}
PODS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


def find_process(node: Node, name: str) -> str:
    """Pid inside of a unit's main process, or of a control-plane process."""
    if name in UNITS:
        pid = node.output("systemctl", "show", "--property=MainPID", "--value", UNITS[name]).strip()
        return pid if pid != "0" else ""
    return node.output("python3", "-c", FIND, name).strip()


def write_mark(node: Node, name: str) -> None:
    node.kubectl("create", "configmap", name, "--from-literal=kept=yes")


def read_mark(node: Node, name: str) -> str:
    return node.kubectl("get", "configmap", name, "-o", "jsonpath={.data.kept}")


def test_a_machine_has_a_network_of_its_own(nspawn_node: Node) -> None:
    init = nspawn_node.machine.processes["init"].pid
    assert Path(f"/proc/{init}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    addresses = nspawn_node.status()["node"]["addresses"]
    host = run.run(["cat", "/proc/net/if_inet6", "/proc/net/fib_trie"]).stdout
    assert not [address for address in addresses if address in host]
    assert nspawn_node.machine.name != Path("/proc/sys/kernel/hostname").read_text().strip()


def test_a_node_comes_up_in_order(nspawn_node: Node) -> None:
    nspawn_node.wait_ready(60)
    moments = [nspawn_node.event(name)["boot_s"] for name in ("started", "configured", "etcd", "api", "announced")]
    assert moments == sorted(moments)
    assert nspawn_node.event("node-ready")["boot_s"] >= nspawn_node.event("api")["boot_s"]


def test_no_unit_failed(nspawn_node: Node) -> None:
    assert nspawn_node.output("systemctl", "--failed", "--no-legend", "--plain") == ""


def test_the_agent_is_small(nspawn_node: Node) -> None:
    assert nspawn_node.status()["memory_mib"] <= 40


def test_a_container_that_does_not_listen_holds_a_shutdown_up_no_longer_than_kubernetes_waits(
    nspawn_node: Node,
) -> None:
    assert nspawn_node.output("systemctl", "show", "--property=DefaultTimeoutStopUSec", "--value").strip() == "30s"


def test_the_root_is_read_only_and_etc_transient(nspawn_node: Node) -> None:
    assert nspawn_node.host.mount_point("/").exists
    assert "ro" in nspawn_node.host.mount_point("/").options
    assert nspawn_node.host.mount_point("/etc").filesystem == "overlay"


def test_a_deployment_is_reached_by_name_over_both_families(nspawn_node: Node) -> None:
    wait_for("applied objects", lambda: nspawn_node.kubectl("apply", "-f", "-", given=WEB), 30, 1)
    for service in ("web6", "web4"):
        wait_for(f"page from {service}", lambda name=service: fetch(nspawn_node, name) == "kubermesh", 60, 1)


@pytest.mark.parametrize("name", [*UNITS, *PODS])
def test_a_killed_process_comes_back_and_nothing_is_lost(nspawn_node: Node, name: str) -> None:
    mark = f"kept-{name}"
    write_mark(nspawn_node, mark)
    old = wait_for(f"{name} process", lambda: find_process(nspawn_node, name), 30)
    nspawn_node.output("kill", "-9", *old.split())
    wait_for(f"new {name} process", lambda: (new := find_process(nspawn_node, name)) and new != old, 60)
    nspawn_node.wait_ready(90)
    wait_for("ConfigMap written before", lambda: read_mark(nspawn_node, mark) == "yes", 60)


@pytest.mark.parametrize("action", ["off", "cut"])
def test_a_node_comes_back_by_itself_with_all_data(nspawn_node: Node, action: str) -> None:
    """Without the seed's credential: what was given once is kept."""
    mark = f"kept-power-{action}"
    write_mark(nspawn_node, mark)
    (nspawn_node.cluster.machine_folder(nspawn_node.machine) / "credentials/kubermesh.seed").unlink(missing_ok=True)
    nspawn_node.power(action)
    assert nspawn_node.driver.power(nspawn_node.machine) == "off"
    nspawn_node.power("on")
    nspawn_node.wait_ready(90)
    assert read_mark(nspawn_node, mark) == "yes"
    wait_for("page after power on", lambda: fetch(nspawn_node, "web6") == "kubermesh", 90, 1)


def test_a_frozen_node_goes_on_where_it_stopped(nspawn_node: Node) -> None:
    nspawn_node.power("freeze")
    assert nspawn_node.driver.power(nspawn_node.machine) == "frozen"
    nspawn_node.power("thaw")
    nspawn_node.wait_ready(60)


def test_no_secret_is_in_a_log_or_an_argv(nspawn_node: Node) -> None:
    directory = nspawn_node.cluster.directory
    secrets = [(directory / name).read_text().strip() for name in ("encryption.key", "babel.key")]
    for path in directory.glob("pki/*.key"):
        secrets += re.findall(r"^[A-Za-z0-9+/=]{40,}$", path.read_text(), re.MULTILINE)
    assert len(secrets) > 6
    logs = "\n".join(nspawn_node.console_lines()) + nspawn_node.output("journalctl", "--no-pager", "-o", "cat")
    logs += nspawn_node.output("sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null; find /var/log -type f -exec cat {} +")
    logs += "".join(read_or_nothing(path) for path in Path("/proc").glob("[0-9]*/cmdline"))
    assert not [secret for secret in secrets if secret in logs]


def read_or_nothing(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
