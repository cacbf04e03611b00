"""The root tree: Debian packages through diskimage-builder and our elements, as a tar whose bytes depend on the lock alone."""

import os
import shutil
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from kmbuild import archive, sandbox, source, tarball
from kmbuild.stage import Context, Inputs, Stage
from kmbuild.stages.tools import remove_tree
from kmplan import document
from kmplan.errors import UserError

ELEMENTS = ("kubermesh-debian", "kubermesh-node", "kubermesh-tree")

# The root itself, and places that are empty in the image: mount points, what a boot fills, the other slot's kernel.
FOLDERS = {
    "./": 0o755,
    "boot": 0o755,
    "dev": 0o755,
    "proc": 0o555,
    "run": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "var": 0o755,
}

# What the host or the run left in the tree: no image may carry it.
DROPPED = (
    "boot/",
    "dev/",
    "etc/.pwd.lock",
    "etc/apt",
    "etc/dib-manifests",
    "etc/hostname",
    "etc/resolv.conf",
    "etc/ssh/ssh_host_",
    "initrd.img",
    "proc/",
    "root/.",
    "run/",
    "sys/",
    "tmp/",
    "var/",
    "vmlinuz",
)


def inputs(context: Context) -> Inputs:
    """All packages with their hashes, our elements, and the version of diskimage-builder."""
    packages = {
        f"package {package.name}": f"{package.version} {package.sha256[:16]}"
        for package in context.lock.packages["tree"]
    }
    elements = {f"elements/{name}": source.digest(source.folder("elements") / name)[:32] for name in ELEMENTS}
    settings = {"diskimage-builder": version("diskimage-builder"), "epoch": str(context.epoch)}
    return {**packages, **elements, **settings}


def make(context: Context, work: Path) -> None:
    """Run disk-image-create, then sort and clean its tar into `tree.tar`; `vmlinuz` is the kernel."""
    packages = context.lock.packages["tree"]
    archive.fetch(
        context.cache.path / "debs",
        packages,
        archive.find_archives(context.config),
        lambda text: context.say("tree", text),
    )
    repository = work / "repository"
    archive.make_repository(context.cache.path / "debs", packages, repository, context.lock.suite)
    context.say("tree", "running disk-image-create")
    run_disk_image_create(context, work, repository)
    context.say("tree", "sorting the tree")
    normalise(work / "dib.tar", work / "tree.tar", work / "vmlinuz", context.epoch)
    remove_tree(repository)
    for name in ("dib.d", "shims", "tmp"):
        shutil.rmtree(work / name, ignore_errors=True)
    (work / "dib.tar").unlink()


def run_disk_image_create(context: Context, work: Path, repository: Path) -> None:
    """Call diskimage-builder in mount and PID namespaces of its own; it writes dib.tar."""
    shims = work / "shims"
    shims.mkdir()
    (work / "tmp").mkdir()
    document.write(
        shims / "sudo",
        '#!/bin/sh\n# diskimage-builder calls sudo also when it is root already.\n[ "$1" = -E ] && shift\nexec env "$@"\n',
        0o755,
    )
    env = {
        **sandbox.ENVIRONMENT,
        "PATH": f"{shims}:{Path(sys.executable).parent}:{sandbox.ENVIRONMENT['PATH']}",
        "HOME": str(work / "tmp"),
        "ELEMENTS_PATH": str(source.folder("elements")),
        "DIB_RELEASE": context.lock.suite,
        "DIB_KUBERMESH_REPOSITORY": str(repository),
        "DIB_KUBERMESH_PACKAGES": ",".join(context.lock.requested["tree"]),
        "DIB_NO_TMPFS": "1",
        "TMP_DIR": str(work / "tmp"),
        "TMPDIR": str(work / "tmp"),
        "SOURCE_DATE_EPOCH": str(context.epoch),
    }
    argv = ["disk-image-create", "-n", "-t", "tar", "-o", str(work / "dib"), *ELEMENTS]
    words = ["env", "-i", *(f"{name}={value}" for name, value in env.items()), *argv]
    context.logged("tree", sandbox.on_host(["sh", "-c", 'umask 022; exec "$@"', "sh", *words]), cwd=work)


def normalise(raw: Path, target: Path, kernel: Path, epoch: int) -> None:
    """Rewrite a tar in the order of names, with one time stamp, without owners' names and without what DROPPED lists.

    The kernel goes into a file of its own: it will be part of the boot image, not of the root.
    """
    with tarfile.open(raw) as tar, tarball.write_piece(target) as out:
        members = {clean_name(member.name): member for member in tar}
        extract_kernel(tar, members, kernel)
        kept = {name: member for name, member in members.items() if name not in FOLDERS and not is_dropped(name)}
        for name, mode in FOLDERS.items():
            tarball.add_folder(out, name, epoch, mode)
        first_name: dict[str, str] = {}
        for name in sorted(kept):
            member = kept[name]
            content = members[clean_name(member.linkname)] if member.islnk() else member
            data_name = clean_name(content.name)
            copy = plain_member(content if member.islnk() else member, name, epoch)
            if content.isreg() and data_name in first_name:
                copy.type, copy.linkname, copy.size = tarfile.LNKTYPE, first_name[data_name], 0
            if content.isreg():
                first_name.setdefault(data_name, name)
            out.addfile(copy, tar.extractfile(content) if copy.isreg() else None)


def extract_kernel(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], target: Path) -> None:
    """Copy boot/vmlinuz-VERSION out of the tree."""
    names = sorted(name for name in members if name.startswith("boot/vmlinuz-"))
    if len(names) != 1:
        raise UserError(f"tree: expected one kernel in /boot, found {len(names)}", "see kernel.flavour and packages")
    source = tar.extractfile(members[names[0]])
    if source is not None:
        document.write(target, source.read())


def clean_name(name: str) -> str:
    """A member's path without a leading ./ or slash; the root itself is ./"""
    return os.path.normpath(name).lstrip("/") if name not in (".", "./") else "./"


def is_dropped(name: str) -> bool:
    """Tell whether a path is left out."""
    return name.startswith(DROPPED)


def plain_member(member: tarfile.TarInfo, name: str, epoch: int) -> tarfile.TarInfo:
    """Copy of a member with nothing in it that may differ between two builds."""
    copy = tarfile.TarInfo(name)
    copy.type, copy.mode, copy.uid, copy.gid = member.type, member.mode, member.uid, member.gid
    copy.size = member.size if member.isreg() else 0
    copy.linkname, copy.devmajor, copy.devminor = member.linkname, member.devmajor, member.devminor
    copy.mtime = epoch
    copy.pax_headers = {key: value for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr.")}
    return copy


STAGE = Stage("tree", (), inputs, make, (sys.modules[__name__], archive, sandbox, tarball))
