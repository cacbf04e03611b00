"""Where the bench keeps things: state that must survive a crash of the tool, and a cache that may be thrown away."""

import os
from pathlib import Path


def clusters_folder() -> Path:
    """One folder per cluster: $XDG_STATE_HOME/kubermesh/clusters (default ~/.local/state)."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local/state") / "kubermesh/clusters"


def cache_folder() -> Path:
    """What can be made again: $XDG_CACHE_HOME/kubermesh (default ~/.cache)."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "kubermesh"
