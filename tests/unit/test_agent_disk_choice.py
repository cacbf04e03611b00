"""Which disk a machine takes for its own, and which it never touches."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agent_disks import GB, OURS, THEIRS, drive, found, wish

from kmagent import (
    disk_choice,
    disk_look,
    home_disk,
    install,
    machine,
)
from kmagent.disk_choice import Found, choose, refusal
from kmagent.paths import Paths
from kmplan import document
from kmplan.cluster import ClusterFile, Install
from kmplan.drives import Drive, Partition
from kmplan.errors import UserError
from kmplan.run import CommandError
from kmplan.seed import JoinBundle


def taken(disks: list[Found], wanted: Install) -> str:
    chosen = choose(disks, wanted)
    return chosen.drive.path.name if chosen else ""


NVME = {"bus": "nvme"}
HARD_DISK = found("sda", size_gb=8000, spins=True)
SSD, FLASH = found("sdb", size_gb=250), found("nvme0n1", size_gb=250, **NVME)


@pytest.mark.parametrize(
    ("disks", "wanted", "name"),
    [
        ([], {}, ""),
        ([HARD_DISK], {}, "sda"),
        # Not the first of the alphabet, not the largest: the fastest kind.
        ([HARD_DISK, SSD], {}, "sdb"),
        ([HARD_DISK, SSD, FLASH], {}, "nvme0n1"),
        ([SSD, found("sdc", size_gb=1000)], {}, "sdc"),
        # A disk that has this cluster's node on it, whatever else there is and whatever the rules say.
        ([FLASH, found("sdd", "ours", "shop", size_gb=64, spins=True)], {"disks": [{"bus": "nvme"}]}, "sdd"),
        # What holds something is not taken, unless that is allowed; an empty one is better all the same.
        ([found("sda", "data", "ntfs")], {}, ""),
        ([found("sda", "data", "ntfs")], {"wipe": True}, "sda"),
        ([found("nvme0n1", "data", "ntfs", **NVME), SSD], {"wipe": True}, "sdb"),
        ([found("sda", "theirs", "other")], {"wipe": True}, ""),
        ([found("sda", "theirs", "other")], {"wipe_clusters": True}, "sda"),
        ([found("sda", "data", "ntfs")], {"wipe_clusters": True}, ""),
        # Rules.
        ([SSD, FLASH], {"disks": [{"bus": "sata"}]}, "sdb"),
        ([SSD, FLASH, HARD_DISK], {"disks": [{"min_gb": 1000}, {"bus": "nvme"}]}, "sda"),
        ([SSD, FLASH], {"disks": [{"max_gb": 100}]}, ""),
        ([found("sda", model="INTEL SSDSC2", serial="B1"), FLASH], {"disks": [{"model": "INTEL*"}]}, "sda"),
        ([found("sda", serial="BTW1", wwn="0x55cd"), FLASH], {"disks": [{"id": "0x55cd"}]}, "sda"),
        ([found("sda", serial="BTW1", wwn="0x55cd"), FLASH], {"disks": [{"id": "BTW?"}]}, "sda"),
        # Too small, and read-only.
        ([found("sda", size_gb=2)], {}, ""),
        ([found("sda", read_only=True)], {"wipe": True}, ""),
        ([found("sda", sector=4096)], {}, ""),
        # A Kubermesh that cannot be read may be this machine's own: nothing is taken in its place.
        ([found("sda", "broken"), SSD], {"wipe": True, "wipe_clusters": True}, ""),
        ([found("sda", "broken"), found("sdd", "ours")], {}, "sdd"),
    ],
)
def test_one_disk_is_chosen_or_none(disks: list[Found], wanted: dict[str, Any], name: str) -> None:
    assert taken(disks, wish(**wanted)) == name
    assert taken(disks[::-1], wish(**wanted)) == name


def test_a_person_may_say_that_it_does_not_matter_what_is_on_a_disk() -> None:
    for holds in ("data", "theirs", "broken"):
        one = found("sda", holds)
        assert choose([one], Install()) is None and choose([one], Install(), force=True) == one
    # Not whether it is one of those that the rules are for, nor whether it can be used.
    assert choose([found("sda", "data")], wish(disks=[{"bus": "nvme"}]), force=True) is None
    assert choose([found("sda", "data", read_only=True)], Install(), force=True) is None


def test_who_may_not_be_taken_is_said_with_the_way_out() -> None:
    disks = [found("sda", "data", "ntfs, Photos"), found("sdb", "theirs", "other"), found("sdc", size_gb=1)]
    assert [refusal(one, Install()).partition(";")[0] for one in disks] == [
        "holds ntfs, Photos",
        "has a node of cluster other",
        "is smaller than 4 GB",
    ]
    assert "`install.wipe: true`" in refusal(disks[0], Install())
    assert "`install.wipe_clusters: true`" in refusal(disks[1], Install())
    assert "`install.disks`" in refusal(found("sda"), wish(disks=[{"bus": "nvme"}]))
    text = install.refusals(disks[:1], Install(), is_asked=False)
    assert text.startswith("no disk to install to: /dev/sda (sata, 500 GB) holds ntfs, Photos")
    assert "leave the stick in" in install.refusals(disks[:1], Install(), is_asked=False, stick=True)
    # Who may allow it is told first which one it would be.
    larger = found("sdd", "data", "ext4, Backup", size_gb=900)
    text = install.refusals([*disks, larger], Install(), is_asked=True)
    assert text.startswith(
        "no disk to install to, `--wipe` would take /dev/sdd (sata, 900 GB): /dev/sda (sata, 500 GB) holds"
    )
    assert "`stick` or `ram`" in install.refusals([], Install(), is_asked=True)


def test_the_cluster_file_says_where_nodes_live(tmp_path: Path) -> None:
    base = {"version": 1, "name": "shop", "prefix": "fd12:3456:789a::/48"}
    read = document.convert({**base, "install": {"to": "disk", "disks": [{"min_gb": 100}]}}, ClusterFile, "here")
    assert (read.install.to, read.install.wipe, read.install.disks[0].min_gb) == ("disk", False, 100)
    for wrong, words in (
        ({"to": "nas"}, "nas"),
        ({"disks": [{"size": 1}]}, "size"),
        ({"disks": [{"min_gb": 5, "max_gb": 4}]}, "less than min_gb"),
        ({"disks": [{"max_gb": -1}]}, ">= 0"),
    ):
        with pytest.raises(UserError, match=words):
            document.convert({**base, "install": wrong}, ClusterFile, "here")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "run").mkdir()
    return Paths(run=tmp_path / "run", state=tmp_path / "state")


@pytest.fixture
def var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is on the partition for /var of every disk."""
    folder = tmp_path / "var"
    folder.mkdir()

    @contextlib.contextmanager
    def mounted(_: Paths, device: Path, how: str, kind: str = "ext4") -> Iterator[Path]:
        if device.name == "sda9":
            raise CommandError(["mount"], 32, "wrong fs type")
        yield folder

    monkeypatch.setattr(disk_look, "mounted", mounted)
    return folder / "lib/kubermesh"


def with_var(name: str = "sda6") -> Drive:
    return drive(partitions=[Partition(path=Path("/dev") / name, label=home_disk.VAR)])


def test_a_disk_is_known_by_the_cluster_of_the_node_on_it(paths: Paths, var: Path) -> None:
    # A disk that was prepared and never used is as good as an empty one.
    assert disk_look.look(paths, with_var(), OURS).holds == "nothing"
    (var / "pki").mkdir(parents=True)
    (var / "join.json").write_bytes(msgspec.json.encode(JoinBundle(name="shop", authority=OURS)))
    assert disk_look.look(paths, with_var(), OURS).holds == "ours"
    assert disk_look.look(paths, with_var(), THEIRS) == Found(with_var(), "theirs", "shop")
    # An admitted node, or a seed.
    (var / install.NODE_AUTHORITY).write_text(THEIRS)
    (var / "cluster.json").write_text(json.dumps({"name": "other"}))
    assert disk_look.look(paths, with_var(), OURS) == Found(with_var(), "theirs", "other")
    assert disk_look.look(paths, with_var(), THEIRS).holds == "ours"


def test_what_cannot_be_read_is_not_nothing(paths: Paths, var: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk_look.look(paths, with_var("sda9"), OURS).holds == "broken"
    # Volumes of pods, and no node's state any more.
    (var.parent / "containerd").mkdir(parents=True)
    assert disk_look.look(paths, with_var(), OURS).holds == "data"
    # Somebody else's partition beside ours that were never used.
    (var.parent / "containerd").rmdir()
    var.parent.rmdir()
    beside = with_var()
    beside = msgspec.structs.replace(
        beside, partitions=[*beside.partitions, Partition(path=Path("/dev/sda7"), label="x")]
    )
    assert disk_look.look(paths, beside, OURS).holds == "data"
    # State that is there and damaged.
    (var / "pki").mkdir(parents=True)
    for text in ("[]", "{", "{}"):
        (var / install.NODE_AUTHORITY).write_text(OURS)
        (var / "cluster.json").write_text(text)
        assert disk_look.look(paths, with_var(), OURS).holds == "broken"
    (var / install.NODE_AUTHORITY).unlink()
    (var / "join.json").write_text('{"version": 9}')
    assert disk_look.look(paths, with_var(), OURS).holds == "broken"
    # A disk that fails takes nothing else down.
    monkeypatch.setattr(disk_look, "is_zero", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    failing = disk_look.look(paths, drive(), OURS)
    assert failing.holds == "data" and "Input/output error" in failing.what


def test_a_disk_is_empty_only_when_nothing_at_all_is_on_it(paths: Paths, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(2 << 20))

    def looked(**more: Any) -> tuple[str, str]:
        seen = disk_look.look(paths, Drive(path=disk, size=100 * GB, removable=False, **more), OURS)
        return seen.holds, seen.what

    assert looked()[0] == "nothing"
    assert looked(content=["ntfs", "Photos"]) == ("data", "ntfs, Photos")
    assert looked(partitions=[Partition(path=Path("/dev/sda1"))])[0] == "data"
    # Something that no tool knows.
    disk.write_bytes(b"\0" * 5000 + b"x" + b"\0" * (2 << 20))
    assert looked() == ("data", "something unknown")


@pytest.fixture
def sys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an NVMe disk, a disk on SATA, one on USB, an SD card and an eMMC."""
    root = tmp_path / "sys"
    places = {
        "nvme0n1": "devices/pci0000:00/0000:00:1d.0/nvme/nvme0/nvme0n1",
        "sda": "devices/pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0/block/sda",
        "sdb": "devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host4/target4:0:0/4:0:0:0/block/sdb",
        "mmcblk0": "devices/pci0000:00/0000:00:1a.0/mmc_host/mmc0/mmc0:0001/block/mmcblk0",
        "mmcblk1": "devices/pci0000:00/0000:00:1b.0/mmc_host/mmc1/mmc1:0007/block/mmcblk1",
    }
    (root / "block").mkdir(parents=True)
    for name, place in places.items():
        (root / place / "device").mkdir(parents=True)
        (root / place / "removable").write_text("0\n")
        (root / "block" / name).symlink_to(root / place)
    (root / places["mmcblk0"] / "device/type").write_text("MMC\n")
    (root / places["mmcblk1"] / "device/type").write_text("SD\n")
    for number, label in enumerate(("kubermesh-esp", "kubermesh-a", "kubermesh-var"), 1):
        (root / places["nvme0n1"] / f"nvme0n1p{number}").mkdir()
        (root / places["nvme0n1"] / f"nvme0n1p{number}" / "uevent").write_text(f"DEVTYPE=partition\nPARTNAME={label}\n")
    monkeypatch.setattr(machine, "SYS", root)
    return root


def test_what_can_be_pulled_out_is_never_a_home(sys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("nvme0n1", "sda", "sdb", "mmcblk0", "mmcblk1")
    assert [name for name in names if not machine.is_removable(name)] == ["nvme0n1", "sda", "mmcblk0"]
    assert machine.fixed_disks() == ["mmcblk0", "nvme0n1", "sda"]
    homes = [drive(name) for name in (*names, "mmcblk0boot0", "zram0", "loop0")]
    assert [one.path.name for one in homes if disk_look.may_be_home(one)] == ["nvme0n1", "sda", "mmcblk0"]
    # A disk that is mounted is in use. The root may be read from the disk though the machine was booted from the stick.
    assert not disk_look.may_be_home(drive("sda", mounts=["/", "/srv"]))
    assert disk_look.may_be_home(drive("sda", mounts=["/"]))
    assert machine.removable_disks() == ["mmcblk1", "sdb"]
    assert machine.partition("nvme0n1", "kubermesh-var") == "nvme0n1p3"
    assert machine.partition("nvme0n1", "kubermesh-b") is None
    # One that was added while the kernel ran: it has no name for it.
    (sys / "block/nvme0n1/nvme0n1p4").mkdir()
    (sys / "block/nvme0n1/nvme0n1p4/uevent").write_text("DEVTYPE=partition\nPARTN=4\n")
    monkeypatch.setattr(machine, "_label", lambda name: {"nvme0n1p4": "kubermesh-b"}[name])
    assert machine.partition("nvme0n1", "kubermesh-b") == "nvme0n1p4"


def test_a_disk_is_described_for_people() -> None:
    assert disk_choice.describe(drive("sda", 240.1, model="Blade")) == "/dev/sda (Blade, 240 GB)"
