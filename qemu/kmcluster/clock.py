"""A machine's clock, put ahead or behind."""

import time
from typing import Any

from kmcluster import inside, state
from kmcluster.drivers import driver_of
from kmcluster.duration import parse_duration
from kmplan.errors import UserError

ANSWER_S = 60.0


def parse_shift(text: str) -> int:
    """Read `+1h` or `-30m` as seconds; raises UserError."""
    if text[:1] not in ("+", "-"):
        raise UserError(f"{text}: neither forward nor back", f"write +{text} or -{text}")
    return int(f"{text[0]}1") * parse_duration(text[1:])


def shift(name: str, node: str, text: str) -> dict[str, Any]:
    """Put a machine's clock ahead of this one's or behind it; returns {node, before, after}, moments in seconds since 1970.

    Raises UserError for containers: they have the host's clock, and that is never touched.
    """
    seconds = parse_shift(text)
    cluster = state.load(name)
    machine = cluster.machine(node)
    if cluster.driver != "qemu":
        raise UserError(f"{machine.name} is a container and has this host's clock", "use a cluster of --driver qemu")
    moment = str(int(time.time()) + seconds)
    answer = inside.run_script(driver_of(cluster), machine, "set_clock", moment, timeout_s=ANSWER_S)
    return {"node": machine.name, **answer}
