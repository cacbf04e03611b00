"""The drives of this machine, as lsblk(8) shows them, and which of them may be overwritten."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from kmplan.errors import UserError
from kmplan.run import run

COLUMNS = "PATH,TYPE,SIZE,RO,RM,HOTPLUG,TRAN,MODEL,SERIAL,FSTYPE,LABEL,PARTLABEL,MOUNTPOINTS"
SYSTEM = ("/", "/boot", "/boot/efi", "/efi", "/usr", "/var", "/home", "[SWAP]")


class Drive(msgspec.Struct, frozen=True, kw_only=True):
    """A whole disk, or a regular file in its place: its size in bytes, what is on it, and where that is mounted."""

    path: Path
    size: int
    model: str = ""
    serial: str = ""
    removable: bool = True
    read_only: bool = False
    content: list[str] = []
    mounts: list[str] = []
    is_file: bool = False


def removable() -> list[Drive]:
    """The drives that can be pulled out."""
    return [drive for drive in listed(lsblk()) if drive.removable]


def find(path: Path) -> Drive:
    """The drive, or the regular file, of that path; UserError when it is neither."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}", "`kmbuild flash IMAGE` lists drives; a file has to exist"
        ) from error
    if stat.S_ISREG(status.st_mode):
        return Drive(path=path, size=status.st_size, is_file=True)
    if not stat.S_ISBLK(status.st_mode):
        raise UserError(f"{path}: neither a drive nor a file")
    real = path.resolve()
    found = next((drive for drive in listed(lsblk(real)) if drive.path == real), None)
    if found is None:
        raise UserError(f"{path}: a part of a drive", "name the whole drive")
    return found


def check(drive: Drive, size: int, serial: str = "") -> None:
    """Refuse, in one line, a drive that must not be overwritten, or is smaller than `size` bytes.

    A drive that cannot be pulled out is taken by its own serial number only.
    """
    system = [place for place in drive.mounts if place in SYSTEM]
    if system:
        raise UserError(f"{drive.path}: this machine runs from it ({', '.join(system)})", "choose another drive")
    if drive.mounts:
        raise UserError(f"{drive.path}: in use at {', '.join(drive.mounts)}", f"unmount it: umount {drive.mounts[0]}")
    if drive.read_only:
        raise UserError(f"{drive.path}: read-only", "is there a switch on it?")
    if drive.size < size:
        raise UserError(f"{drive.path}: {drive.size >> 20} MiB, the image needs {-(-size >> 20)}", "take a larger one")
    if not drive.removable and (not serial or serial != drive.serial):
        hint = f"if you mean it: --force {drive.serial}" if drive.serial else "it has no serial number to name it by"
        raise UserError(f"{drive.path}: no removable drive", hint)


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
    names = [part.get("label") or part.get("partlabel") or part.get("fstype") or "" for part in parts]
    return Drive(
        path=Path(one["path"]),
        size=int(one["size"]),
        model=(one["model"] or "").strip(),
        serial=one["serial"] or "",
        removable=bool(one["rm"] or one["hotplug"] or one["tran"] == "usb"),
        read_only=bool(one["ro"]),
        content=[name for name in names if name],
        mounts=[place for part in parts for place in part["mountpoints"] if place],
    )


def below(one: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All that is on a device: partitions, and what is made of them."""
    for child in one.get("children", []):
        yield child
        yield from below(child)
