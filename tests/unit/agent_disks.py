"""Disks of a machine, as the agent finds them."""

from pathlib import Path
from typing import Any

import msgspec

from kmagent.disk_choice import Found
from kmplan.cluster import Install
from kmplan.drives import Drive

GB = 10**9
OURS, THEIRS = "-----OURS-----\n", "-----THEIRS-----\n"


def drive(name: str = "sda", size_gb: float = 500, **more: Any) -> Drive:
    return Drive(path=Path("/dev") / name, size=int(size_gb * GB), **{"removable": False, "bus": "sata", **more})


def found(name: str, holds: str = "nothing", what: str = "", size_gb: float = 500, **more: Any) -> Found:
    return Found(drive(name, size_gb, **more), holds, what)  # type: ignore[arg-type]


def wish(**values: Any) -> Install:
    """What a cluster file may say of where a node lives."""
    return msgspec.convert(values, Install)
