"""Cables between QEMU machines.

Each port is a datagram socket `eth0.sock` in its machine's folder, and sends to `eth0.cable` beside it. One relay per
cable carries frames between two ports: it always takes them, while a QEMU whose receiver is full would spin.
"""

from collections.abc import Sequence
from pathlib import Path

from kmcluster import process, qmp
from kmcluster.cable import Cable, Port
from kmcluster.relays import keep_relay, relay_argv
from kmcluster.state import Cluster, Machine


def is_on(machine: Machine) -> bool:
    """Whether the machine's QEMU runs."""
    started = machine.processes.get("qemu")
    return started is not None and process.is_running(started)


def live_ports(cluster: Cluster) -> set[Port]:
    """Ports with a carrier: the cable is plugged in and both machines are on."""
    on = {machine.number for machine in cluster.machines if is_on(machine)}
    cables = [cable for cable in cluster.cables if not cable.cut and {cable.a.node, cable.b.node} <= on]
    return {end for cable in cables for end in (cable.a, cable.b)}


def socket_prefix(cluster: Cluster, port: Port) -> str:
    """Path of a port's sockets without its ending, seen from the folder of machines: the whole path may be too long."""
    return f"{cluster.machines[port.node - 1].name}/{port.name}"


def apply(cluster: Cluster, cables: Sequence[Cable]) -> None:
    """Make the cables what the state says: relays first, then the carriers."""
    live = live_ports(cluster)
    for cable in cables:
        ends = socket_prefix(cluster, cable.a), socket_prefix(cluster, cable.b)
        argv = relay_argv("unix", *ends, cable) if cable.a in live else None
        keep_relay(cluster, cable, argv, str(cluster.folder / "machines"))
    for machine in filter(is_on, cluster.machines):
        set_carriers(cluster.machine_folder(machine) / "qmp.sock", machine, live)


def set_carriers(monitor: Path, machine: Machine, live: set[Port]) -> None:
    """Tell a machine which of its ports have a carrier."""
    for port in machine.port_list:
        qmp.execute(monitor, "set_link", name=port.name, up=port in live)
