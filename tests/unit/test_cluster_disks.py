"""Disks: how they are mounted, and what is done to them."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_cluster_state import make_cluster

from kmcluster import disk_faults, inside, qemu, state, var_disk
from kmcluster.driver import Result
from kmcluster.guest import alter, corrupt, fill
from kmcluster.nspawn import NspawnDriver
from kmcluster.qemu import FAULTY_DISK, QemuDriver
from kmcluster.state import Machine
from kmcluster.topology import Boot, Node, Role
from kmplan import run
from kmplan.errors import UserError


class FakeDriver:
    """A driver whose machines have the power it says, and which takes down what it is told."""

    def __init__(self, power: str = "off", answer: str = "{}") -> None:
        self.state, self.answer = power, answer
        self.told: list[Any] = []

    def power(self, machine: Machine) -> str:
        return self.state

    def wipe_disk(self, machine: Machine) -> None:
        self.told.append(("wipe", machine.name))

    def fail_disk(self, machine: Machine, failing: bool) -> None:
        self.told.append(("fail", failing))

    def execute(self, machine: Machine, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = 0) -> Result:
        self.told.append(("inside", list(argv)))
        return Result(0, self.answer, "")

    def execute_on_disk(self, machine: Machine, argv: Sequence[str], stdin: bytes, timeout_s: float) -> Result:
        self.told.append(("on disk", list(argv)))
        return Result(0, self.answer, "")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "kubermesh/clusters"


def bench(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver, nodes: int = 1, **fields: Any) -> None:
    """Save cluster `one`, and have its machines run by `driver`."""
    cluster = make_cluster()
    for number in range(2, nodes + 1):
        cluster.machines.append(Machine(name=f"one-{number}", number=number, node=Node()))
    for key, value in fields.items():
        setattr(cluster.machines[0], key, value)
    with state.locked("one", make=True):
        cluster.save()
    monkeypatch.setattr(disk_faults, "driver_of", lambda cluster: driver)


def test_a_disk_is_mounted_before_the_machine_starts() -> None:
    argv = var_disk.mounted(Path("/m/var.ext4"), Path("/m/var"), ["systemd-nspawn", "--boot"])
    assert argv[2].startswith('mount -t ext4 -o "$1" "$2" "$3" && shift 3 && exec "$@";')
    assert argv[3:] == ["-", var_disk.OPTIONS, "/m/var.ext4", "/m/var", "systemd-nspawn", "--boot"]
    failing = var_disk.mounted(Path("/m/var.ext4"), Path("/m/var"), ["true"], failing=True)
    assert '&& mount -o remount,abort "$3" &&' in failing[2]


def test_a_disk_that_cannot_be_mounted_ends_in_one_clear_line(tmp_path: Path) -> None:
    argv = var_disk.mounted(tmp_path / "var.ext4", tmp_path, ["echo", "started"])
    done = run.run(argv, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "var.ext4 cannot be mounted, see the console"


def test_a_disk_of_an_off_machine_is_opened_in_a_mount_namespace_of_its_own() -> None:
    argv = var_disk.opened(Path("/m/var.ext4"), Path("/roots/abc"), ["chroot", "/roots/abc", "df"])
    assert argv[:2] == ["unshare", "--mount"]
    assert 'mount -o remount,bind,ro "$1"' in argv[4]
    assert argv[-3:] == ["chroot", "/roots/abc", "df"]
    assert "/roots/abc/var" in argv


def test_a_disk_that_no_loop_device_holds_is_free(tmp_path: Path) -> None:
    var_disk.wait_free(tmp_path / "var.ext4", timeout_s=0)


def test_only_the_machines_own_disk_is_shut_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a container has not mounted it yet, or not any more, there may be the host's."""
    disk, told = tmp_path / "var.ext4", []
    device = tmp_path.stat().st_dev
    loop = tmp_path / f"sys/dev/block/{os.major(device)}:{os.minor(device)}/loop"
    monkeypatch.setattr(var_disk, "SYS", tmp_path / "sys")
    monkeypatch.setattr(var_disk.fcntl, "ioctl", lambda _, request, __: told.append(request))
    var_disk.cut_off(tmp_path / "none", disk)
    var_disk.cut_off(tmp_path, disk)
    loop.mkdir(parents=True)
    (loop / "backing_file").write_text("/another/var.ext4\n")
    var_disk.cut_off(tmp_path, disk)
    assert told == []
    (loop / "backing_file").write_text(f"{disk}\n")
    var_disk.cut_off(tmp_path, disk)
    assert told == [var_disk.EXT4_IOC_SHUTDOWN]


def test_a_disk_is_held_by_the_loop_device_that_has_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(var_disk, "SYS", tmp_path)
    (tmp_path / "block/loop0").mkdir(parents=True)
    (tmp_path / "block/loop1/loop").mkdir(parents=True)
    (tmp_path / "block/loop1/loop/backing_file").write_text(f"{tmp_path}/one.ext4\n")
    assert var_disk.is_held(tmp_path / "one.ext4")
    assert not var_disk.is_held(tmp_path / "two.ext4")


def test_only_a_machine_that_is_off_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver("on")
    bench(monkeypatch, driver)
    with pytest.raises(UserError, match=r"^one-1 is on; `kmbuild cluster power one-1 cut`, then wipe$"):
        disk_faults.change("one", "1", "wipe")
    assert driver.told == []


@pytest.mark.parametrize(("nodes", "left"), [(1, "kubermesh.seed"), (2, "kubermesh.join")])
def test_a_wiped_seed_with_neighbours_is_blank(
    monkeypatch: pytest.MonkeyPatch, home: Path, nodes: int, left: str
) -> None:
    driver = FakeDriver("off")
    bench(monkeypatch, driver, nodes, disk_faults=["full", "errors"])
    credentials = home / "one/machines/one-1/credentials"
    credentials.mkdir(parents=True)
    (credentials / "kubermesh.seed").touch()
    monkeypatch.setattr(disk_faults.seed, "make_join", lambda directory, number: f"join {number}".encode())
    for _ in range(2):
        assert disk_faults.change("one", "1", "wipe").faults == []
    assert [path.name for path in credentials.iterdir()] == [left]
    assert driver.told == [("wipe", "one-1")] * 2


def test_a_seed_that_has_its_stick_is_wiped_when_it_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stick would begin a second cluster beside the first."""
    driver, node = FakeDriver("off"), Node(role=Role.SEED, boot=Boot.STICK)
    bench(monkeypatch, driver, 2, node=node, stick=True)
    with pytest.raises(UserError) as raised:
        disk_faults.change("one", "1", "wipe")
    hint = "`kmbuild cluster stick one-1 pull`, then wipe"
    assert str(raised.value) == f"one-1: its stick makes a seed of it again; {hint}"
    assert driver.told == []
    bench(monkeypatch, driver, 2, node=node, stick=False)
    disk_faults.change("one", "1", "wipe")
    bench(monkeypatch, driver, 1, node=node, stick=True)
    disk_faults.change("one", "1", "wipe")
    bench(monkeypatch, driver, 2, node=Node(boot=Boot.STICK), stick=True)
    disk_faults.change("one", "1", "wipe")
    assert driver.told == [("wipe", "one-1")] * 3


def test_errors_last_until_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver("on")
    bench(monkeypatch, driver)
    for _ in range(2):
        assert disk_faults.change("one", "1", "errors").faults == ["errors"]
    assert state.load("one").machines[0].disk_faults == ["errors"]
    mended = disk_faults.change("one", "1", "repair")
    assert mended.faults == state.load("one").machines[0].disk_faults == []
    assert mended.facts == {"hint": "/var stays read-only until `kmbuild cluster power one-1 reset`"}
    assert disk_faults.change("one", "1", "repair").facts == {}
    assert driver.told == [("fail", True), ("fail", True), ("fail", False)]


def test_a_container_is_told_of_errors_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal cannot be aborted twice."""
    cluster, told = make_cluster(), []

    def execute(_machine: Machine, argv: Sequence[str]) -> Result:
        told.append(argv)
        return Result(0, "", "")

    driver, machine = NspawnDriver(cluster), cluster.machines[0]
    monkeypatch.setattr(driver, "power", lambda _: "on")
    monkeypatch.setattr(driver, "execute", execute)
    for _ in range(2):
        disk_faults.fail(driver, machine)
    assert told == [["mount", "-o", "remount,abort", "/var"]]


def test_a_repair_that_fails_halfway_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ballast cannot be removed from a file system that became read-only."""
    bench(monkeypatch, FakeDriver("on"), disk_faults=["full", "errors"])

    def refuse(*_arguments: object, **_options: object) -> None:
        raise UserError("one-1: /var: Read-only file system")

    monkeypatch.setattr(inside, "run_script", refuse)
    with pytest.raises(UserError, match="Read-only"):
        disk_faults.change("one", "1", "repair")
    assert state.load("one").machines[0].disk_faults == ["full"]


def test_a_script_runs_on_the_disk_of_a_machine_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for power, place in (("on", "inside"), ("off", "on disk")):
        driver = FakeDriver(power, '{"bytes": 5}')
        bench(monkeypatch, driver)
        assert disk_faults.change("one", "1", "fill").facts == {"bytes": 5}
        assert driver.told == [(place, ["python3", "-S", "-E", "-", "fill"])]


@pytest.mark.parametrize(
    ("action", "file", "words"), [("burn", None, "no such action"), ("fill", "x", "takes no file")]
)
def test_a_bad_order_is_one_line(action: str, file: str | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        disk_faults.change("one", "1", action, file)


def test_spoiling_changes_content_and_not_the_zeros_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrupt, "VAR", str(tmp_path))
    path = tmp_path / "a.wal"
    path.write_bytes(b"x" * 4000 + bytes(3 << 20))
    assert corrupt.check("a.wal") == str(path)
    assert corrupt.spoil(str(path)) == [1000, 2000, 3000]
    spoiled = path.read_bytes()
    assert len(spoiled) == 4000 + (3 << 20)
    assert spoiled[1000:1064] == corrupt.NOISE
    assert spoiled[4000:] == bytes(3 << 20)
    corrupt.spoil(str(path))
    assert path.read_bytes() == spoiled


@pytest.mark.parametrize(
    ("name", "words"), [("../etc/passwd", "not below"), ("/etc/passwd", "not below"), ("no", "no such")]
)
def test_only_files_of_the_disk_are_spoiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.setattr(corrupt, "VAR", str(tmp_path))
    with pytest.raises(SystemExit, match=words):
        corrupt.check(name)


def test_an_empty_file_cannot_be_spoiled(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(bytes(5000))
    with pytest.raises(SystemExit, match="has no content"):
        corrupt.spoil(str(tmp_path / "empty"))


def test_a_bit_is_changed_wherever_a_text_is(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(b"a lease, a leas, lease")
    assert alter.alter(str(path), b"lease") == [2, 17]
    assert path.read_bytes() == b"a leasd, a leas, leasd"
    assert alter.alter(str(path), b"lease") == []


def test_a_ballast_takes_all_but_less_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 5 * (1 << 30) + 12345

    def allocate(descriptor: int, offset: int, length: int) -> None:
        if offset + length > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        os.ftruncate(descriptor, offset + length)

    monkeypatch.setattr(fill, "BALLAST", str(tmp_path / "ballast"))
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    assert room - fill.SMALLEST < fill.fill() <= room
    assert fill.fill() == (tmp_path / "ballast").stat().st_size
    assert fill.free() == fill.free() == 0
    assert not (tmp_path / "ballast").exists()


def test_a_ballast_is_on_the_disk_before_it_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes and goes for good, by its content and by its name."""

    def allocate(*_arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    synced: list[str] = []
    monkeypatch.setattr(fill, "BALLAST", str(tmp_path / "ballast"))
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
    )
    fill.fill()
    assert synced == [f"{tmp_path}/ballast", "/var"]
    fill.free()
    assert synced[2:] == ["/var"]


def test_qemu_puts_the_fault_between_controller_and_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes nothing out that is not there: QEMU dies of being given the image it has."""
    driver, machine, nodes = QemuDriver(make_cluster()), make_cluster().machines[0], ["disk-image"]
    told: list[tuple[str, Any]] = []

    def execute(_path: Path, command: str, /, **arguments: Any) -> Any:
        if command == "query-named-block-nodes":
            return [{"node-name": name} for name in nodes]
        told.append((command, arguments.get("value", arguments.get("node-name"))))
        if command == "blockdev-add":
            assert arguments == FAULTY_DISK
            nodes.append(arguments["node-name"])
        if command == "blockdev-del":
            nodes.remove(arguments["node-name"])
        return {}

    monkeypatch.setattr(qemu.qmp, "execute", execute)
    monkeypatch.setattr(driver, "power", lambda machine: "on")
    driver.fail_disk(machine, False)
    assert told == []
    for _ in range(2):
        driver.fail_disk(machine, True)
    driver.fail_disk(machine, False)
    assert told == [
        ("blockdev-add", "disk-faulty"),
        ("qom-set", "disk-faulty"),
        ("qom-set", "disk-image"),
        ("blockdev-del", "disk-faulty"),
    ]
