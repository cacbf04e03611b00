"""Which drives of this machine may be overwritten."""

import stat
from pathlib import Path
from typing import Any

from kmplan.drives import SECTOR, Drive, listed, lsblk
from kmplan.errors import UserError

SYSTEM = ("/", "/boot", "/boot/efi", "/efi", "/usr", "/var", "/home", "[SWAP]")


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
    devices = lsblk(real)
    found = next((drive for drive in listed(devices) if drive.path == real), None)
    if found is None:
        raise UserError(*what_it_is(path, next((one for one in devices if one["path"] == str(real)), {})))
    return found


def what_it_is(path: Path, device: dict[str, Any]) -> tuple[str, str]:
    """Say what a device is that is no drive, and what to do about it."""
    kind = device.get("type", "part")
    if kind == "disk":
        return f"{path}: there is no medium in it", "put one in"
    if kind == "part":
        return f"{path}: a part of a drive", "name the whole drive"
    return f"{path}: no drive, but {kind}", "name a drive that can be pulled out"


def check(drive: Drive, size: int, serial: str = "") -> None:
    """Refuse, in one line, a drive that must not be overwritten, or is smaller than `size` bytes.

    A drive that cannot be pulled out is taken by its own serial number only.
    """
    system = [place for place in drive.mounts if place in SYSTEM]
    if system:
        raise UserError(f"{drive.path}: this machine runs from it ({', '.join(system)})", "choose another drive")
    if drive.mounts:
        raise UserError(f"{drive.path}: in use at {', '.join(drive.mounts)}", f"unmount it: umount {drive.mounts[0]}")
    if drive.sector != SECTOR:
        raise UserError(
            f"{drive.path}: sectors of {drive.sector} bytes: nothing boots from it", f"take one with {SECTOR}"
        )
    if drive.read_only:
        raise UserError(f"{drive.path}: read-only", "is there a switch on it?")
    if drive.size < size:
        raise UserError(f"{drive.path}: {drive.size >> 20} MiB, the image needs {-(-size >> 20)}", "take a larger one")
    if not drive.removable and (not serial or serial != drive.serial):
        hint = f"if you mean it: --force {drive.serial}" if drive.serial else "it has no serial number to name it by"
        raise UserError(f"{drive.path}: no removable drive", hint)
