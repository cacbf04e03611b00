"""Which driver runs a cluster, and what it needs of the host."""

import os
import shutil
from pathlib import Path

from kmcluster import cgroups
from kmcluster.driver import Driver
from kmcluster.nspawn import NspawnDriver
from kmcluster.qemu import QemuDriver
from kmcluster.qemu_argv import mac_address
from kmcluster.state import Cluster, Machine
from kmcluster.tuning import EMULATED, Tuning, container_tuning
from kmplan.errors import UserError
from kmplan.tuning import merge

NAMES = ("nspawn", "qemu")
CAP_SYS_RESOURCE = 24
PROGRAMS = {
    "nspawn": {
        "systemd-nspawn": "systemd-container",
        "nsenter": "util-linux",
        "ip": "iproute2",
        "nft": "nftables",
        "mkfs.ext4": "e2fsprogs",
        "mount": "mount",
    }
}


def driver_of(cluster: Cluster) -> Driver:
    """The driver of a cluster."""
    return NspawnDriver(cluster) if cluster.driver == "nspawn" else QemuDriver(cluster)


def check_host(driver: str) -> None:
    """Raise UserError when this host or user cannot run the driver's machines."""
    if driver not in NAMES:
        raise UserError(f"{driver}: no such driver", f"there are: {', '.join(NAMES)}")
    for program, package in PROGRAMS.get(driver, {}).items():
        if shutil.which(program) is None:
            raise UserError(f"{program}: not found on this machine", f"install the package {package}")
    if driver == "nspawn" and os.geteuid() != 0:
        raise UserError("the nspawn driver needs root", "use sudo, or --driver qemu")
    if driver == "nspawn" and not Path("/dev/loop-control").exists():
        raise UserError("no loop devices on this machine", "`modprobe loop`, or --driver qemu")


def may_raise_limits() -> bool:
    """Whether this process has CAP_SYS_RESOURCE."""
    with open("/proc/self/status") as file:  # noqa: PTH123
        bounds = next(line for line in file if line.startswith("CapEff:"))
    return bool(int(bounds.split()[1], 16) >> CAP_SYS_RESOURCE & 1)


def tuning_of(cluster: Cluster, machine: Machine) -> Tuning:
    """What is overridden on a node; under KVM the driver only keeps the agent from the port that leads to the host."""
    if cluster.driver == "nspawn":
        base = container_tuning(legacy_cgroups=not cgroups.is_unified(), may_raise_limits=may_raise_limits())
    else:
        base = {**(EMULATED if cluster.accelerator == "tcg" else {}), "ignored_ports": [mac_address(machine)]}
    return merge(base, cluster.tuning)
