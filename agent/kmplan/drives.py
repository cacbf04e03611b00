"""The drives of a machine, as lsblk(8) shows them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from kmplan.run import run

# The image's partition table is for sectors of so many bytes, and so is the file system of its EFI system partition.
SECTOR = 512
BLOCK = Path("/sys/block")
COLUMNS = (
    "PATH,TYPE,MAJ:MIN,LOG-SEC,SIZE,RO,RM,HOTPLUG,ROTA,TRAN,MODEL,SERIAL,WWN,PTTYPE,FSTYPE,LABEL,PARTLABEL,PARTUUID,"
    "MOUNTPOINTS"
)


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a drive: its device's path and `major:minor`, and its name and UUID in the partition table (GPT)."""

    path: Path
    device: str = ""
    label: str = ""
    uuid: str = ""


class Drive(msgspec.Struct, frozen=True, kw_only=True):
    """A whole disk, or a regular file in its place: its size in bytes, what is on it, and where that is mounted.

    `sector` is the size of a logical sector in bytes; `bus` is nvme, sata, sas, usb, virtio, …, or empty; `wwn` is the World
    Wide Name; `spins` is true for hard disks.
    """

    path: Path
    size: int
    model: str = ""
    serial: str = ""
    wwn: str = ""
    bus: str = ""
    spins: bool = False
    sector: int = 512
    removable: bool = True
    read_only: bool = False
    content: list[str] = []
    mounts: list[str] = []
    partitions: list[Partition] = []
    is_file: bool = False


def lsblk(path: Path | None = None) -> list[dict[str, Any]]:
    """What lsblk says of all drives, or of one."""
    argv = ["lsblk", "--json", "--bytes", "--tree", "--output", COLUMNS, *([str(path)] if path else [])]
    devices: list[dict[str, Any]] = json.loads(run(argv).stdout)["blockdevices"]
    return devices


def listed(devices: list[dict[str, Any]]) -> list[Drive]:
    """The whole drives among what lsblk says; those without a medium are none."""
    return [drive_of(one) for one in devices if one["type"] in ("disk", "loop") and int(one["size"] or 0) > 0]


def drive_of(one: dict[str, Any]) -> Drive:
    """A drive as lsblk describes it."""
    parts = [one, *below(one)]
    # Of an eMMC lsblk said that it is hot-pluggable, as memory cards are on its bus, too; from util-linux 2.39 on of neither.
    kind = kind_of_card(one["path"])
    names = [part.get("label") or part.get("partlabel") or part.get("fstype") or "" for part in parts]
    return Drive(
        path=Path(one["path"]),
        size=int(one["size"]),
        model=(one["model"] or "").strip(),
        serial=one["serial"] or "",
        wwn=one.get("wwn") or "",
        bus=one["tran"] or "",
        spins=bool(one.get("rota")),
        sector=int(one.get("log-sec") or 512),
        removable=bool(one["rm"] or one["hotplug"] or one["tran"] == "usb" or kind == "SD") and kind != "MMC",
        read_only=bool(one["ro"]),
        content=[name for name in names if name] or [name for name in [one.get("pttype")] if name],
        mounts=[place for part in parts for place in part["mountpoints"] if place],
        partitions=[partition_of(part) for part in one.get("children", []) if part.get("type") == "part"],
    )


def kind_of_card(path: str) -> str:
    """Return `SD` for a memory card, `MMC` for one that is soldered in, and nothing for what is neither."""
    try:
        return (BLOCK / Path(path).name / "device/type").read_text().strip()
    except OSError:
        return ""


def partition_of(one: dict[str, Any]) -> Partition:
    """A partition as lsblk describes it."""
    return Partition(
        path=Path(one["path"]),
        device=one.get("maj:min") or "",
        label=one.get("partlabel") or "",
        uuid=one.get("partuuid") or "",
    )


def below(one: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All that is on a device: partitions, and what is made of them."""
    for child in one.get("children", []):
        yield child
        yield from below(child)
