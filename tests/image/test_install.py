"""Installing to a disk, with the image's own programs and loop devices for disks: all of it or nothing that boots."""

import json
import os
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from kmagent import disk_look, home_disk
from kmagent.disk_choice import Found
from kmagent.install import claim
from kmagent.paths import Paths
from kmbuild import sandbox
from kmplan.drives import Drive, Partition
from kmplan.run import run
from kmplan.seed import JoinBundle

SECTOR, GIB = 512, 1 << 30
ESP, ROOT, HASHES = "kubermesh-esp", "kubermesh-a", "kubermesh-a-verity"
COPY = """
import asyncio, json, sys
from pathlib import Path
from kmagent import disk_copy
from kmagent.paths import Paths
from kmplan.drives import Drive, Partition
esp, root, hashes = [Partition(path=Path(path), uuid=uuid) for path, uuid in json.loads(sys.argv[1])]
target = Drive(path=Path(sys.argv[2]), size=0)
Paths().run.mkdir()
asyncio.run(disk_copy.copy(Paths(), disk_copy.Parts(root, hashes, esp), target, lambda done: print(done, flush=True)))
"""
# Runs the rest in the image's root, whose /dev and /sys are this machine's; all mounts are in a namespace of its own.
INSIDE = """
mount --bind "$1" "$1" && mount --rbind /dev "$1/dev" && mount --rbind /sys "$1/sys" && mount -t proc proc "$1/proc" &&
mount -t tmpfs tmpfs "$1/run" && mount -t tmpfs tmpfs "$1/tmp" && exec chroot "$@"
"""


@dataclass(frozen=True)
class Entry:
    """A partition as the table of a disk has it: its place in bytes."""

    uuid: bytes
    offset: int
    size: int


def partitions(disk: Path) -> dict[str, Entry]:
    """The partitions of a disk by name (UEFI specification 5.3); none when it has no table."""
    with disk.open("rb") as file:
        file.seek(SECTOR)
        if file.read(8) != b"EFI PART":
            return {}
        file.seek(2 * SECTOR)
        table = file.read(128 * 128)
    found = {}
    for start in range(0, len(table), 128):
        first, last = struct.unpack_from("<QQ", table, start + 32)
        name = table[start + 56 : start + 128].decode("utf-16-le").rstrip("\0")
        if last:
            found[name] = Entry(table[start + 16 : start + 32], first * SECTOR, (last - first + 1) * SECTOR)
    return found


def loop(path: Path, *options: str) -> str:
    return run(["losetup", "--find", "--show", *options, path]).stdout.strip()


@pytest.fixture(scope="module")
def raw(image: Path) -> Path:
    manifest = json.loads((image / "manifest.json").read_text())
    return image / manifest["artefacts"]["raw"]["name"]


@pytest.fixture(scope="module")
def stick(raw: Path) -> Iterator[list[tuple[str, str]]]:
    """The partitions of a stick that are copied: their devices, and their UUIDs."""
    table = partitions(raw)
    devices = []
    for name in (ESP, ROOT, HASHES):
        place = ("--offset", str(table[name].offset), "--sizelimit", str(table[name].size))
        devices.append(loop(raw, "--read-only", *place))
    yield [
        (device, str(uuid.UUID(bytes_le=table[name].uuid)))
        for device, name in zip(devices, (ESP, ROOT, HASHES), strict=True)
    ]
    for device in devices:
        run(["losetup", "--detach", device])


@pytest.fixture
def disk(tools: Path, tmp_path: Path) -> Path:
    """A disk that somebody has used: with a partition table at both ends."""
    definition = tmp_path / "repart.d/data.conf"
    definition.parent.mkdir()
    definition.write_text("[Partition]\nType=linux-generic\nLabel=data\nSizeMinBytes=1G\n")
    argv = [
        "systemd-repart",
        "--offline=yes",
        "--dry-run=no",
        "--empty=create",
        "--size=8G",
        "--definitions=/build/repart.d",
    ]
    run(sandbox.in_tree(tools, [*argv, "/build/disk.img"], binds={tmp_path: "/build"}))
    assert list(partitions(tmp_path / "disk.img")) == ["data"]
    return tmp_path / "disk.img"


def install(root: Path, stick: list[tuple[str, str]], device: str) -> subprocess.Popen[str]:
    inside = ["unshare", "--mount", "sh", "-c", INSIDE, "-", str(root)]
    argv = [*inside, "/usr/bin/python3", "-I", "-c", COPY, json.dumps(stick), device]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)


def test_a_disk_gets_all_that_was_on_the_stick(root: Path, raw: Path, stick: list[tuple[str, str]], disk: Path) -> None:
    device = loop(disk)
    try:
        work = install(root, stick, device)
        said, _ = work.communicate(timeout=300)
        assert work.returncode == 0, said
    finally:
        run(["losetup", "--detach", device])
    before, after = partitions(raw), partitions(disk)
    assert {"kubermesh-var", ESP, ROOT, HASHES} <= set(after) and "data" not in after
    with raw.open("rb") as source, disk.open("rb") as target:
        for name in (ESP, ROOT, HASHES):
            assert (after[name].uuid, after[name].size) == (before[name].uuid, before[name].size)
            os.lseek(source.fileno(), before[name].offset, os.SEEK_SET)
            os.lseek(target.fileno(), after[name].offset, os.SEEK_SET)
            for _ in range(after[name].size >> 20):
                assert source.read(1 << 20) == target.read(1 << 20), name


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.7, 0.95])
def test_a_power_cut_leaves_an_empty_disk_and_the_next_boot_begins_anew(
    root: Path, stick: list[tuple[str, str]], disk: Path, share: float
) -> None:
    """Cut when so much of what is copied has been written."""
    device = loop(disk)
    name = Path(device).name

    def written() -> int:
        return int(Path(f"/sys/block/{name}/stat").read_text().split()[6]) * SECTOR

    total = sum(int(Path(f"/sys/block/{Path(part).name}/size").read_text()) * SECTOR for part, _ in stick)
    try:
        work = install(root, stick, device)
        before = written()
        while work.poll() is None and (partitions(disk) or written() - before < share * total):
            time.sleep(0.005)
        assert work.poll() is None, "it ended before it was cut"
        subprocess.run(["pkill", "-KILL", "-f", f"systemd-repart.*{device}$"], check=False)
        work.kill()
        work.communicate()
    finally:
        run(["losetup", "--detach", device])
    assert partitions(disk) == {}
    with disk.open("rb") as file:
        # What is no longer known is in nobody's way (kmagent.disk_look): nobody has to allow once more that it is wiped.
        assert not any(file.read(1 << 20))
        file.seek(-SECTOR, os.SEEK_END)
        assert file.read(8) != b"EFI PART"
    device = loop(disk)
    try:
        assert install(root, stick, device).wait(timeout=300) == 0
    finally:
        run(["losetup", "--detach", device])
    assert {ESP, ROOT, HASHES} <= set(partitions(disk))


@pytest.mark.parametrize(
    ("files", "holds", "what"),
    [
        ({"pki/node-ca.crt": "OURS", "cluster.json": '{"name": "shop"}'}, "ours", "shop"),
        ({"pki/node-ca.crt": "THEIRS", "cluster.json": '{"name": "other"}'}, "theirs", "other"),
        ({"pki/node-ca.crt": "THEIRS", "cluster.json": '{"na'}, "broken", "cannot be read"),
        ({"kubelet.log": "of old"}, "data", "a Kubermesh that knows no cluster"),
    ],
    ids=["ours", "theirs", "damaged", "none"],
)
def test_a_disk_is_known_by_the_cluster_on_it(tmp_path: Path, files: dict[str, str], holds: str, what: str) -> None:
    """And left as it is."""
    found, before = looked_at(tmp_path, files)
    assert found.holds == holds and what in found.what
    assert (tmp_path / "var.img").read_bytes() == before


def test_a_disk_whose_file_system_is_damaged_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    found, before = looked_at(tmp_path, {"cluster.json": "{}"}, spoil=True)
    assert found.holds == "broken" and "cannot be read" in found.what
    assert (tmp_path / "var.img").read_bytes() == before


def test_a_disk_that_was_claimed_is_known_however_full_its_var_becomes(tmp_path: Path) -> None:
    image, paths = tmp_path / "var.img", Paths(run=tmp_path / "run", state=tmp_path / "state")
    for folder in (paths.run, paths.state):
        folder.mkdir()
    join = JoinBundle(name="shop", authority="OURS")
    (paths.state / "join.json").write_bytes(msgspec.json.encode(join))
    run(["mkfs.ext4", "-q", image, "64m"])
    device = Path(run(["losetup", "--find", "--show", image]).stdout.strip())
    drive = Drive(path=device, size=64 << 20, partitions=[Partition(path=device, label=home_disk.VAR)])
    try:
        assert disk_look.look(paths, drive, "OURS").holds == "nothing"
        claim(paths, device.name, "its key")
        with disk_look.mounted(paths, device, "rw") as var:
            (var / "log").mkdir()
        assert disk_look.look(paths, drive, "OURS") == Found(drive, "ours", "shop")
        assert disk_look.look(paths, drive, "THEIRS").holds == "theirs"
    finally:
        run(["losetup", "--detach", device])


def looked_at(tmp_path: Path, files: dict[str, str], *, spoil: bool = False) -> tuple[Found, bytes]:
    """What is found on a disk with a partition for /var that has these files of a node's state, and its bytes before that."""
    state, image, paths = tmp_path / "tree/lib/kubermesh", tmp_path / "var.img", Paths(run=tmp_path / "run")
    paths.run.mkdir()
    for name, text in files.items():
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).write_text(text)
    run(["mkfs.ext4", "-q", "-d", tmp_path / "tree", image, "64m"])
    if spoil:
        with image.open("r+b") as file:
            file.seek(1024)
            file.write(bytes(1024))
    before = image.read_bytes()
    device = Path(run(["losetup", "--find", "--show", image]).stdout.strip())
    try:
        drive = Drive(path=device, size=64 << 20, partitions=[Partition(path=device, label=home_disk.VAR)])
        return disk_look.look(paths, drive, "OURS"), before
    finally:
        run(["losetup", "--detach", device])
