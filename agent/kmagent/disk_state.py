"""What became of the stick that this machine was booted from, as `install` wrote it down; read without a large library."""

import json
import re

from kmagent.paths import Paths

MAX_BLOCKED = 300


def read(paths: Paths) -> tuple[str, str]:
    """Return the state in one word, and in more; empty when the machine was booted from no stick."""
    try:
        data = json.loads(paths.disk.read_text())
        return str(data["state"]), str(data["message"])
    except (OSError, ValueError, KeyError):
        return "", ""


def blocked(paths: Paths) -> str:
    """Return why this machine has no disk to live on, in printable ASCII; empty when it has one.

    One that was interrupted while it installed has none either.
    """
    state, text = read(paths)
    return re.sub(r"[^\x20-\x7e]", "?", text)[:MAX_BLOCKED] if state in ("blocked", "installing") else ""
