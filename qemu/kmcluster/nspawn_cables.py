"""Cables between nspawn machines.

A network namespace of the cluster's own holds the middle of every cable. Each port of a machine is one end of a veth
pair whose other end, called after the port (`1-eth0`), is in there. nftables rules carry frames from one such end to
the other; an end that is set down takes the carrier from the machine's port, as a pulled cable does.
"""

import json
from collections.abc import Iterable, Sequence

from kmcluster import process
from kmcluster.cable import Cable, Port
from kmcluster.launch import Spec
from kmcluster.process import Process
from kmcluster.relays import keep_relay, relay_argv
from kmcluster.starter import start
from kmcluster.state import Cluster, Machine
from kmplan import run
from kmplan.errors import UserError

HOLDER = "cables"
# nftables draws whole numbers.
PER_PERCENT = 100


def middle(port: Port) -> str:
    """Name of a port's other end."""
    return f"{port.node}-{port.name}"


def port_batch(port: Port, mtu: int, holder: int) -> str:
    """Commands for `ip -batch` that make a port in the network namespace of process `holder`."""
    peer = f"peer name {port.name} mtu {mtu} address {port.mac} netns {holder}"
    return f"link add name {middle(port)} mtu {mtu} type veth {peer}\n"


def carrier_batch(states: Iterable[tuple[Port, bool]]) -> str:
    """Commands for `ip -batch` that give ports a carrier or take it."""
    return "".join(f"link set dev {middle(port)} {'up' if up else 'down'}\n" for port, up in states)


def rules(cable: Cable, live: bool) -> str:
    """A ruleset for `nft -f` that replaces the cable's; none is left of a cable that is not live.

    What the namespace itself would take is dropped. Frames of a slow cable are carried by `kmcluster.relay`.
    """
    name = f"cable{cable.number}"
    text = f"table netdev {name}\ndelete table netdev {name}\n"
    if not live:
        return text
    chains = [
        chain("ab", cable.a, cable.b, cable.loss_percent[0], cable.delay_ms),
        chain("ba", cable.b, cable.a, cable.loss_percent[1], cable.delay_ms),
    ]
    return f"{text}table netdev {name} {{\n{''.join(chains)}}}\n"


def chain(name: str, source: Port, target: Port, loss_percent: float, delay_ms: float) -> str:
    """The nftables chain of one direction."""
    hook = f'type filter hook ingress device "{middle(source)}" priority 0; policy drop;'
    if delay_ms or loss_percent == 100:
        return f"  chain {name} {{ {hook} }}\n"
    lost = round(loss_percent * PER_PERCENT)
    drop = f" numgen random mod {100 * PER_PERCENT} < {lost} drop;" if lost else ""
    return f'  chain {name} {{ {hook}{drop} fwd to "{middle(target)}"; }}\n'


def is_live(cable: Cable, present: set[str]) -> bool:
    """Whether a cable carries anything: plugged in, and both machines are on."""
    return not cable.cut and {middle(cable.a), middle(cable.b)} <= present


def carriers(cluster: Cluster, present: set[str]) -> list[tuple[Port, bool]]:
    """Which of the ports that are there have a carrier."""
    live = {end for cable in cluster.cables if is_live(cable, present) for end in (cable.a, cable.b)}
    ports = [port for machine in cluster.machines for port in machine.port_list]
    return [(port, port in live) for port in ports if middle(port) in present]


def left_behind(cluster: Cluster) -> set[str]:
    """Names of the ends of machines that have switched themselves off: they stay until the next power on or cut."""
    ended = [
        machine
        for machine in cluster.machines
        if (init := machine.processes.get("init")) and not process.is_running(init)
    ]
    return {middle(port) for machine in ended for port in machine.port_list}


class NspawnCables:
    """The cables of one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    @property
    def holder(self) -> Process | None:
        """The process that holds the namespace, if it runs."""
        holder = self.cluster.processes.get(HOLDER)
        return holder if holder and process.is_running(holder) else None

    def start_holder(self) -> None:
        """Make the namespace unless it is there."""
        if self.holder:
            return
        for cable in self.cluster.cables:
            keep_relay(self.cluster, cable, None)
        log = self.cluster.folder / "cables.log"
        holder = start(Spec(argv=["sleep", "infinity"], new_network=True), log, self.cluster.noter(HOLDER))
        process.wait_own_network(holder, 60, log)

    def enter(self, *argv: str, text: str) -> str:
        """Run a command in the namespace and return its output."""
        return run.run(self.inside(argv), input=text).stdout

    def inside(self, argv: Sequence[str]) -> list[str]:
        """The argv that runs a command in the namespace."""
        holder = self.holder
        if holder is None:
            raise UserError("the process that holds the cables is gone", "`kmbuild cluster up` starts it again")
        return ["nsenter", f"--net=/proc/{holder.pid}/ns/net", *argv]

    def present(self) -> set[str]:
        """Names of the ends in the namespace."""
        return {link["ifname"] for link in json.loads(self.enter("ip", "-json", "link", "show", text=""))}

    def connect(self, machine: Machine, holder: Process) -> None:
        """Make those ports of a machine that are missing, in the network namespace of `holder`; plug its cables in."""
        if not machine.ports:
            return
        self.start_holder()
        present, mtus = self.present(), self.cluster.mtus()
        missing = [port for port in machine.port_list if middle(port) not in present]
        if missing:
            # Else every end gets a link-local address and sends frames of its own.
            self.enter("tee", "/proc/sys/net/ipv6/conf/default/disable_ipv6", text="1\n")
            batch = "".join(port_batch(port, mtus[port], holder.pid) for port in missing)
            self.enter("ip", "-batch", "-", text=batch)
            self.apply(self.cluster.cables_of(machine))

    def disconnect(self, machine: Machine) -> None:
        """Take a machine's ports away, and its neighbours' carrier."""
        if self.holder is None:
            return
        own = set(machine.port_list)
        far = [end for cable in self.cluster.cables_of(machine) for end in (cable.a, cable.b) if end not in own]
        batch = carrier_batch((end, False) for end in far)
        batch += "".join(f"link delete dev {middle(port)}\n" for port in machine.port_list)
        # Neighbours that are off have none.
        run.run(self.inside(["ip", "-force", "-batch", "-"]), input=batch, check=False)
        self.apply(self.cluster.cables_of(machine))

    def apply(self, cables: Sequence[Cable]) -> None:
        """Make the cables what the state says: carrier, loss and delay."""
        if self.holder is None:
            return
        present = self.present() - left_behind(self.cluster)
        self.enter("nft", "-f", "-", text="".join(rules(cable, is_live(cable, present)) for cable in cables))
        for cable in cables:
            slow = cable.delay_ms and is_live(cable, present)
            argv = relay_argv("packet", middle(cable.a), middle(cable.b), cable)
            keep_relay(self.cluster, cable, self.inside(argv) if slow else None)
        self.enter("ip", "-batch", "-", text=carrier_batch(carriers(self.cluster, present)))
