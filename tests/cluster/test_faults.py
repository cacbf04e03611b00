"""Faults of disks, and what is told of a cluster: in containers, where each is done and undone in seconds."""

import subprocess
import tarfile
from pathlib import Path

import pytest
from machines import IMAGE, KMBUILD, WEB, Node, fetch, kmbuild, wait_for

from kmcluster import var_disk

MARK = "/var/lib/bench-mark"


def disk(node: Node, action: str, *options: str) -> str:
    done = kmbuild("cluster", "disk", node.machine.name, action, "--name", node.name, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def used_on_host(node: Node) -> int:
    """Bytes that the machine's disk takes of the host."""
    return (node.cluster.machine_folder(node.machine) / var_disk.FILE).stat().st_blocks * 512


def test_a_full_disk_is_full_inside_and_takes_nothing_of_the_host(nspawn_node: Node) -> None:
    before = used_on_host(nspawn_node)
    for _ in range(2):
        assert "/var is full" in disk(nspawn_node, "fill")
    assert nspawn_node.run("sh", "-c", f"head -c 100000 /dev/zero > {MARK}").code != 0
    assert "on, disk full" in kmbuild("cluster", "status", nspawn_node.name).stdout
    assert used_on_host(nspawn_node) < before + (64 << 20)
    for _ in range(2):
        assert disk(nspawn_node, "repair") == f"{nspawn_node.machine.name}: the disk is good\n"
    nspawn_node.output("sh", "-c", f"head -c 100000 /dev/zero > {MARK}; rm {MARK}")
    nspawn_node.wait_ready(120)


def test_a_failing_disk_takes_no_write_until_repaired_and_reset(nspawn_node: Node) -> None:
    """And what was freed the moment before stays free."""
    disk(nspawn_node, "fill")
    disk(nspawn_node, "repair")
    for _ in range(2):
        disk(nspawn_node, "errors")
    assert "Read-only file system" in nspawn_node.run("touch", MARK).stderr
    nspawn_node.power("cut")
    nspawn_node.power("on")
    assert "Read-only file system" in nspawn_node.run("touch", MARK).stderr
    assert "read-only until" in disk(nspawn_node, "repair")
    nspawn_node.power("reset")
    nspawn_node.output("touch", MARK)
    nspawn_node.wait_ready(120)


@pytest.mark.parametrize("power", ["on", "off"])
def test_bytes_of_a_file_are_spoiled(nspawn_node: Node, power: str) -> None:
    nspawn_node.output("sh", "-c", f"head -c 4000 /dev/zero | tr '\\0' x > {MARK}; sync")
    if power == "off":
        nspawn_node.power("cut")
    told = disk(nspawn_node, "corrupt", "--file", MARK)
    assert told == f"{nspawn_node.machine.name}: {MARK} was overwritten at 1000, 2000, 3000\n"
    nspawn_node.power("on")
    spoiled = nspawn_node.output("sh", "-c", f"tr -d x < {MARK} | wc -c; wc -c < {MARK}").split()
    assert spoiled == ["192", "4000"]
    nspawn_node.wait_ready(120)


def test_a_power_cut_right_after_the_first_boot_loses_no_image(bench_home: Path, busybox: Path) -> None:
    """Neither one that came with the system nor one of the user's; what nobody synced is lost, as on a real machine."""
    up = ("cluster", "up", "one", "--name", "young", "--image", IMAGE, "--load", busybox)
    assert kmbuild(*up).returncode == 0
    node = Node("young")
    node.output("sh", "-c", f"echo kept > {MARK}; sync {MARK}; echo lost > {MARK}-unsynced")
    node.power("cut")
    node.power("on")
    assert node.output("cat", MARK) == "kept\n"
    assert "lost" not in node.run("cat", f"{MARK}-unsynced").stdout
    node.wait_ready(120)
    wait_for("applied objects", lambda: node.kubectl("apply", "-f", "-", given=WEB), 30, 1)
    wait_for("page", lambda: fetch(node, "web6") == "kubermesh", 120, 1)
    assert kmbuild("cluster", "down", "young").returncode == 0


def test_a_wiped_machine_begins_anew(bench_home: Path) -> None:
    up = ("cluster", "up", "one", "--name", "wiped", "--image", IMAGE)
    assert kmbuild(*up).returncode == 0
    node = Node("wiped")
    node.output("touch", MARK)
    node.power("cut")
    assert disk(node, "wipe") == "wiped-1: the disk is empty\n"
    assert kmbuild(*up).returncode == 0
    assert node.run("test", "-e", MARK).code == 1
    assert kmbuild("cluster", "down", "wiped").returncode == 0


def test_a_containers_clock_is_the_hosts_and_stays_right(nspawn_node: Node) -> None:
    done = kmbuild("cluster", "clock", "1", "+1h", "--name", nspawn_node.name)
    assert done.returncode == 1
    assert done.stderr == (
        f"kmbuild: {nspawn_node.machine.name} is a container and has this host's clock; use a cluster of --driver qemu\n"
    )


def logs(node: Node, *arguments: str) -> str:
    done = kmbuild("cluster", "logs", "--name", node.name, "1", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_logs_are_read_without_the_api_and_without_power(nspawn_node: Node) -> None:
    """And what reads them from the disk leaves it free."""
    path = nspawn_node.cluster.machine_folder(nspawn_node.machine) / var_disk.FILE
    assert var_disk.is_held(path)
    nspawn_node.power("cut")
    assert "etcd-" in logs(nspawn_node, "etcd").splitlines()[-1]
    assert "kubelet" in logs(nspawn_node)
    assert not var_disk.is_held(path)
    nspawn_node.power("on")
    nspawn_node.wait_ready(120)


def test_logs_are_followed(nspawn_node: Node) -> None:
    argv = [KMBUILD, "cluster", "logs", "--name", nspawn_node.name, "1", "bench-said", "--follow"]
    nspawn_node.output("systemd-run", "--unit=bench-said", "--wait", "echo", "first words")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        seen: list[str] = []

        def says(words: str) -> bool:
            while not any(words in line for line in seen):
                assert child.stdout is not None
                seen.append(child.stdout.readline())
            return True

        assert says("first words")
        nspawn_node.output("systemd-run", "--unit=bench-said", "--wait", "echo", "second words")
        assert says("second words")
        child.kill()
    assert len([line for line in seen if line.endswith("first words\n")]) == 1


def test_a_bundle_tells_of_a_node_that_is_on_and_of_one_that_is_off(nspawn_node: Node, tmp_path: Path) -> None:
    name = nspawn_node.machine.name
    inside = {"console.log", "journal.txt", "nodes.json"}
    live = {"status.json", "nftables.txt", "routes-ipv6.txt", "etcd-members.json", "etcd-status.json"}
    files = collect(nspawn_node, tmp_path / "on.tar.gz")
    assert {f"nodes/{name}/{item}" for item in inside | live} | {"kubernetes/pods.txt", "index.html"} <= files.keys()
    assert any(path.startswith(f"nodes/{name}/pods/kube-system_etcd-") for path in files)
    directory = nspawn_node.cluster.directory
    secrets = [(directory / key).read_text().strip() for key in ("babel.key", "encryption.key")]
    assert not [path for path, text in files.items() if "PRIVATE KEY" in text or any(one in text for one in secrets)]
    nspawn_node.power("cut")
    files = collect(nspawn_node, tmp_path / "off.tar.gz")
    assert {f"nodes/{name}/{item}" for item in inside} <= files.keys()
    assert f"nodes/{name}/status.json" not in files
    nspawn_node.power("on")
    nspawn_node.wait_ready(120)


def collect(node: Node, target: Path) -> dict[str, str]:
    """Texts of a new bundle."""
    done = kmbuild("cluster", "bundle", node.name, "--output", target)
    assert done.stdout == f"{target}\n", done.stderr
    with tarfile.open(target) as archive:
        found = {member.name.split("/", 1)[1]: archive.extractfile(member) for member in archive}
        return {name: file.read().decode() for name, file in found.items() if file}
