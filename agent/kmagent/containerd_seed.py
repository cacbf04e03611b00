"""The image's container images, given to containerd without a copy: its databases are copied, the layers linked."""

import logging
import shutil
from pathlib import Path

from kmplan.files import write
from kmplan.run import run

log = logging.getLogger(__name__)

SNAPSHOTS = "io.containerd.snapshotter.v1.overlayfs/snapshots"


def install(seed: Path, root: Path) -> bool:
    """Make `root` (/var/lib/containerd) what the image's seed says, unless it is so already; tells whether it did.

    The mark is written when the rest is on the disk: whatever a crash or a power cut leaves is done again. containerd
    must not run meanwhile, and it cannot when the mark is missing: it starts only after this.
    """
    if not (seed / "id").exists():
        log.warning("this image has no container images")
        return False
    wanted = (seed / "id").read_text()
    mark = root / ".seed"
    if mark.exists() and mark.read_text() == wanted:
        return False
    # First: the mark of another image does not stay beside what is left of that image's.
    mark.unlink(missing_ok=True)
    _clear(root)
    shutil.copytree(seed / "seed", root, symlinks=True, dirs_exist_ok=True)
    snapshots = root / SNAPSHOTS
    snapshots.mkdir(mode=0o700, parents=True, exist_ok=True)
    for layer in sorted((seed / "snapshots").iterdir()):
        (snapshots / layer.name).symlink_to(layer)
    run(["sync", "--file-system", root])
    write(mark, wanted)
    return True


def _clear(root: Path) -> None:
    root.mkdir(mode=0o711, parents=True, exist_ok=True)
    for path in root.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
