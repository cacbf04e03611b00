"""Root trees for nspawn machines: every image's erofs is extracted once and shared read-only by all machines."""

import fcntl
import os
import shutil
from pathlib import Path

from kmcluster.folders import cache_folder
from kmcluster.image import Image
from kmcluster.tools import tool
from kmplan import run
from kmplan.errors import UserError


def root_tree(image: Image, roothash: str) -> Path:
    """The folder with the image's root tree; extracts it when it is not in the cache.

    A tree stands under its own name only when it is whole. Raises UserError when it cannot be extracted.
    """
    roots = cache_folder() / "roots"
    roots.mkdir(parents=True, exist_ok=True, mode=0o755)
    tree = roots / roothash
    descriptor = os.open(roots, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not tree.is_dir():
            remove_partial(roots)
            extract(image, roots / f".{roothash}.partial")
            (roots / f".{roothash}.partial").rename(tree)
    finally:
        os.close(descriptor)
    return tree


def extract(image: Image, folder: Path) -> None:
    """Extract an erofs with owners, modes and extended attributes."""
    argv = tool(image.tools, "fsck.erofs", f"--extract={folder}", "--preserve", "--xattrs", image.erofs)
    done = run.run(argv, check=False)
    if done.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UserError(
            f"{image.erofs}: cannot be extracted: {reason[-1] if reason else 'no reason given'}", "is the disk full?"
        )


def remove_partial(roots: Path) -> None:
    """Remove what an interrupted extraction left."""
    for path in roots.glob(".*.partial"):
        shutil.rmtree(path)
