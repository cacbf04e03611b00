"""On which ports a router offers itself: they lead to somebody else's network."""

import asyncio
import contextlib
import socket
import struct
import time

from kmagent.mesh import Mesh
from kmagent.ports import Port

ICMP6_FILTER = 1
SOLICITATION, ROUTER_ADVERTISEMENT = 133, 134


def listen(mesh: Mesh) -> dict[str, float]:
    """Collect the names of ports on which a router offers itself (RFC 4861, 4.2), in the background.

    With each goes until when it does, by the monotonic clock.
    """
    heard: dict[str, float] = {}
    raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6)
    passes = [0xFFFFFFFF] * 8
    passes[ROUTER_ADVERTISEMENT >> 5] &= ~(1 << (ROUTER_ADVERTISEMENT & 31))
    raw.setsockopt(socket.IPPROTO_ICMPV6, ICMP6_FILTER, struct.pack("@8I", *passes))

    def read() -> None:
        data, (_, _, _, index) = raw.recvfrom(1500)
        lifetime_s = int.from_bytes(data[6:8], "big") if len(data) >= 16 else 0
        name = next((port.name for port in mesh.ports.values() if port.index == index), None)
        if name and not mesh.is_neighbour(name):
            if lifetime_s:
                heard[name] = time.monotonic() + lifetime_s
            else:
                heard.pop(name, None)

    asyncio.get_running_loop().add_reader(raw, read)
    return heard


def solicit(port: Port) -> None:
    """Ask the routers on a port to say that they are there (RFC 4861, 4.1)."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        raw.sendto(bytes([SOLICITATION, 0, 0, 0, 0, 0, 0, 0]), ("ff02::2", 0, 0, port.index))
