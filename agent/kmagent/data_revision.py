"""`python3 -m kmagent revision`: the child that tells how far etcd's data go while no etcd answers. Prints `{"revision": …}`.

An etcd without a quorum has its database open and serves nobody, so that a copy is looked at.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from kmagent.paths import Paths
from kmplan import run


def main() -> int:
    """Look, and print it."""
    print(json.dumps(look(Paths())))
    return 0


def look(paths: Paths) -> dict[str, Any]:
    """Return the revision of the database; UserError when it cannot be read."""
    paths.snapshots.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".look-", dir=paths.snapshots) as folder:
        copy = Path(folder) / "db"
        shutil.copyfile(paths.etcd_database, copy)
        return {"state": "ok", "revision": revision_of(copy)}


def revision_of(database: Path) -> int:
    """Read it of a database that no etcd has open, or of a snapshot; CommandError when it is none."""
    status = json.loads(run.run(["etcdutl", "--write-out=json", "snapshot", "status", database]).stdout)
    return int(status["revision"])
