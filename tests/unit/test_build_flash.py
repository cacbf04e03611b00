"""Flashing: which drives are refused, and what is on a drive when something goes wrong."""

import contextlib
import errno
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner

from kmbuild import bmap, drives, stick
from kmbuild import flash as flashing
from kmbuild.bmap import BLOCK, BlockMap
from kmbuild.cli import kmbuild
from kmplan.drives import Drive, listed
from kmplan.errors import UserError

MIB = 1 << 20
TABLE = b"EFI PART".ljust(5 * BLOCK, b"\x55")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A partition table, data from the first MiB on, more beyond a hole, and a copy of the table at the end."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(24 * MIB)
        for offset, data in (
            (0, TABLE),
            (MIB, os.urandom(9 * MIB)),
            (16 * MIB, os.urandom(BLOCK)),
            (24 * MIB - BLOCK, b"EFI PART".ljust(BLOCK, b"e")),
        ):
            os.pwrite(file.fileno(), data, offset)
    return path


@pytest.fixture
def block_map(image: Path) -> BlockMap:
    return bmap.make(image)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A used stick: full of something, and with an old partition table at both ends."""
    path = tmp_path / "stick.img"
    path.write_bytes(b"EFI PART".ljust(40 * MIB - 8, b"\xee") + b"EFI PART")
    return path


def write(image: Path, block_map: BlockMap, target: Path, **more: Any) -> stick.Result:
    values: dict[str, Any] = {"finish": lambda _: None, "report": lambda *_: None, **more}
    return stick.write(image, block_map, target, **values)


def boots(target: Path) -> bool:
    """Whether a partition table is at either end."""
    data = target.read_bytes()
    return b"EFI PART" in data[: 34 * 512] or b"EFI PART" in data[-34 * 512 :]


def test_a_drive_has_all_of_the_image_and_nothing_of_its_old_tables(
    image: Path, block_map: BlockMap, target: Path
) -> None:
    steps: list[tuple[str, int, int]] = []
    result = write(image, block_map, target, report=lambda *step: steps.append(step))
    written, data = target.read_bytes(), image.read_bytes()
    assert all(written[one.start : one.end] == data[one.start : one.end] for one in block_map.ranges)
    assert written[: len(TABLE)] == TABLE and not any(written[len(TABLE) : MIB]) and not any(written[-MIB:])
    assert result.written == block_map.mapped
    # What is no data of the image is not written.
    assert written[20 * MIB : 21 * MIB] == b"\xee" * MIB
    assert [step for step in steps if step[0] == "writing"][-1] == ("writing", block_map.mapped, block_map.mapped)
    assert steps[-1][0] == "verifying" and steps[-1][1] == steps[-1][2]


def test_an_image_without_holes_that_ends_anywhere_is_written_and_checked(tmp_path: Path, target: Path) -> None:
    """One part from the first byte to the last, as where there is no map."""
    image, size = tmp_path / "solid.raw", 24 * MIB + 777
    image.write_bytes(TABLE + os.urandom(size - len(TABLE)))
    whole = bmap.make(image)
    assert [(one.start, one.end) for one in whole.ranges] == [(0, size)]
    write(image, whole, target)
    assert target.read_bytes()[:size] == image.read_bytes()
    for offset in (MIB, 9 * MIB, size - 2 * MIB):

        def spoil(now: str, done: int, total: int, at: int = offset) -> None:
            if now == "writing" and done == total:
                with target.open("r+b") as file:
                    os.pwrite(file.fileno(), bytes([os.pread(file.fileno(), 1, at)[0] ^ 4]), at)

        with pytest.raises(UserError, match="something else than was written"):
            write(image, whole, target, report=spoil)
        assert not boots(target)


class Stop(Exception):  # noqa: N818 - not an error of the program
    """Whatever ends it."""


@pytest.mark.parametrize("what", ["writing", "verifying", "finishing", "read_back", "settle"])
@pytest.mark.parametrize("size", [40 * MIB, 24 * MIB], ids=["larger", "as large as the image"])
def test_what_is_interrupted_does_not_boot(
    image: Path, block_map: BlockMap, target: Path, monkeypatch: pytest.MonkeyPatch, what: str, size: int
) -> None:
    """Also when the partition table is there, and where its copy has its place at the drive's end."""
    os.truncate(target, size)

    def report(now: str, done: int, total: int) -> None:
        if now == what and done == total:
            # As if the power went.
            assert not boots(target)
            raise Stop

    def finish(_: Path) -> None:
        if what == "finishing":
            raise Stop

    def end(*_: object) -> bytes:
        # The copy of the table comes first.
        assert boots(target) or (what, size) == ("read_back", 40 * MIB)
        raise Stop

    with pytest.raises(Stop), monkeypatch.context() as patches:
        if hasattr(stick, what):
            patches.setattr(stick, what, end)
        write(image, block_map, target, report=report, finish=finish)
    assert not boots(target)
    write(image, block_map, target)
    assert boots(target)


@pytest.mark.parametrize("offset", [MIB, 5 * MIB, 16 * MIB + 7])
def test_an_image_that_was_altered_is_noticed(image: Path, block_map: BlockMap, target: Path, offset: int) -> None:
    with image.open("r+b") as file:
        os.pwrite(file.fileno(), bytes([os.pread(file.fileno(), 1, offset)[0] ^ 1]), offset)
    with pytest.raises(UserError, match=r"disk\.raw: altered or damaged between .*; copy or build it again"):
        write(image, block_map, target)
    assert not boots(target)


def test_an_image_that_was_cut_is_refused_before_anything_is_lost(
    image: Path, block_map: BlockMap, target: Path
) -> None:
    os.truncate(image, 20 * MIB)
    before = target.read_bytes()
    with pytest.raises(UserError, match="its map says 25165824; copy or build it again"):
        write(image, block_map, target)
    assert target.read_bytes() == before


@pytest.mark.parametrize("offset", [MIB, 9 * MIB, 16 * MIB])
def test_one_flipped_bit_on_the_drive_is_noticed(image: Path, block_map: BlockMap, target: Path, offset: int) -> None:
    def report(now: str, done: int, total: int) -> None:
        if now == "writing" and done == total:
            with target.open("r+b") as file:
                os.pwrite(file.fileno(), bytes([os.pread(file.fileno(), 1, offset)[0] ^ 4]), offset)

    with pytest.raises(UserError, match="something else than was written; it is broken: take another drive"):
        write(image, block_map, target, report=report)
    assert not boots(target)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EIO, "it fails: take another drive"),
        (errno.ENOSPC, "it is full, or smaller than it says"),
        # Either, when it vanishes.
        (errno.ENODEV, "it was pulled out: begin again"),
        (errno.ENXIO, "it was pulled out: begin again"),
        (errno.EPERM, "nothing on it boots now"),
    ],
)
def test_a_drive_that_fails_is_one_line_and_does_not_boot(
    image: Path, block_map: BlockMap, target: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(stick, "put", fail)
    with pytest.raises(UserError, match=rf"stick\.img: {os.strerror(number)}; {said}"):
        write(image, block_map, target)
    assert not boots(target)


STICK = Drive(path=Path("/dev/sdx"), size=8 << 30, model="Blade", serial="4C53")


@pytest.mark.parametrize(
    ("changes", "serial", "said"),
    [
        ({}, "", None),
        ({"mounts": ["/media/me/PHOTOS"]}, "", "in use at /media/me/PHOTOS; unmount it: umount /media/me/PHOTOS"),
        ({"mounts": ["/boot/efi", "/"]}, "4C53", r"this machine runs from it \(/boot/efi, /\)"),
        ({"mounts": ["[SWAP]"]}, "", "this machine runs from it"),
        ({"read_only": True}, "", "read-only; is there a switch on it"),
        ({"size": 1 << 30}, "", "1024 MiB, the image needs 2081; take a larger one"),
        ({"removable": False}, "", "no removable drive; if you mean it: --force 4C53"),
        ({"removable": False}, "4C54", "no removable drive"),
        ({"removable": False}, "4C53", None),
        ({"removable": False, "serial": ""}, "", "no removable drive; it has no serial number to name it by"),
    ],
)
def test_drives_that_are_refused(changes: dict[str, Any], serial: str, said: str | None) -> None:
    drive = Drive(**{name: getattr(STICK, name) for name in ("path", "size", "model", "serial")} | changes)
    if said is None:
        drives.check(drive, 2081 * MIB, serial)
        return
    with pytest.raises(UserError, match=f"^/dev/sdx: {said}"):
        drives.check(drive, 2081 * MIB, serial)


def device(
    path: str, kind: str, size: int, mount: str | None = None, children: Any = (), **more: Any
) -> dict[str, Any]:
    """What lsblk says of one."""
    names = ("tran", "model", "serial", "fstype", "label", "partlabel")
    said = {
        "path": path,
        "type": kind,
        "size": size,
        "ro": False,
        "rm": False,
        "hotplug": False,
        "mountpoints": [mount],
    }
    return {**said, **dict.fromkeys(names), **more, **({"children": list(children)} if children else {})}


def test_what_is_soldered_in_is_no_stick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lsblk says the same of a memory card and of an eMMC."""
    monkeypatch.setattr("kmplan.drives.BLOCK", tmp_path)
    for name, kind in (("mmcblk0", "MMC"), ("mmcblk1", "SD")):
        (tmp_path / name / "device").mkdir(parents=True)
        (tmp_path / name / "device/type").write_text(f"{kind}\n")
    for hotplug in (True, False):
        devices = [device(f"/dev/{name}", "disk", 64 << 30, hotplug=hotplug) for name in ("mmcblk0", "mmcblk1")]
        monkeypatch.setattr(drives, "lsblk", lambda devices=devices: devices)
        assert [drive.path.name for drive in drives.removable()] == ["mmcblk1"]


@pytest.mark.parametrize(
    ("kind", "size", "said"),
    [
        ("disk", 0, "/dev/null: there is no medium in it"),
        ("part", 1 << 30, "/dev/null: a part of a drive"),
        ("rom", 1 << 30, "/dev/null: no drive, but rom"),
    ],
)
def test_what_is_no_drive_is_called_what_it_is(
    kind: str, size: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drives.stat, "S_ISBLK", lambda _: True)
    monkeypatch.setattr(drives, "lsblk", lambda _: [device("/dev/null", kind, size)])
    with pytest.raises(UserError, match=said):
        drives.find(Path("/dev/null"))


def test_a_drive_with_large_sectors_is_refused() -> None:
    """The partition table would be where no firmware looks for it."""
    with pytest.raises(UserError, match="sectors of 4096 bytes"):
        drives.check(Drive(path=Path("/dev/sdb"), size=64 << 30, removable=True, sector=4096), 1 << 30)


def test_drives_are_told_apart_as_lsblk_shows_them() -> None:
    root = device("/dev/mapper/root", "crypt", 1, "/", fstype="ext4")
    parts = [
        device("/dev/sda1", "part", 1, "/boot/efi", fstype="vfat", label="EFI"),
        device("/dev/sda2", "part", 1, children=[root], fstype="crypto_LUKS"),
    ]
    out = {"rm": True, "hotplug": True}
    disk, usb = listed(
        [
            device("/dev/sda", "disk", 500 << 30, children=parts, model="SSD 500 ", serial="S1", tran="sata"),
            device("/dev/sdb", "disk", 16 << 30, model="Blade", serial="4C53", fstype="iso9660", label="DEBIAN", **out),
            # A card reader without a card, and a DVD.
            device("/dev/sdc", "disk", 0, model="Card Reader", **out),
            device("/dev/sr0", "rom", 1 << 30, **out),
        ]
    )
    assert (disk.removable, disk.content, disk.mounts) == (False, ["EFI", "crypto_LUKS", "ext4"], ["/boot/efi", "/"])
    assert (usb.removable, usb.model, usb.serial, usb.content, usb.mounts) == (True, "Blade", "4C53", ["DEBIAN"], [])


def test_without_a_device_drives_are_shown_and_one_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="no removable drive; plug a stick in"):
        flashing.ask([])
    with pytest.raises(UserError, match="which drive"):
        flashing.ask([STICK])
    monkeypatch.setattr(flashing.sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(flashing.click, "prompt", lambda *_, **__: 2)
    used = Drive(path=Path("/dev/sdy"), size=16 * 10**9, model="Stick", serial="S2", content=["ntfs", "Photos"])
    assert flashing.ask([STICK, used]).path == Path("/dev/sdy")
    shown = capsys.readouterr().err
    assert "/dev/sdx  8.6 GB  Blade  4C53" in shown and re.search("/dev/sdy +16.0 GB +Stick +S2 +ntfs, Photos", shown)


def test_nothing_is_lost_before_somebody_has_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    used = Drive(path=Path("/dev/sdy"), size=16 * 10**9, model="Stick", content=["ntfs"])
    flashing.confirm(used, yes=True)
    flashing.confirm(Drive(path=Path("stick.img"), size=1, is_file=True), yes=False)
    monkeypatch.setattr(flashing.sys, "stdin", SimpleNamespace(isatty=lambda: False))
    with pytest.raises(UserError, match="/dev/sdy: holds ntfs, which would be lost; --yes does not ask"):
        flashing.confirm(used, yes=False)
    monkeypatch.setattr(flashing.sys, "stdin", SimpleNamespace(isatty=lambda: True))
    asked: list[str] = []

    def no(question: str, *, abort: bool, **_: object) -> None:
        asked.append(question)
        assert abort
        raise click.Abort

    monkeypatch.setattr(flashing.click, "confirm", no)
    with pytest.raises(click.Abort):
        flashing.confirm(used, yes=False)
    assert asked == ["/dev/sdy, Stick 16.0 GB, holds ntfs. Overwrite it?"]
    # While somebody was asked, another one was plugged in, or it was mounted; or it is gone.
    monkeypatch.setattr(flashing.click, "confirm", lambda *_, **__: True)
    for now in (used, msgspec.structs.replace(used, serial="S9"), msgspec.structs.replace(used, mounts=["/mnt"])):
        monkeypatch.setattr(drives, "find", lambda _, found=now: found)
        with pytest.raises(UserError, match="begin again") if now != used else contextlib.nullcontext():
            flashing.confirm(used, yes=False)


def test_a_drive_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory; is it the right one"), stick.opened(tmp_path / "x"):
        pass


def test_what_is_no_image_no_drive_or_no_cluster_is_one_line(tmp_path: Path) -> None:
    for words, said in ((["none.raw"], "no image here"), (["."], "no image here")):
        result = CliRunner().invoke(
            kmbuild, ["flash", *[str(tmp_path / word) for word in words], "--cluster", str(tmp_path)]
        )
        assert isinstance(result.exception, UserError) and said in str(result.exception)
    with pytest.raises(UserError, match="No such file or directory; `kmbuild flash IMAGE` lists drives"):
        drives.find(tmp_path / "stick.img")
    with pytest.raises(UserError, match="neither a drive nor a file"):
        drives.find(Path("/dev/null"))
    (tmp_path / "stick.img").write_bytes(b"x")
    assert drives.find(tmp_path / "stick.img").is_file
    (tmp_path / "link.img").symlink_to("stick.img")
    with pytest.raises(UserError, match=r"link\.img: is the image itself; name another file, or a device"):
        flashing.refuse_itself(tmp_path / "stick.img", tmp_path / "link.img")
