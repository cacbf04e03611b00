"""This machine's network ports: what there is, and a wake-up whenever one comes, goes or changes, or a route does."""

import asyncio
import socket
from dataclasses import dataclass
from pathlib import Path

from kmagent.paths import in_container

SYSFS = Path("/sys/class/net")
# What the kernel tells of (rtnetlink(7)): links; routes of both families.
LINKS, ROUTES = 0x1, 0x40 | 0x400
SETTLE_S = 0.02


@dataclass(frozen=True)
class Port:
    """A network port: its name and index in the kernel, hardware address, whether it has a carrier, and MTU in bytes."""

    name: str
    index: int
    mac: str
    carrier: bool
    mtu: int


def physical_ports(sysfs: Path = SYSFS, ignored: tuple[str, ...] = ()) -> tuple[Port, ...]:
    """Return the network ports of this machine but those with an `ignored` hardware address; in a container, its cables."""
    names = sorted(path.name for path in sysfs.iterdir()) if sysfs.exists() else []
    found = (_read(sysfs / name) for name in names if (sysfs / name / "device").exists() or _is_cable(sysfs / name))
    return tuple(port for port in found if port is not None and port.mac not in ignored)


class Watcher:
    """Tells when the kernel says that a link changed, or what else is in `groups`."""

    def __init__(self, groups: int = LINKS) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self._socket.bind((0, groups))
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    async def wait(self, timeout_s: float) -> None:
        """Wait for a change, or `timeout_s`; changes that come together are one."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return
        await asyncio.sleep(SETTLE_S)
        self._changed.clear()

    def _read(self) -> None:
        try:
            while self._socket.recv(65536):
                self._changed.set()
        except BlockingIOError:
            return
        except OSError:
            # Too many messages for the buffer: some change was missed, so look at everything.
            self._changed.set()


def _read(path: Path) -> Port | None:
    try:
        return Port(
            name=path.name,
            index=int((path / "ifindex").read_text()),
            mac=(path / "address").read_text().strip(),
            carrier=_has_carrier(path),
            mtu=int((path / "mtu").read_text()),
        )
    except (OSError, ValueError):
        return None


def _has_carrier(path: Path) -> bool:
    try:
        return (path / "carrier").read_text().strip() == "1"
    except OSError:
        # A port that is down has no carrier to tell of: EINVAL.
        return False


def _is_cable(path: Path) -> bool:
    """A container's ports have no device: they are told by the names that such get, as those of CNI are by theirs."""
    return path.name.startswith(("eth", "host")) and in_container()
