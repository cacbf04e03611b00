"""Servers on the loopback, and plain conversations with them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

HOST = "::1"


def live(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


@asynccontextmanager
async def listening(server: asyncio.Server) -> AsyncIterator[int]:
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def everything(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the connection ends, in whichever way."""
    data = b""
    try:
        while part := await reader.read(4096):
            data += part
    except ConnectionError:
        pass
    return data


async def exchange(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(data)
    answer = await everything(reader)
    writer.close()
    return answer


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition; `live` sets the deadline."""
    while not await condition():
        await asyncio.sleep(0.001)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what can be told without waiting."""
    while not condition():
        await asyncio.sleep(0.001)
