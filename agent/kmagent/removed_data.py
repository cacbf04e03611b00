"""Data of etcd that a node gave up, in `etcd.removed-*`: the last two are kept for people, as each may have gigabytes."""

import shutil
from pathlib import Path

KEPT = 2


def prune(state: Path) -> None:
    """Remove all but the last ones, by when etcd began them."""
    found = sorted(state.glob("etcd.removed-*"), key=lambda path: path.stat().st_mtime)
    for path in found[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)
