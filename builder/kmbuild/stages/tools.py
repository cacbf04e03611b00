"""The tools tree: a Debian with everything that the other stages run in, and the emulator of the bench."""

import sys
from pathlib import Path

from kmbuild import archive, sandbox
from kmbuild.stage import Context, Inputs, Stage

# Places that later commands bind something to; the tree is read-only for them.
MOUNT_POINTS = ("build", "input", "cache", "usr/lib/modules")


def inputs(context: Context) -> Inputs:
    """All packages with their hashes."""
    return {
        f"package {package.name}": f"{package.version} {package.sha256[:16]}"
        for package in context.lock.packages["tools"]
    }


def make(context: Context, work: Path) -> None:
    """Unpack the locked packages into `root`."""
    packages = context.lock.packages["tools"]
    archive.fetch(
        context.cache.path / "debs",
        packages,
        archive.find_archives(context.config),
        lambda text: context.say("tools", text),
    )
    context.say("tools", "unpacking")
    repository = work / "repository"
    archive.make_repository(context.cache.path / "debs", packages, repository, context.lock.suite)
    root = work / "root"
    names = ",".join(context.lock.requested["tools"])
    argv = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={names}", context.lock.suite, str(root)]
    source = f"deb [trusted=yes] copy:{repository} ./"
    env = {"SOURCE_DATE_EPOCH": str(context.epoch), "TMPDIR": str(work), **sandbox.ENVIRONMENT}
    context.logged("tools", sandbox.on_host([*argv, source]), env=env)
    for name in MOUNT_POINTS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("etc/resolv.conf", "etc/hostname"):
        (root / name).unlink(missing_ok=True)
        (root / name).touch()
    remove_tree(repository)


def remove_tree(folder: Path) -> None:
    """Remove a folder of plain files."""
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


STAGE = Stage("tools", (), inputs, make, (sys.modules[__name__], archive, sandbox))
