"""Carries connections from a port of the host's loopback into a machine's network namespace.

Runs as `python -m kmcluster.forward FD PORT ADDRESS…` inside the namespace, which lives as long as this process and
the machine do; FD is a listening socket that was bound outside of it. The first address that answers is taken.
"""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Sequence

CHUNK = 65536
CONNECT_S = 3.0


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction to its end and pass the end on."""
    with contextlib.suppress(ConnectionError, OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def connect(addresses: Sequence[str], port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """Connect to the first address that answers."""
    for address in addresses:
        with contextlib.suppress(OSError, TimeoutError):
            return await asyncio.wait_for(asyncio.open_connection(address, port), CONNECT_S)
    return None


async def carry(
    addresses: Sequence[str], port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Carry one connection."""
    inside = await connect(addresses, port)
    if inside:
        await asyncio.gather(pump(reader, inside[1]), pump(inside[0], writer))
        inside[1].close()
    writer.close()


async def serve(listener: socket.socket, addresses: Sequence[str], port: int) -> None:
    """Serve until ended by a signal."""
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(carry(addresses, port, reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, sock=listener)
    await server.serve_forever()


def listen(port: int) -> socket.socket:
    """A listening socket on the loopback: the port that was used before if it is free, else any."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    return listener


def main() -> None:
    """Run as the forwarder."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(listener, sys.argv[3:], int(sys.argv[2])))


if __name__ == "__main__":
    main()
