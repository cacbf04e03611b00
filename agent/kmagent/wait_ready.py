"""`python3 -m kmagent wait-ready`: ends when this node is Ready; for kubermesh-healthy.service."""

import json
import time

from kmagent.paths import Paths

PERIOD_S = 1.0


def main() -> int:
    """Wait; systemd's own time limit ends it when the node never gets there."""
    path = Paths().status
    while True:
        try:
            if json.loads(path.read_text())["conditions"]["ready"]:
                return 0
        except (OSError, ValueError, KeyError):
            pass
        time.sleep(PERIOD_S)
