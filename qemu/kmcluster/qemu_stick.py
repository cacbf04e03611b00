"""A stick of a QEMU machine: a USB storage device that comes and goes; and the used disk of a machine that boots from one."""

import time
from pathlib import Path

from kmcluster import qmp
from kmcluster.qemu_argv import STICK, STICK_DEVICE, STICK_FILE
from kmcluster.tools import tool
from kmplan import run
from kmplan.errors import UserError

LEFT = "photos"
GONE_S, POLL_S = 30.0, 0.1


def plug(monitor: Path, plugged: bool) -> None:
    """Plug the stick in or pull it out; UserError when QEMU does not let go of it."""
    if plugged == has_device(monitor):
        return
    if plugged:
        if not has_node(monitor):
            file = {"driver": "file", "filename": STICK_FILE, "cache": {"no-flush": True}}
            qmp.execute(monitor, "blockdev-add", **{"driver": "raw", "node-name": STICK, "file": file})
        qmp.execute(monitor, "device_add", driver="usb-storage", **STICK_DEVICE | {"removable": True, "bootindex": 0})
        return
    qmp.execute(monitor, "device_del", id=STICK_DEVICE["id"])
    deadline = time.monotonic() + GONE_S
    while has_device(monitor):
        if time.monotonic() > deadline:
            raise UserError(f"{monitor.parent.name}: the stick is still in after {GONE_S:g} s")
        time.sleep(POLL_S)


def make_used_disk(tools: Path, disk: Path, size_gib: int) -> None:
    """Make a disk (qcow2) with a file system that somebody has left there."""
    raw = disk.with_suffix(".raw")
    try:
        with raw.open("wb") as file:
            file.truncate(size_gib << 30)
        run.run(["mkfs.ext4", "-q", "-F", "-L", LEFT, raw])
        run.run(tool(tools, "qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", str(raw), str(disk)))
    finally:
        raw.unlink(missing_ok=True)


def has_device(monitor: Path) -> bool:
    """Whether the machine has the stick."""
    children = qmp.execute(monitor, "qom-list", path="/machine/peripheral")
    return any(child["name"] == STICK_DEVICE["id"] for child in children)


def has_node(monitor: Path) -> bool:
    """Whether QEMU has the stick's file open."""
    return any(node["node-name"] == STICK for node in qmp.execute(monitor, "query-named-block-nodes"))
