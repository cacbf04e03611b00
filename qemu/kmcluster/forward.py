"""Carries connections from ports of the host's loopback into a machine's network namespace.

Runs as `python -m kmcluster.forward FD PORT [FD PORT…]` inside the namespace, which lives as long as this process and the
machine do; FD is a listening socket that was bound outside of it, for PORT on the machine's loopback.
"""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Sequence

ADDRESS = "::1"
CHUNK = 65536
CONNECT_S = 3.0


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction to its end and pass the end on."""
    with contextlib.suppress(ConnectionError, OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def carry(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry one connection."""
    with contextlib.suppress(OSError, TimeoutError):
        there, back = await asyncio.wait_for(asyncio.open_connection(ADDRESS, port), CONNECT_S)
        await asyncio.gather(pump(reader, back), pump(there, writer))
        back.close()
    writer.close()


async def serve(listener: socket.socket, port: int) -> None:
    """Serve until ended by a signal."""
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(carry(port, reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, sock=listener)
    await server.serve_forever()


async def serve_all(numbers: Sequence[int]) -> None:
    """Serve every pair of a listening descriptor and a port."""
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    await asyncio.gather(*(serve(socket.socket(fileno=descriptor), port) for descriptor, port in pairs))


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
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve_all([int(word) for word in sys.argv[1:]]))


if __name__ == "__main__":
    main()
