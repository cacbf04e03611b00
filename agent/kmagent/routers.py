"""On which ports a router offers itself: they lead to somebody else's network."""

import asyncio
import socket
import struct
import time

from kmagent.mesh import Mesh

ICMP6_FILTER = 1
ROUTER_ADVERTISEMENT = 134


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
        if lifetime_s and name and not mesh.is_neighbour(name):
            heard[name] = time.monotonic() + lifetime_s

    asyncio.get_running_loop().add_reader(raw, read)
    return heard
