"""The agent that runs all the time stays small."""

import subprocess
import sys

LARGE = "cryptography", "yaml", "jsonschema"


def test_the_daemon_does_not_load_what_few_moments_need() -> None:
    """Who signs does it in a process of its own; each of these takes megabytes on every node."""
    script = f"import sys, kmagent.daemon; print(*[name for name in {LARGE} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
