"""A newer sequence number for what this node announces: with it, others take ways here that are longer than those they had.

Babel takes a longer way with a newer number only, and who lost a way requests one (RFC 8966, 2.5 and 3.8.2). babeld passes such a
request on once, and drops those that come after it for 65 s, also when the first met a node that was cut off. So a node whose
own ways have changed takes a newer number unasked (docs/design-notes.md, "Sequence numbers").

babeld has no command for that, but it does what a neighbour requests: here that is the agent, on a cable to babeld alone.
"""

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from kmagent.programs import run_async

# The two ends of that cable (veth(4)): babeld speaks on the first, with no key, and takes no routes there (babel.py).
BABELD_END, AGENT_END = "seqno0", "seqno1"
INTERFACE = f"interface {BABELD_END} type wired hello-interval 60 update-interval 600"
# How soon after one number the next may be taken: about as long as all neighbours take to hear of it.
PAUSE_S = 2.0

GROUP, PORT = "ff02::1:6", 6696
MAGIC, VERSION = 42, 2
SEQNO_REQUEST, HOPS, IPV6, HOST_BITS = 10, 127, 2, 128
# babeld takes its next number for a request that is ahead of it by up to this (1.13, `handle_request`).
AHEAD = 100
IN_A_PACKET = 32


def requests(router_id: bytes, address: str) -> Iterator[bytes]:
    """Yield packets that request a newer number of an address's prefix from the router (8 bytes) that announces it.

    Which one it has is told to neighbours that it hears only: one of these is a little ahead of it, or two are.
    Seqno Requests: RFC 8966, 4.6.11; the packet around them: 4.2.
    """
    rest = struct.pack("!Bx8s16s", HOPS, router_id, socket.inet_pton(socket.AF_INET6, address))
    head = struct.pack("!BBBB", SEQNO_REQUEST, 2 + 2 + len(rest), IPV6, HOST_BITS)
    every = [head + struct.pack("!H", seqno) + rest for seqno in range(0, 1 << 16, AHEAD)]
    for start in range(0, len(every), IN_A_PACKET):
        body = b"".join(every[start : start + IN_A_PACKET])
        yield struct.pack("!BBH", MAGIC, VERSION, len(body)) + body


async def set_up() -> None:
    """Lay the cable to babeld, if it is not there."""
    await run_async(["ip", "link", "add", BABELD_END, "type", "veth", "peer", "name", AGENT_END], check=False)
    for name in (BABELD_END, AGENT_END):
        # Nobody else is there, and nothing can be sent while duplicates are looked for.
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{name}/dad_transmits").write_text("0")
        await run_async(["ip", "link", "set", name, "up"], check=False)


def renew(router_id: bytes, address: str) -> None:
    """Have babeld take a newer number; raises OSError when there is no such cable yet."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
        place = (GROUP, PORT, 0, socket.if_nametoindex(AGENT_END))
        for packet in requests(router_id, address):
            made.sendto(packet, place)
