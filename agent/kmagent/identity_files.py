"""What a cluster left on this machine's disk: put aside when the machine no longer belongs to it."""

import json
import tempfile
from pathlib import Path

from kmplan.files import write

ROLE = "role.json"
LEFT = "left.json"
# A machine that asks to be admitted keeps its key, and whom to ask.
ASKING = (ROLE, "identity.key", "join.json", LEFT)
PREFIX = "removed-"


def put_aside(state: Path, *, everything: bool) -> None:
    """Move a cluster's files into a folder of their own, `role.json`, which says that they are whole, first.

    With `everything` the machine's own key goes too. Interrupted, it may be repeated. Raises OSError.
    """
    if everything and (state / ROLE).exists():
        # First of all: the credential of a seed would begin the cluster a second time.
        write(state / LEFT, json.dumps({"cluster_id": json.loads((state / ROLE).read_text())["cluster_id"]}), 0o600)
    keep = {"join.json", LEFT} if everything else {*ASKING}
    found = [path for path in state.iterdir() if path.name not in keep and not path.name.startswith(PREFIX)]
    # Empty folders are made at every boot (tmpfiles.d).
    names = [path.name for path in found if not path.is_dir() or any(path.iterdir())]
    if names:
        aside = Path(tempfile.mkdtemp(prefix=PREFIX, dir=state))
        for name in sorted(names, key=lambda name: (name != ROLE, name)):
            (state / name).rename(aside / name)


def has_left(state: Path, cluster_id: str) -> bool:
    """Tell whether this machine was removed from a cluster, known by its authority's SHA-256, once."""
    try:
        return bool(json.loads((state / LEFT).read_text())["cluster_id"] == cluster_id)
    except (OSError, ValueError, KeyError):
        return False
