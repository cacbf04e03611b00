"""What is done to a cluster's cables: cut, plug in again, make bad, plug in elsewhere."""

from collections.abc import Callable

from msgspec.structs import replace

from kmcluster import state
from kmcluster.cable import Cable, Port, parse_port
from kmcluster.drivers import driver_of
from kmcluster.state import Cluster
from kmcluster.topology import check_cables
from kmplan.errors import UserError

ACTIONS = ("cut", "plug", "lossy", "slow", "one-way")
LOSS_PERCENT = 30.0
DELAY_MS = 15.0


def change(name: str, a: str, b: str, action: str, loss_percent: float | None, delay_ms: float | None) -> Cable:
    """Do something to the cable between two nodes (or ports); losses and delay that are None are the action's own.

    A cut cable keeps nothing of what it was before. Raises UserError when there is no such cable, or several.
    """
    if action not in ACTIONS:
        raise UserError(f"{action}: no such action", f"there are: {', '.join(ACTIONS)}")
    if action in ("cut", "plug") and (loss_percent, delay_ms) != (None, None):
        raise UserError(f"{action} takes neither loss nor delay", "give them with lossy, slow or one-way")

    def alter(cluster: Cluster) -> Cable:
        cable, turned = find(cluster, a, b)
        return treat(cable, action, loss_percent, delay_ms, turned)

    return update(name, alter)


def treat(cable: Cable, action: str, loss_percent: float | None, delay_ms: float | None, turned: bool = False) -> Cable:
    """The cable after an action; `turned` when it is looked at from its end b."""
    loss, delay = loss_percent or 0.0, delay_ms or 0.0
    there = back = loss
    match action:
        case "cut":
            return replace(cable, cut=True, loss_percent=(0.0, 0.0), delay_ms=0.0)
        case "plug":
            there = back = delay = 0.0
        case "lossy":
            there = back = LOSS_PERCENT if loss_percent is None else loss
        case "slow":
            delay = DELAY_MS if delay_ms is None else delay
        case "one-way":
            there = 100.0
    ways = (back, there) if turned else (there, back)
    return replace(cable, cut=False, loss_percent=ways, delay_ms=delay)


def move(name: str, source: str, target: str) -> Cable:
    """Pull the plug that is in port `source` and put it into port `target`; raises UserError when it cannot be."""

    def alter(cluster: Cluster) -> Cable:
        old, new = port_of(cluster, source), port_of(cluster, target)
        cable = next((cable for cable in cluster.cables if old in (cable.a, cable.b)), None)
        if cable is None:
            raise UserError(f"no cable in {old} of cluster {cluster.name}", list_cables(cluster.cables))
        moved = replace(cable, a=new) if cable.a == old else replace(cable, b=new)
        cables = [moved if one is cable else one for one in cluster.cables]
        check_cables(cables, [machine.ports for machine in cluster.machines], f"cluster {cluster.name}")
        return moved

    return update(name, alter)


def update(name: str, alter: Callable[[Cluster], Cable]) -> Cable:
    """Change one cable in the state file, then in the world."""
    with state.locked(name):
        cluster = state.load(name)
        cable = alter(cluster)
        cluster.cables[cable.number - 1] = cable
        cluster.save()
        driver_of(cluster).apply_cables([cable])
    return cable


def find(cluster: Cluster, a: str, b: str) -> tuple[Cable, bool]:
    """The one cable between two nodes or ports, and whether its end a is at `b`; raises UserError."""
    here, there = end_of(cluster, a), end_of(cluster, b)
    straight = [cable for cable in cluster.cables if here(cable.a) and there(cable.b)]
    turned = [cable for cable in cluster.cables if here(cable.b) and there(cable.a)]
    if not straight and not turned:
        raise UserError(f"no cable between {a} and {b} in cluster {cluster.name}", list_cables(cluster.cables))
    if len(straight) + len(turned) > 1:
        raise UserError(f"several cables between {a} and {b}", list_cables(straight + turned))
    return (straight or turned)[0], bool(turned)


def list_cables(cables: list[Cable]) -> str:
    """The cables in one line, as a hint."""
    shown = [f"{cable.a} {cable.b}" for cable in sorted(cables, key=lambda cable: cable.number)]
    return f"there are: {', '.join(shown) or 'none'}"


def end_of(cluster: Cluster, text: str) -> Callable[[Port], bool]:
    """What tells whether a port is meant by NODE or NODE:PORT; raises UserError for a node that is not there."""
    if ":" in text:
        port = port_of(cluster, text)
        return lambda end: end == port
    number = cluster.machine(text).number
    return lambda end: end.node == number


def port_of(cluster: Cluster, text: str) -> Port:
    """The port that NODE:PORT means, NODE being a name or a number; raises UserError."""
    node, colon, name = text.partition(":")
    if not colon:
        raise UserError(f"{text}: not a port", "write a node and its port, such as 1:eth0")
    return parse_port(f"{cluster.machine(node).number}:{name}")
