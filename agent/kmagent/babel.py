"""babeld(8): its configuration, and the conversation over its local socket."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kmagent.facts import Facts

log = logging.getLogger(__name__)

HELLO_S = 0.2
UPDATE_S = 2.0
UNIT = "kubermesh-babeld.service"
RETRY_S = 0.3


@dataclass(frozen=True)
class Link:
    """babeld's view of a neighbour: costs of receiving and sending (96 is a perfect wire, 65535 none), and both.

    `reach` are the last 16 hellos, the newest first.
    """

    address: str
    rxcost: int
    txcost: int
    cost: int
    reach: int


@dataclass
class Table:
    """What babeld has said since it was asked: neighbours by its own handles, and routes with whether they are in use."""

    neighbours: dict[str, tuple[str, Link]] = field(default_factory=dict)
    routes: dict[str, tuple[str, bool]] = field(default_factory=dict)

    @property
    def installed(self) -> set[str]:
        """Prefixes with a route in use."""
        return {prefix for prefix, used in self.routes.values() if used}

    def link(self, port: str) -> Link | None:
        """The best neighbour on a port."""
        found = [link for name, link in self.neighbours.values() if name == port]
        return min(found, key=lambda link: link.cost, default=None)


def configuration(facts: Facts, ports: Iterable[tuple[str, str]], socket: Path, hello_s: float = HELLO_S) -> str:
    """Return babeld's configuration; `ports` are names with the mesh key (hex) to use there.

    Announced are the node's address, the anycast addresses it holds, its pods' prefixes as a whole, and a default route
    if it has one; taken are routes of the cluster only. Each port has a key of its own name, so that it can be replaced
    on that port while babeld runs.
    """
    update_s = UPDATE_S * hello_s / HELLO_S
    return "\n".join(
        [
            f"local-path-readwrite {socket}",
            "skip-kernel-setup true",
            "ipv6-subtrees true",
            "random-id true",
            "kernel-priority 1024",
            f"default type wired hello-interval {hello_s:g} update-interval {update_s:g} v4-via-v6 true",
            f"redistribute local ip {facts.address}/128 eq 128 allow",
            f"redistribute local ip {facts.api}/128 eq 128 allow",
            f"redistribute local ip {facts.join}/128 eq 128 allow",
            "redistribute local deny",
            # 3 is `boot`, what ip(8) gives a route; 4 `static`, 9 `ra`, 16 `dhcp`: see /etc/iproute2/rt_protos.
            f"redistribute ip {facts.pods} eq 64 proto 3 allow",
            f"redistribute ip {facts.pods4} eq 24 proto 3 allow",
            *(
                f"redistribute ip {prefix} eq 0 proto {proto} metric 128"
                for prefix in ("::/0", "0.0.0.0/0")
                for proto in (4, 9, 16)
            ),
            "redistribute deny",
            *(f"in ip {prefix} allow" for prefix in (facts.prefix, "10.0.0.0/8")),
            *(f"in ip {prefix} eq 0 allow" for prefix in ("::/0", "0.0.0.0/0")),
            "in deny",
            f"install ip ::/0 pref-src {facts.address}",
            f"install ip 0.0.0.0/0 pref-src {facts.address4}",
            *(line for name, key in ports for line in interface(name, key)),
            "",
        ]
    )


def interface(name: str, key: str) -> list[str]:
    """Return the lines that make babeld speak on a port."""
    return [replace_key(name, key), f"interface {name} key {name}"]


def replace_key(name: str, key: str) -> str:
    """Return the line that gives a port another key; babeld takes it from the next packet on, neighbours stay."""
    return f"key id {name} type blake2s128 value {key}"


def take(table: Table, line: str) -> bool:
    """Take in a line of babeld's monitor; tells whether it was about neighbours or routes."""
    words = line.split()
    if len(words) < 3 or words[1] not in ("neighbour", "route"):
        return False
    action, kind, handle = words[:3]
    known = table.neighbours if kind == "neighbour" else table.routes
    if action == "flush":
        known.pop(handle, None)
        return True
    values = dict(zip(words[3::2], words[4::2], strict=False))
    if kind == "neighbour":
        link = Link(
            values["address"],
            int(values["rxcost"]),
            int(values["txcost"]),
            int(values["cost"]),
            int(values["reach"], 16),
        )
        table.neighbours[handle] = (values["if"], link)
    else:
        table.routes[handle] = (values["prefix"], values["installed"] == "yes")
    return True


class Babel:
    """The conversation with the running babeld: commands go in, and `changed` is called after every line of news."""

    def __init__(self, socket: Path, changed: Callable[[], None]) -> None:
        self.table = Table()
        self.connected = asyncio.Event()
        self._socket = socket
        self._changed = changed
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        """Keep a connection; a babeld that was started anew is asked anew."""
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._converse()
            self.connected.clear()
            self._writer = None
            self.table = Table()
            await asyncio.sleep(RETRY_S)

    def send(self, lines: Iterable[str]) -> None:
        """Send commands; without a connection they are dropped, as babeld's next start reads the configuration."""
        if self._writer is not None:
            self._writer.write("".join(f"{line}\n" for line in lines).encode())

    async def _converse(self) -> None:
        reader, writer = await asyncio.open_unix_connection(self._socket)
        try:
            writer.write(b"monitor\n")
            self._writer = writer
            self.connected.set()
            while line := await reader.readline():
                text = line.decode(errors="replace").strip()
                if text.startswith(("bad", "no ")):
                    log.warning("babeld: %s", text)
                if take(self.table, text):
                    self._changed()
        finally:
            writer.close()
