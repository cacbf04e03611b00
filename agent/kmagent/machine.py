"""What this machine says of its hardware."""

from pathlib import Path
from typing import Any

from kmagent.paths import in_container

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


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
