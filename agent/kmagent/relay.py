"""The way in for a machine that has no address yet: bytes from a port's link-local address to the join API and back.

The relay reads nothing of what it carries (TLS from end to end) and bounds all of it: connections, bytes, time.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

PORT = 9442
JOIN_PORT = 9443
MAX_CONNECTIONS_PER_PORT = 4
MAX_BYTES_UP = 64 * 1024
MAX_BYTES_DOWN = 4 * 1024 * 1024
TIMEOUT_S = 30.0
NEW_PER_S = 5.0
BURST = 10.0


@dataclass
class Bucket:
    """Lets `rate` things per second pass, and `burst` at once."""

    rate: float
    burst: float
    left: float = field(init=False)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.left, self.at = self.burst, time.monotonic()

    def take(self, now: float | None = None) -> bool:
        """Tell whether one more may pass."""
        now = time.monotonic() if now is None else now
        self.left = min(self.burst, self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Relay:
    """Serves every port; `upstream` is where the join API is, and `source` this node's own address."""

    def __init__(self, upstream: str, source: str, is_port: Callable[[int], bool]) -> None:
        self._upstream = upstream
        self._source = source
        self._is_port = is_port
        self._buckets: dict[int, Bucket] = {}
        self._open: dict[int, int] = {}

    async def serve(self) -> asyncio.Server:
        """Start listening; the firewall lets only link-local addresses in from strangers."""
        return await asyncio.start_server(self._accept, "::", PORT, reuse_address=True, limit=MAX_BYTES_UP)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = int(writer.get_extra_info("peername")[3])
        try:
            if not self._is_port(port) or self._open.get(port, 0) >= MAX_CONNECTIONS_PER_PORT:
                return
            if not self._buckets.setdefault(port, Bucket(NEW_PER_S, BURST)).take():
                return
            self._open[port] = self._open.get(port, 0) + 1
            try:
                await asyncio.wait_for(self._carry(reader, writer), TIMEOUT_S)
            finally:
                self._open[port] -= 1
        except (OSError, TimeoutError):
            return
        finally:
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(
            self._upstream, JOIN_PORT, local_addr=(self._source, 0), family=socket.AF_INET6
        )
        try:
            up = asyncio.create_task(_pump(reader, back, MAX_BYTES_UP))
            down = asyncio.create_task(_pump(there, writer, MAX_BYTES_DOWN))
            await asyncio.wait((up, down), return_when=asyncio.FIRST_EXCEPTION)
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
        finally:
            back.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int) -> None:
    while data := await reader.read(16384):
        limit -= len(data)
        if limit < 0:
            raise ConnectionAbortedError("too many bytes")
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()
