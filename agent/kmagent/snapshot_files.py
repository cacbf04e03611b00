"""Sealed snapshots as files, and how many of them are kept."""

import shutil
import time
from pathlib import Path

from kmplan import files
from kmplan.recovery import Snapshot, parse_snapshot

# How many a node keeps, and how many other nodes keep each.
KEPT, COPIES = 12, 2
ABANDONED_S = 3600.0


def find(folder: Path) -> list[Snapshot]:
    """Return the snapshots in a folder, the oldest first."""
    names = [path.name for path in folder.glob("*.sealed")] if folder.is_dir() else []
    return sorted(snapshot for snapshot in map(parse_snapshot, names) if snapshot)


def make_room(folder: Path, length: int) -> bool:
    """Prepare for one more of so many bytes; False when that would leave less than half of what is free now."""
    folder.mkdir(mode=0o700, exist_ok=True)
    prune(folder, KEPT - 1)
    return shutil.disk_usage(folder).free >= 2 * length


def name(partial: Path, path: Path) -> None:
    """Give a file that is whole its name, for good."""
    partial.chmod(0o600)
    partial.rename(path)
    files.sync_folder(path.parent)


def prune(folder: Path, keep: int = KEPT) -> None:
    """Remove all but the newest, and what was interrupted an hour ago or more."""
    for snapshot in find(folder)[:-keep]:
        (folder / snapshot.name).unlink(missing_ok=True)
    for path in folder.glob(".*"):
        if time.time() - path.stat().st_mtime > ABANDONED_S:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
