"""What systemd is told (sd_notify(3))."""

import asyncio
import os
import socket


def send(message: str) -> None:
    """Send one notification; nothing happens when nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer:
        peer.connect("\0" + address[1:] if address.startswith("@") else address)
        peer.sendall(message.encode())


def watchdog_period_s() -> float | None:
    """Return how often to say that this process is alive: a third of what systemd allows."""
    period = os.environ.get("WATCHDOG_USEC")
    return int(period) / 1e6 / 3 if period else None


async def keep_alive() -> None:
    """Tell systemd again and again that the event loop turns."""
    period = watchdog_period_s()
    while period:
        send("WATCHDOG=1")
        await asyncio.sleep(period)
