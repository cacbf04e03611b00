"""The disk image: erofs root, dm-verity, unified kernel image, ESP and GPT; no loop device, no mount."""

import json
import os
import shutil
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

from kmbuild import artefacts, bmap, rootfs, sandbox, sbom, source, tarball
from kmbuild.artefacts import Artefact, Manifest, as_json, file_names
from kmbuild.source import file_digest
from kmbuild.stage import Context, Inputs, Stage
from kmbuild.stages import root
from kmbuild.stages.components import COMPONENTS, stage_name
from kmbuild.stages.root import NAMESPACE, pack
from kmplan import boot_images, document
from kmplan.errors import UserError
from kmplan.esp import LOADER, layout

SLOT_BYTES = 768 << 20  # overlays/root/usr/lib/kubermesh/repart.d
BOOT_TRIES = 3
DPKG_STATUS = "usr/lib/sysimage/dpkg/status"  # elements/kubermesh-node

# rd.* and panic: a boot that fails ends in a reboot, so that systemd-boot can count it and fall back to the other slot.
KERNEL_ARGUMENTS = (
    "root=/dev/mapper/root rootfstype=erofs ro rd.shell=0 rd.emergency=reboot panic=10 systemd.default_device_timeout_sec=60s "
    "systemd.machine_id=firmware systemd.show_status=error systemd.ssh_auto=no console=tty0 console=ttyS0,115200 loglevel=4"
)

BUILD_DROP_INS = {
    "10-esp": "Format=vfat\nCopyFiles=/esp:/\n",
    "20-root-a": "CopyBlocks=/root.erofs\nVerity=data\nVerityMatchKey=root\n",
    "21-root-a-verity": "Verity=hash\nVerityMatchKey=root\n",
}


def inputs(context: Context) -> Inputs:
    """The overlays, the agent, and what the configuration says of the image."""
    overlays = source.folder("overlays")
    return {
        **{f"overlays/{name}": source.digest(overlays / name)[:32] for name in ("root", "node")},
        **{f"agent/{package.name}": source.digest(package)[:32] for package in source.agent_packages()},
        **{f"version {name}": version for name, version in context.config.versions.items()},
        "kernel arguments": " ".join(context.config.kernel.arguments),
        "image version": context.config.image_version,
    }


def make(context: Context, work: Path) -> Mapping[str, str]:
    """Write the image and its papers; returns the hashes of the large files."""
    names = file_names(context.config.image_version)
    seed = uuid.uuid5(NAMESPACE, context.ids["disk"])
    digest = digest_boot_image(context, work)
    make_root(context, work, work / names["erofs"], digest)
    roothash = make_disk(context, work, names, seed)
    if digest != boot_images.digest(work / names["uki"], roothash):
        raise UserError("disk: the boot image is another one with another root hash", "nodes could not check it")
    context.say("disk", "hashing")
    document.write(work / names["bmap"], bmap.to_xml(bmap.make(work / names["raw"])))
    hashes = {names[kind]: file_digest(work / names[kind]) for kind in ("raw", "uki", "erofs", "verity", "bmap")}
    document.write(work / names["sbom"], make_sbom(context))
    hashes[names["sbom"]] = file_digest(work / names["sbom"])
    manifest = Manifest(
        version=context.config.image_version,
        architecture="x86_64",
        roothash=roothash,
        epoch=context.epoch,
        kernel=(context.folder("initrd") / "kernel-version").read_text().strip(),
        artefacts={
            kind: Artefact(names[kind], (work / names[kind]).stat().st_size, hashes[names[kind]])
            for kind in ("raw", "uki", "erofs", "verity", "bmap", "sbom")
        },
        stages=dict(context.ids),
        versions=context.config.versions,
    )
    document.write(work / names["manifest"], as_json(manifest))
    hashes[names["manifest"]] = file_digest(work / names["manifest"])
    document.write(work / names["sums"], "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)))
    return hashes


def digest_boot_image(context: Context, work: Path) -> str:
    """Return the digest of the boot image that the root's hash will be put into: the root has it, to tell a false one."""
    context.say("disk", "building the boot image")
    make_uki(context, work, "trial.efi", boot_images.NO_HASH)
    found = boot_images.digest(work / "trial.efi", boot_images.NO_HASH)
    (work / "trial.efi").unlink()
    return found


def make_root(context: Context, work: Path, target: Path, digest: str) -> None:
    """Append overlays and agent to the packed root file system, and the boot image's digest."""
    context.say("disk", "packing overlays")
    rootfs.write_tar(context, work, work / "own.tar", {boot_images.DIGEST: f"{digest}\n".encode()})
    shutil.copyfile(context.folder("root") / "base.erofs", work / "root.erofs")
    pack(context, "disk", work, "root.erofs", "own.tar", append=True)
    size = (work / "root.erofs").stat().st_size
    if size > SLOT_BYTES:
        raise UserError(
            f"disk: the root file system has {size >> 20} MiB, a slot {SLOT_BYTES >> 20}",
            "take out packages or set compression: small",
        )
    (work / "root.erofs").rename(target)
    (work / "own.tar").unlink()


def make_disk(context: Context, work: Path, names: Mapping[str, str], seed: uuid.UUID) -> str:
    """Lay out the disk in two passes: root and verity give the root hash, which the boot image on the ESP then carries."""
    definitions = work / "repart.d"
    write_definitions(definitions)
    stage = work / "stage"
    (stage / "esp").mkdir(parents=True)
    (work / names["erofs"]).rename(stage / "root.erofs")
    context.say("disk", "writing partitions")
    report = repart(context, work, seed, names["raw"], ["--empty=create", "--size=auto", "--defer-partitions=esp"])
    partitions = json.loads(report)
    roothash = next(str(partition["roothash"]) for partition in partitions if partition.get("roothash"))
    hashes = next(partition for partition in partitions if partition["type"].endswith("-verity"))
    extract(work / names["raw"], work / names["verity"], hashes["offset"], hashes["raw_size"])
    (stage / "root.erofs").rename(work / names["erofs"])
    make_uki(context, work, names["uki"], roothash)
    fill_esp(context, stage / "esp", work / names["uki"])
    (definitions / "20-root-a.conf.d").rename(work / "drop-in")  # the second pass only fills the ESP
    shutil.rmtree(definitions / "21-root-a-verity.conf.d")
    repart(context, work, seed, names["raw"], ["--empty=allow"])
    for path in (stage, definitions, work / "drop-in"):
        shutil.rmtree(path)
    return roothash


def extract(disk: Path, target: Path, offset: int, size: int) -> None:
    """Copy a partition (bytes) out of the disk, without the zeros at its end beyond whole 4096-byte blocks."""
    with disk.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    used = -(-len(data.rstrip(b"\0")) // 4096) * 4096
    target.write_bytes(data[:used])


def write_definitions(target: Path) -> None:
    """Copy the partition table that nodes have (repart.d(5)), without /var, and say what fills it at build time."""
    shutil.copytree(source.folder("overlays") / "root/usr/lib/kubermesh/repart.d", target)
    (target / "50-var.conf").unlink()
    for name, text in BUILD_DROP_INS.items():
        (target / f"{name}.conf.d").mkdir()
        (target / f"{name}.conf.d" / "build.conf").write_text(f"[Partition]\n{text}")


def repart(context: Context, work: Path, seed: uuid.UUID, image: str, options: list[str]) -> str:
    """Run systemd-repart(8) on the image file, offline; returns its JSON report."""
    fixed = [
        "--offline=yes",
        "--dry-run=no",
        f"--seed={seed}",
        "--definitions=/build/repart.d",
        "--root=/build/stage",
        "--json=short",
        "--no-pager",
    ]
    output = context.in_tools("disk", ["systemd-repart", *fixed, *options, f"/build/{image}"], binds={work: "/build"})
    lines = [line for line in output.splitlines() if line.startswith("[")]
    if not lines:
        raise UserError(f"disk: systemd-repart reported nothing\n  log: {context.log('disk')}")
    return lines[-1]


def make_uki(context: Context, work: Path, name: str, roothash: str) -> None:
    """Build the unified kernel image (ukify(1)): kernel, initrd and a command line with the root hash.

    The hash comes last: what follows it in /proc/cmdline is the machine's own (components/fetch/newer.go).
    """
    arguments = " ".join([KERNEL_ARGUMENTS, *context.config.kernel.arguments, f"roothash={roothash}"])
    kernel = (context.folder("initrd") / "kernel-version").read_text().strip()
    version = context.config.image_version
    release = f'ID=kubermesh\nNAME=Kubermesh\nVERSION_ID={version}\nPRETTY_NAME="Kubermesh {version}"\n'
    argv = ["ukify", "build", "--linux=/input/tree/vmlinuz", "--initrd=/input/initrd/initrd", f"--cmdline={arguments}"]
    argv += [f"--os-release={release}", f"--uname={kernel}", f"--output=/build/{name}"]
    folders = {context.folder("tree"): "/input/tree", context.folder("initrd"): "/input/initrd"}
    context.in_tools("disk", argv, binds={work: "/build"}, read_only=folders)


def fill_esp(context: Context, esp: Path, uki: Path) -> None:
    """Stage the EFI system partition in sorted order: FAT keeps the order in which files come.

    The boot image's name carries the tries that systemd-boot counts down (systemd-boot(7), boot counting).
    """
    entry = f"kubermesh_{context.config.image_version}+{BOOT_TRIES}"
    for name, content in layout(context.tools / LOADER, uki, entry).items():
        path = esp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, path)
        else:
            path.write_text(content)
    for path in [*sorted(esp.rglob("*")), esp]:
        path.chmod(0o755)
        os.utime(path, (context.epoch, context.epoch))


def make_sbom(context: Context) -> str:
    """List the Debian packages that are in the tree, and the Go modules in our programs."""
    modules: set[tuple[str, str]] = set()
    for name in COMPONENTS:
        listing = (context.folder(stage_name(name)) / "modules.txt").read_text()
        modules |= sbom.parse_modules(listing)
    components = {name: version for name, version in context.config.versions.items() if name in COMPONENTS}
    image = ("kubermesh", context.config.image_version)
    with tarball.open_piece(context.folder("tree") / "tree.tar") as tar:
        status = tar.extractfile(DPKG_STATUS)
        installed = sbom.parse_status(status.read().decode() if status else "")
    packages = [package for package in context.lock.packages["tree"] if package.name in installed]
    return sbom.write(image, packages, context.lock.suite, sorted(modules), components, context.epoch)


NEEDS = ("tools", "tree", *(stage_name(name) for name in COMPONENTS), "root", "initrd")
STAGE = Stage(
    "disk", NEEDS, inputs, make, (sys.modules[__name__], artefacts, bmap, rootfs, sandbox, sbom, tarball, root)
)
