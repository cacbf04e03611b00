"""Data of etcd that a node gave up, in `etcd.removed-*`: the last two are kept for people, as each may have gigabytes.

Nor are copies kept that a power cut has left.
"""

import shutil
from pathlib import Path

from kmagent.paths import Paths

KEPT = 2


def prune(state: Path) -> None:
    """Remove all but the last ones, by when etcd began them."""
    found = sorted(state.glob("etcd.removed-*"), key=lambda path: path.stat().st_mtime)
    for path in found[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def tidy(paths: Paths, *, goes_on: bool) -> None:
    """Remove copies of etcd's data that a power cut has left, when the agent starts; not those that an order `goes_on` with."""
    patterns = [] if goes_on else [(paths.state, ("begin-*", ".begin-*", "etcd.epoch-*"))]
    for folder, names in [*patterns, (paths.snapshots, (".look-*", ".new-*"))]:
        for path in [path for name in names for path in folder.glob(name)]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
