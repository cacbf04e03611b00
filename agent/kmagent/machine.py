"""What this machine says of its hardware."""

from pathlib import Path
from typing import Any

from kmagent.paths import in_container
from kmplan.run import run

SYS = Path("/sys")
SECTOR = 512


def uuid() -> str:
    """Return the SMBIOS UUID; in a container the one it was given (https://systemd.io/CONTAINER_INTERFACE)."""
    try:
        if in_container():
            settings = Path("/proc/1/environ").read_bytes().split(b"\0")
            return next((one.partition(b"=")[2].decode() for one in settings if one.startswith(b"container_uuid=")), "")
        return (SYS / "class/dmi/id/product_uuid").read_text().strip().lower()
    except OSError:
        return ""


def disks() -> list[dict[str, Any]]:
    """Return the disks: name, model, size in bytes."""
    if in_container():
        return []
    found = sorted(path for path in (SYS / "block").iterdir() if (path / "device").exists())
    return [
        {
            "name": path.name,
            "model": _read(path / "device/model"),
            "size_bytes": int(_read(path / "size") or 0) * SECTOR,
        }
        for path in found
    ]


def settle() -> None:
    """Wait until udev has done what it has to (udevadm(8))."""
    run(["udevadm", "settle", "--timeout=60"], check=False)


def is_removable(name: str) -> bool:
    """Tell whether a disk can be pulled out of the machine: a stick, a disk on USB, a memory card."""
    device = SYS / "block" / name
    on_usb = any(part.startswith("usb") for part in device.resolve().parts)
    return on_usb or _read(device / "removable") == "1" or _read(device / "device/type") == "SD"


def removable_disks() -> list[str]:
    """Return the names of the disks that can be pulled out."""
    return sorted(path.name for path in (SYS / "block").iterdir() if is_removable(path.name))


def fixed_disks() -> list[str]:
    """Return the names of the others."""
    return sorted({path.name for path in (SYS / "block").iterdir()} - {*removable_disks()})


def partition(name: str, label: str) -> str | None:
    """Return the name of the partition of a disk that has this label.

    The kernel knows no label of a partition that was added while it ran (BLKPG_ADD_PARTITION): that is read from the disk.
    """
    for path in sorted((SYS / "block" / name).glob(f"{name}*/uevent")):
        known = [line.removeprefix("PARTNAME=") for line in _read(path).splitlines() if line.startswith("PARTNAME=")]
        if label in (known or [_label(path.parent.name)]):
            return path.parent.name
    return None


def _label(name: str) -> str:
    """Return a partition's label as the table on the disk has it (blkid(8))."""
    argv = ["blkid", "--probe", "--output", "value", "--match-tag", "PART_ENTRY_NAME", f"/dev/{name}"]
    return run(argv, check=False).stdout.strip()


def name_of(number: str) -> str:
    """Return the name of the disk or partition that is `major:minor`."""
    return (SYS / "dev/block" / number).resolve().name


def number(name: str) -> str:
    """Return `major:minor` of a disk or partition."""
    return _read(SYS / "class/block" / name / "dev")


def size(name: str) -> int:
    """Return the size of a disk or partition, in bytes."""
    return int(_read(SYS / "class/block" / name / "size") or 0) * SECTOR


def written(name: str) -> int:
    """Return how many bytes were written to a disk since the machine started (Documentation/block/stat.rst)."""
    fields = _read(SYS / "class/block" / name / "stat").split()
    return int(fields[6]) * SECTOR if fields else 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
