"""The command line of a QEMU machine."""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from kmcluster.cable import Port
from kmcluster.state import Machine
from kmcluster.topology import Boot

# A network of its own between machine and host: RFC 2544's range meets none of the cluster's.
NETWORK, HOST, ADDRESS = "198.18.0.0/24", "198.18.0.2", "198.18.0.15"
API_PORT, NODE_PORT = 6443, 9444
OVMF = "usr/share/OVMF"
# A stick's file in the machine's folder, its block device, and the port and device that the machine sees.
STICK_FILE, STICK, USB = "stick.img", "stick-image", "usb"
# What is booted from, the lowest first; a machine that boots from the network does at every power on.
DISK, FIRST_PORT, LAST = 1, 2, 99
STICK_DEVICE = {"id": "stick-device", "bus": f"{USB}.0", "drive": STICK, "removable": "on", "bootindex": "0"}

# Halve the cost of everything under TCG, where every timer is MMIO and every switch flushes the TLB.
# What protects from neighbours on a real processor costs an indirect jump each time.
# One processor until user space (`guest/exec.py`): a kernel that patches its code while others run it may stop under TCG.
# That one may have to share a busy host: partitions of a disk were found after more than systemd's 90 s.
# On such a host the kernel's test of its timer also finds no interrupt in time, and ends in a panic when it finds none at all.
TCG_KERNEL_ARGUMENTS = (
    "no_timer_check highres=off nohz=off psi=0 preempt=none transparent_hugepage=never audit=0 mitigations=off maxcpus=1 "
    "systemd.default_device_timeout_sec=600 systemd.default_timeout_start_sec=600"
)
# Ports are called eth0, eth1, ... in the order they have on the bus, as in the topology.
KERNEL_ARGUMENTS = "console=ttyS0 net.ifnames=0"


def kernel_arguments(accelerator: str) -> str:
    """What is added to the image's own kernel arguments."""
    return f"{KERNEL_ARGUMENTS} {TCG_KERNEL_ARGUMENTS}" if accelerator == "tcg" else KERNEL_ARGUMENTS


# TCG copies byte by byte where the processor says that it does so fast (erms, fsrm), and ends a block of translated code where
# memory of user space is let in (smap); what else only guards (smep, pku) is left out with it.
DEAR = "-la57,-erms,-fsrm,-smap,-smep,-pku"


def accelerator_arguments(accelerator: str) -> list[str]:
    """Accelerator and processor: TCG needs a big translation buffer, and emulates some instructions dearly."""
    if accelerator == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", "tcg,thread=multi,tb-size=2000", "-cpu", f"max,{DEAR}"]


def niceness(machine: Machine, accelerator: str) -> int:
    """How much more a machine leaves to others: under TCG one that boots from the network does, as firmware waits busily.

    The seed has to serve meanwhile, and loses its leases when it gets too little.
    """
    return 3 if accelerator == "tcg" and machine.node.boot.is_from_network else 0


def firmware_arguments(tools: Path, variables: str) -> list[str]:
    """OVMF: its code shared and read-only, its variables the machine's own."""
    return [
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={quoted(tools / OVMF / 'OVMF_CODE_4M.fd')}",
        "-drive", f"if=pflash,unit=1,format=raw,file={quoted(variables)}",
    ]  # fmt: skip


def firmware_settings(boot: Boot) -> list[str]:
    """What OVMF is told to leave out (OvmfPkg/RUNTIME_CONFIG.md): it tries PXE before HTTP, and IPv4 before IPv6."""
    names = {Boot.HTTP: ("IPv4PXESupport", "IPv6PXESupport"), Boot.PXE6: ("IPv4Support",)}
    return [word for name in names.get(boot, ()) for word in ("-fw_cfg", f"name=opt/org.tianocore/{name},string=no")]


def quoted(path: Path | str) -> str:
    """A comma in an option's value is written twice."""
    return str(path).replace(",", ",,")


def mac_address(machine: Machine) -> str:
    """Hardware address of the port that leads to the host."""
    return f"52:54:00:6b:{machine.number >> 8:02x}:{machine.number & 255:02x}"


def port_arguments(port: Port, mtu: int, boot: Boot) -> list[str]:
    """A network port whose cable is a pair of datagram sockets in the machine's folder; it may be booted from."""
    order = f",bootindex={FIRST_PORT + port.index}" if boot.is_from_network else ""
    local = f"local.type=unix,local.path={port.name}.sock"
    remote = f"remote.type=unix,remote.path={port.name}.cable"
    return [
        "-netdev", f"dgram,id={port.name},{local},{remote}",
        "-device", f"virtio-net-pci,netdev={port.name},mac={port.mac},host_mtu={mtu},romfile={order}",
    ]  # fmt: skip


def stick_arguments(machine: Machine) -> list[str]:
    """A USB port for a machine that has a stick, and the stick when it is plugged in: it is booted from first."""
    if machine.node.boot is not Boot.STICK:
        return []
    port = ["-device", f"qemu-xhci,id={USB}"]
    if not machine.stick:
        return port
    drive = f"if=none,id=stick,node-name={STICK},format=raw,cache=unsafe,file={STICK_FILE}"
    device = ",".join(f"{key}={value}" for key, value in STICK_DEVICE.items())
    return [*port, "-drive", drive, "-device", f"usb-storage,{device}"]


def machine_uuid(cluster: str, machine: Machine) -> str:
    """The SMBIOS UUID: the same at every power on."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"kubermesh:{cluster}:{machine.number}"))


def qemu_arguments(
    cluster: str,
    machine: Machine,
    tools: Path,
    accelerator: str,
    credentials: Sequence[str],
    mtus: Mapping[Port, int],
) -> list[str]:
    """Arguments of a machine's QEMU, which runs in the machine's folder; `credentials` are files of SMBIOS strings."""
    ports = {machine.api_port: API_PORT, machine.node_port: NODE_PORT}
    forward = ",".join(f"hostfwd=tcp:127.0.0.1:{host}-{ADDRESS}:{port}" for host, port in ports.items())
    return [
        "-name", machine.name, "-uuid", machine_uuid(cluster, machine), "-nodefaults", "-no-user-config",
        "-machine", "q35,usb=off,vmport=off", *accelerator_arguments(accelerator),
        "-smp", str(machine.node.cpus), "-m", f"{machine.node.memory_mib}M",
        *firmware_arguments(tools, "vars.fd"),
        "-drive", "if=none,id=disk,node-name=disk-image,format=qcow2,cache=unsafe,discard=unmap,file=disk.qcow2",
        "-device", f"virtio-blk-pci,id=disk-device,drive=disk,bootindex={LAST if machine.node.boot.is_from_network else DISK}",
        *stick_arguments(machine),
        "-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng",
        "-display", "none", "-vga", "none",
        "-chardev", "file,id=console,path=console.log,append=on", "-serial", "chardev:console",
        "-chardev", "socket,id=qmp,path=qmp.sock,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
        "-device", "virtio-serial-pci", "-chardev", "socket,id=exec,path=exec.sock,server=on,wait=off",
        "-device", "virtserialport,chardev=exec,name=kubermesh.exec",
        *(argument for port in machine.port_list for argument in port_arguments(port, mtus[port], machine.node.boot)),
        *firmware_settings(machine.node.boot),
        "-netdev", f"user,id=api,restrict=on,ipv6=off,net={NETWORK},host={HOST},{forward}",
        "-device", f"virtio-net-pci,netdev=api,mac={mac_address(machine)},romfile=",
        *(argument for file in credentials for argument in ("-smbios", f"type=11,path={quoted(file)}")),
    ]  # fmt: skip
