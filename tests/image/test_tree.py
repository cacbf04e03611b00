"""The root file system holds what a node needs, and nothing of the machine that built it."""

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra.host

from kmbuild import lock as locking
from kmbuild.config import Config
from kmplan.run import run

MODULES = ["e1000e", "igb", "igc", "r8169", "r8152", "ixgbe", "nvme", "ahci", "uas", "usb-storage", "virtio_net"]
GONE = ["apt", "apt-get", "dpkg", "dpkg-deb", "perl", "debconf", "update-initramfs"]


@pytest.fixture(scope="session")
def paths(root: Path) -> list[tuple[str, os.stat_result]]:
    """Every path below the root with its status."""
    found = []
    for place, folders, names in os.walk(root):
        for name in folders + names:
            path = Path(place) / name
            found.append((str(path.relative_to(root)), path.lstat()))
    return found


def installed(root: Path) -> Iterator[tuple[str, str]]:
    """Names and versions in dpkg's list of packages."""
    text = (root / "usr/lib/sysimage/dpkg/status").read_text()
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", stanza, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            yield fields["Package"], fields["Version"]


def test_every_package_in_the_tree_is_of_the_locked_version(root: Path) -> None:
    lock = locking.read(Path(__file__).parents[2] / "kubermesh.lock", Config(version=1))
    locked = {(package.name, package.version) for package in lock.packages["tree"]}
    found = set(installed(root))
    assert found <= locked
    assert len(found) > 100


def test_every_package_that_was_asked_for_is_there(root: Path) -> None:
    wanted = set(locking.requested(Config(version=1))["tree"])
    assert wanted <= {name for name, _ in installed(root)}


@pytest.mark.parametrize(
    ("command", "pattern"),
    [
        ("kubelet --version", r"^Kubernetes v{kubernetes}$"),
        ("kubectl version --client", r"^Client Version: v{kubernetes}$"),
        ("etcd --version", r"^etcd Version: {etcd}$"),
        ("etcdctl version", r"^etcdctl version: {etcd}$"),
        ("containerd --version", r"^containerd \S+ v?{containerd}\b"),
        ("containerd-shim-runc-v2 -v", r"{containerd}"),
        ("babeld -V", r"^babeld-\d"),
        ("nft --version", r"^nftables v\d"),
        ("conntrack --version", r"^conntrack v\d"),
        ("python3 --version", r"^Python 3\.13\."),
        ("systemctl --version", r"^systemd 257 "),
    ],
)
def test_programs_run_and_are_of_the_expected_version(
    host: testinfra.host.Host, manifest: dict[str, Any], command: str, pattern: str
) -> None:
    done = host.run(command)
    versions = {name: re.escape(version) for name, version in manifest["versions"].items()}
    for name, version in versions.items():
        pattern = pattern.replace(f"{{{name}}}", version)
    assert re.search(pattern, done.stdout + done.stderr, re.MULTILINE), done


def test_crun_runs(root: Path) -> None:
    # crun starts itself again through /proc/self/exe, which a bare chroot lacks, and makes a folder in /run.
    script = 'mount --bind /proc "$1/proc" && mount -t tmpfs tmpfs "$1/run" && exec chroot "$1" crun --version'
    done = run(["unshare", "--mount", "sh", "-c", script, "sh", root])
    assert done.stdout.startswith("crun version 1.")


def test_cni_plugins_are_there(host: testinfra.host.Host) -> None:
    for name in ("host-local", "loopback", "portmap", "ptp"):
        assert host.file(f"/usr/lib/cni/{name}").mode & 0o111 == 0o111


def test_the_agent_and_what_it_imports_are_there(host: testinfra.host.Host) -> None:
    done = host.run("python3 -c 'import kmagent, kmplan, cryptography, jinja2, msgspec, yaml'")
    assert done.rc == 0, done.stderr


def test_versions_are_recorded_on_the_node(root: Path, manifest: dict[str, Any]) -> None:
    recorded = json.loads((root / "usr/lib/kubermesh/versions.json").read_text())
    assert recorded == {"image": manifest["version"], "epoch": manifest["epoch"], **manifest["versions"]}


def unit_state(host: testinfra.host.Host, name: str) -> str:
    return str(host.run(f"systemctl is-enabled {name}").stdout.strip())


@pytest.mark.parametrize("name", ["kmagent.service"])
def test_the_agent_is_started_at_boot(root: Path, name: str) -> None:
    wanted = {path.name for path in root.glob("*/systemd/system/*.wants/*")}
    wanted |= {path.name for path in root.glob("usr/lib/systemd/system/*.wants/*")}
    assert name in wanted


@pytest.mark.parametrize(
    "name", ["containerd.service", "kubelet.service", "kmagent.service", "kubermesh-healthy.service"]
)
def test_our_units_are_valid(host: testinfra.host.Host, name: str) -> None:
    text = host.file(f"/usr/lib/systemd/system/{name}").content_string
    assert "[Service]" in text
    program = re.search(r"^ExecStart=[-+@:!]*(\S+)", text, re.MULTILINE)
    assert program is not None
    assert host.exists(program[1]) or host.file(program[1]).exists


@pytest.mark.parametrize(
    "name",
    ["getty@.service", "serial-getty@.service", "console-getty.service", "systemd-logind.service", "ldconfig.service"],
)
def test_units_of_a_login_and_of_a_writable_root_are_masked(host: testinfra.host.Host, name: str) -> None:
    assert unit_state(host, name) == "masked"


@pytest.mark.parametrize("name", ["ssh.service", "ssh.socket", "nftables.service", "babeld.service", "fstrim.timer"])
def test_what_a_node_does_not_start_by_itself_is_disabled(root: Path, name: str) -> None:
    links = [path for path in root.glob("etc/systemd/system/**/*") if path.name == name and path.is_symlink()]
    assert [str(link) for link in links if str(link.readlink()) != "/dev/null"] == []
    assert name not in {path.name for path in root.glob("usr/lib/systemd/system/*.wants/*")}


def test_a_node_boots_to_multi_user(host: testinfra.host.Host) -> None:
    assert host.run("systemctl get-default").stdout.strip() == "multi-user.target"


def test_no_program_is_set_user_or_group_id(paths: list[tuple[str, os.stat_result]]) -> None:
    special = stat.S_ISUID | stat.S_ISGID
    assert [name for name, status in paths if stat.S_ISREG(status.st_mode) and status.st_mode & special] == []


def test_nothing_but_tmp_folders_are_world_writable(paths: list[tuple[str, os.stat_result]]) -> None:
    writable = [name for name, status in paths if not stat.S_ISLNK(status.st_mode) and status.st_mode & stat.S_IWOTH]
    assert [name for name in writable if not re.fullmatch(r"(.*/snapshots/\d+/fs/)?tmp", name)] == []
    assert all(status.st_mode & stat.S_ISVTX for name, status in paths if name in writable)


def test_there_are_no_device_nodes(paths: list[tuple[str, os.stat_result]]) -> None:
    special = [name for name, status in paths if stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)]
    assert special == []


def test_all_times_are_the_lock_s(paths: list[tuple[str, os.stat_result]], manifest: dict[str, Any]) -> None:
    assert {int(status.st_mtime) for name, status in paths} == {manifest["epoch"]}


def test_the_machine_id_is_empty(host: testinfra.host.Host) -> None:
    assert host.file("/etc/machine-id").exists
    assert host.file("/etc/machine-id").size == 0


def test_there_are_no_ssh_host_keys(root: Path) -> None:
    assert list(root.glob("etc/ssh/ssh_host_*")) == []


def test_nobody_has_a_password(root: Path) -> None:
    fields = [line.split(":")[:2] for line in (root / "etc/shadow").read_text().splitlines()]
    assert [user for user, password in fields if not password.startswith(("!", "*"))] == []
    assert (root / "etc/shadow").stat().st_mode & 0o007 == 0


def test_ssh_takes_no_password(host: testinfra.host.Host) -> None:
    text = host.file("/etc/ssh/sshd_config.d/50-kubermesh.conf").content_string
    assert re.search(r"^PasswordAuthentication no$", text, re.MULTILINE | re.IGNORECASE)


def test_no_private_key_is_in_any_file(root: Path, paths: list[tuple[str, os.stat_result]]) -> None:
    block = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\r?\n[A-Za-z0-9+/=]{40}")
    found = []
    for name, status in paths:
        if stat.S_ISREG(status.st_mode) and status.st_size < 64 << 20 and block.search((root / name).read_bytes()):
            found.append(name)
    assert found == []


def test_nothing_of_the_building_host_is_in_etc(root: Path) -> None:
    assert not (root / "etc/hostname").exists()
    resolver = root / "etc/resolv.conf"
    assert resolver.is_symlink() or not resolver.exists()
    assert not (root / "etc/apt").exists()
    assert not (root / "etc/fstab").exists()
    name = os.uname().nodename
    texts = [path for path in (root / "etc").rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(name) < 6 or [str(path) for path in texts if name.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("folder", ["boot", "dev", "proc", "run", "sys", "tmp", "var"])
def test_places_that_a_boot_fills_are_there_and_empty(root: Path, folder: str) -> None:
    assert list((root / folder).iterdir()) == []


@pytest.mark.parametrize("name", MODULES)
def test_drivers_of_common_hardware_are_there(root: Path, manifest: dict[str, Any], name: str) -> None:
    folder = root / "usr/lib/modules" / manifest["kernel"]
    names = {path.name.partition(".")[0].replace("_", "-") for path in folder.rglob("*.ko*")}
    assert name.replace("_", "-") in names
    assert f"/{name}.ko" in (folder / "modules.dep").read_text().replace("_", "-").replace(name.replace("_", "-"), name)


def test_firmware_of_realtek_network_cards_is_there(root: Path) -> None:
    assert len(list((root / "usr/lib/firmware/rtl_nic").iterdir())) > 10


def test_the_kubernetes_program_is_one_inode_for_host_and_containers(root: Path) -> None:
    program = (root / "usr/bin/kubernetes").stat()
    snapshots = root / "usr/lib/kubermesh/containerd/snapshots"
    for name in ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler"):
        places = list(snapshots.glob(f"*/fs/usr/bin/{name}"))
        assert len(places) == 1, name
        assert places[0].stat().st_ino == program.st_ino, name
    assert program.st_nlink >= 5


def test_etcd_is_one_inode_for_host_and_container(root: Path) -> None:
    places = list((root / "usr/lib/kubermesh/containerd/snapshots").glob("*/fs/usr/bin/etcd"))
    assert [path.stat().st_ino for path in places] == [(root / "usr/bin/etcd").stat().st_ino]


def test_a_kube_proxy_that_is_started_anew_knows_its_own_rules(root: Path) -> None:
    """nft shows a protocol by its name only where this file is, and kube-proxy removes what it does not recognise."""
    snapshots = root / "usr/lib/kubermesh/containerd/snapshots"
    (place,) = snapshots.glob("*/fs/usr/bin/kube-proxy")
    assert re.search(r"^tcp\s+6\s", (place.parents[2] / "etc/protocols").read_text(), re.MULTILINE)


def test_no_file_of_the_tree_is_there_twice(paths: list[tuple[str, os.stat_result]]) -> None:
    large = {
        status.st_ino: (status.st_size, name)
        for name, status in paths
        if status.st_size > 4 << 20 and stat.S_ISREG(status.st_mode)
    }
    sizes = [size for size, _ in large.values()]
    assert len(sizes) == len(set(sizes)), sorted(large.values())


@pytest.mark.parametrize("name", GONE)
def test_package_tools_are_gone(root: Path, name: str) -> None:
    assert [str(path) for place in ("usr/bin", "usr/sbin") for path in (root / place).glob(name)] == []


@pytest.mark.parametrize("folder", ["usr/share/man", "usr/lib/modules/*/kernel/sound", "var/lib/dpkg"])
def test_what_no_node_reads_is_gone(root: Path, folder: str) -> None:
    assert [path for place in root.glob(folder) for path in place.rglob("*") if path.is_file()] == []
