"""The initial RAM disk: dracut in the tools tree, with the node's kernel modules and nothing of the host."""

import shutil
import sys
from pathlib import Path

from kmbuild import sandbox, source, tarball
from kmbuild.stage import Context, Inputs, Stage
from kmbuild.stages import fetch
from kmplan.errors import UserError

DRACUT_MODULES = "bash dm fs-lib rootfs-block systemd systemd-initrd systemd-veritysetup udev-rules"

# What it takes to find the root partition: disks and buses of common machines, of servers and of virtual machines, and the
# root's file systems. The running system has more drivers: a disk that only those find would be installed to, and not booted.
DRIVERS = (
    "aacraid ahci ata_piix dm-mod dm-verity ehci-pci erofs hpsa hv_storvsc isci megaraid_sas mmc_block mpi3mr mpt3sas mptsas "
    "mvsas nvme ohci-pci overlay pm80xx sata_mv sata_nv sata_promise sata_sil sata_sil24 sata_svw sata_via sd_mod sdhci-acpi "
    "sdhci-pci smartpqi uas uhci-hcd usb-storage virtio_blk virtio_pci virtio_scsi vmd vmw_pvscsi xen-blkfront xhci-pci"
)

# What it takes to fetch the root from a neighbour: cards that firmware boots from, disks in memory, the firmware's variables,
# and the file system of what a node remembers, as one that has a home fetches nothing.
NETWORK_DRIVERS = (
    "=drivers/net/ethernet =drivers/net/mdio =drivers/net/pcs =drivers/net/phy =drivers/net/usb efivarfs ext4 hv_netvsc "
    "virtio_net vmxnet3 xen-netfront zram"
)

# Which version of the image this is.
VERSION = "/usr/lib/kubermesh/version"


def inputs(context: Context) -> Inputs:
    """Our own units of the initrd; dracut and the kernel come by the needs."""
    return {
        "overlays/initrd": source.digest(source.folder("overlays") / "initrd")[:32],
        "drivers": f"{DRIVERS} {NETWORK_DRIVERS}",
        "dracut": DRACUT_MODULES,
        "version": context.config.image_version,
    }


def make(context: Context, work: Path) -> None:
    """Write `initrd`; `kernel-version` says for which kernel."""
    context.say("initrd", "extracting kernel modules")
    modules = work / "modules"
    version = extract_modules(context.folder("tree") / "tree.tar", modules)
    context.say("initrd", "running dracut")
    overlay = source.folder("overlays") / "initrd"
    (work / "version").write_text(context.config.image_version + "\n")
    argv = [
        "dracut",
        "--force",
        "--no-hostonly",
        "--no-hostonly-cmdline",
        "--reproducible",
        "--no-early-microcode",
        "--zstd",
    ]
    argv += [
        "--kver",
        version,
        "--modules",
        DRACUT_MODULES,
        "--drivers",
        f"{DRIVERS} {NETWORK_DRIVERS}",
        "--include",
        "/input/overlay",
        "/",
        "--include",
        f"/input/fetch/{fetch.PROGRAM}",
        f"/usr/bin/{fetch.PROGRAM}",
        "--include",
        "/build/version",
        VERSION,
        "--tmpdir",
        "/build",
        "/build/initrd",
    ]
    folders = {overlay: "/input/overlay", context.folder(fetch.NAME): "/input/fetch", modules: "/usr/lib/modules"}
    context.in_tools("initrd", argv, binds={work: "/build"}, read_only=folders)
    if not (work / "initrd").exists():
        raise UserError(f"initrd: dracut made no file\n  log: {context.log('initrd')}")
    (work / "initrd").chmod(0o644)
    (work / "kernel-version").write_text(version + "\n")
    (work / "version").unlink()
    shutil.rmtree(modules)


def extract_modules(tree: Path, target: Path) -> str:
    """Copy usr/lib/modules out of the tree; returns the kernel's version."""
    prefix = "usr/lib/modules/"
    target.mkdir()
    with tarball.open_piece(tree) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() and member.name.startswith(prefix) else None
            if content is not None:
                path = target / member.name.removeprefix(prefix)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    shutil.copyfileobj(content, file)
    versions = sorted(path.name for path in target.iterdir())
    if len(versions) != 1:
        raise UserError(f"initrd: expected modules of one kernel, found {', '.join(versions) or 'none'}")
    return versions[0]


STAGE = Stage("initrd", ("tools", "tree", fetch.NAME), inputs, make, (sys.modules[__name__], sandbox, tarball))
