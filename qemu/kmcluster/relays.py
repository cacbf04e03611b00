"""The processes that carry frames of cables: which of them run."""

import sys

from kmcluster import process
from kmcluster.cable import Cable
from kmcluster.launch import Spec
from kmcluster.starter import start
from kmcluster.state import Cluster


def relay_argv(kind: str, a: str, b: str, cable: Cable) -> list[str]:
    """The argv of a cable's relay; `a` and `b` are what `kmcluster.relay` takes for that kind."""
    relay = [sys.executable, "-P", "-m", "kmcluster.relay", kind, a, b]
    return [*relay, str(cable.delay_ms), *map(str, cable.loss_percent)]


def keep_relay(cluster: Cluster, cable: Cable, argv: list[str] | None, cwd: str = "/") -> None:
    """Have a relay run with exactly this argv (a prefix that becomes the rest may lead it), or none.

    One that does so already is left alone: no frame is lost for nothing.
    """
    role = f"relay{cable.number}"
    running = cluster.processes.get(role)
    if running and argv and (now := process.read_argv(running)) and argv[-len(now) :] == now:
        return
    cluster.end_process(role)
    if argv:
        start(Spec(argv=argv, cwd=cwd), cluster.folder / "cables.log", cluster.noter(role))
