"""This node's addresses and routes, and its ports. Every command may be repeated without harm."""

import logging
import socket
from pathlib import Path

from kmagent.facts import Facts
from kmplan.run import run_async

log = logging.getLogger(__name__)

SYSFS = Path("/sys/class/net")


async def set_up(facts: Facts) -> None:
    """Give this node its name, addresses and routes."""
    socket.sethostname(facts.name)
    await ip_batch(node_commands(facts))
    ports = physical_ports(SYSFS)
    # One port's trouble is not the node's.
    await run_async(
        ["ip", "-force", "-batch", "-"], input=_script([f"link set {port} up" for port in ports]), check=False
    )
    log.info("%s has %s; ports: %s", facts.name, ", ".join(facts.addresses), ", ".join(ports) or "none")


def node_commands(facts: Facts) -> list[str]:
    """Return the `ip` commands that make a node of a machine.

    What the mesh does not know is unreachable, even where there is a default route: kubelet mounts nothing while it waits
    for an API server that neither answers nor refuses. The pods' prefixes are unreachable as a whole, so that they can be
    announced as a whole; each pod has its own route.
    Services need a route or nothing local would reach the rules that translate them; its source must be the node.
    `nodad`: without it an address is tentative for a moment and no route may name it.
    """
    return [
        "link set lo up",
        f"address replace {facts.address}/128 dev lo nodad",
        f"address replace {facts.address4}/32 dev lo",
        f"route replace unreachable {facts.prefix}",
        f"route replace unreachable {facts.pods}",
        f"route replace unreachable {facts.pods4}",
        f"route replace {facts.services} dev lo src {facts.address}",
        f"route replace {facts.services4} dev lo src {facts.address4}",
    ]


def anycast_commands(address: str, present: bool) -> list[str]:
    """Return the commands that take or leave an anycast address, which is never the source of anything."""
    if present:
        return [f"address replace {address}/128 dev lo preferred_lft 0 nodad"]
    return [f"address del {address}/128 dev lo"]


async def has_address(address: str) -> bool:
    """Tell whether `lo` has an address."""
    _, text = await run_async(["ip", "-6", "-oneline", "address", "show", "dev", "lo", "to", address], check=False)
    return address in text


async def ip_batch(commands: list[str]) -> None:
    """Run `ip` commands in one process."""
    await run_async(["ip", "-batch", "-"], input=_script(commands))


def physical_ports(sysfs: Path) -> list[str]:
    """Return the network ports of this machine; in a container, the interfaces it was given.

    Ports have a device behind them; of the others, what CNI makes is called `veth` and the kernel's own have no peer.
    """
    names = sorted(path.name for path in sysfs.iterdir()) if sysfs.exists() else []
    return [name for name in names if (sysfs / name / "device").exists() or _is_cable(sysfs / name)]


def _is_cable(path: Path) -> bool:
    if path.name == "lo" or path.name.startswith("veth"):
        return False
    try:
        linked = (path / "iflink").read_text() != (path / "ifindex").read_text()
        return linked and (path / "type").read_text().strip() == "1"
    except OSError:
        return False


def _script(commands: list[str]) -> str:
    return "".join(f"{command}\n" for command in commands)
