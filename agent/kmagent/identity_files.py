"""What a cluster left on this machine's disk: put aside when the machine no longer belongs to it."""

import tempfile
from pathlib import Path

ROLE = "role.json"
# A machine that asks to be admitted keeps its key, and whom to ask.
ASKING = (ROLE, "identity.key", "join.json")
PREFIX = "removed-"


def put_aside(state: Path, *, everything: bool) -> None:
    """Move a cluster's files into a folder of their own, `role.json`, which says that they are whole, first.

    With `everything` the machine's own key goes too. Interrupted, it may be repeated. Raises OSError.
    """
    keep = {"join.json"} if everything else {*ASKING}
    found = [path for path in state.iterdir() if path.name not in keep and not path.name.startswith(PREFIX)]
    # Empty folders are made at every boot (tmpfiles.d).
    names = [path.name for path in found if not path.is_dir() or any(path.iterdir())]
    if names:
        aside = Path(tempfile.mkdtemp(prefix=PREFIX, dir=state))
        for name in sorted(names, key=lambda name: (name != ROLE, name)):
            (state / name).rename(aside / name)
