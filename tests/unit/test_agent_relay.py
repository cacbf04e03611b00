"""The relay: what a machine without an address may send to the join API, and how much."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from agent_sockets import HOST, eventually, everything, exchange, listening, live

from kmagent import relay
from kmagent.relay import Bucket, Relay

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.mark.parametrize(
    ("moments", "passed"),
    [
        ([0] * 5, "+++--"),
        ([0, 0, 0, 0, 0.4, 0.5], "+++--+"),
        ([0, 0, 0, 100, 100, 100, 100], "++++++-"),
        ([0, 0, 0, 0.5, 1.0, 1.25, 1.5], "+++++-+"),
    ],
)
def test_a_bucket_lets_some_through_at_once_and_the_others_at_its_rate(moments: list[float], passed: str) -> None:
    bucket = Bucket(rate=2, burst=3)
    start = bucket.at
    assert "".join("+" if bucket.take(start + moment) else "-" for moment in moments) == passed


class JoinServer:
    """Stands in for the join API: gives back what it gets, or says much; notes how much it got."""

    def __init__(self, speech: bytes = b"") -> None:
        self.speech, self.got = speech, 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.speech)
        try:
            while data := await reader.read(100):
                self.got += len(data)
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()


@asynccontextmanager
async def relayed(server: JoinServer, is_port: bool = True) -> AsyncIterator[int]:
    upstream = await asyncio.start_server(server.serve, HOST, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "PORT", 0)
        patch.setattr(relay, "JOIN_PORT", upstream.sockets[0].getsockname()[1])
        async with listening(await Relay(HOST, HOST, lambda index: is_port).serve()) as port:
            yield port
        upstream.close()


async def connect(port: int) -> Streams:
    return await asyncio.open_connection(HOST, port)


async def echoes(streams: Streams) -> bool:
    reader, writer = streams
    try:
        writer.write(b"x")
        return await reader.read(1) == b"x"
    except ConnectionError:
        return False


def test_bytes_go_to_the_join_api_and_back_until_both_are_done() -> None:
    async def scenario() -> None:
        server = JoinServer(b"welcome ")
        async with relayed(server) as port:
            reader, writer = await connect(port)
            writer.write(b"let me in")
            writer.write_eof()
            assert await everything(reader) == b"welcome let me in"

    live(scenario())


def test_a_stranger_cannot_send_much_through_the_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "MAX_BYTES_UP", 1000)

    async def scenario() -> None:
        server = JoinServer()
        async with relayed(server) as port:
            assert len(await exchange(port, b"x" * 5000)) <= 1000
            assert server.got <= 1000

    live(scenario())


def test_what_comes_back_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "MAX_BYTES_DOWN", 20_000)

    async def scenario() -> None:
        async with relayed(JoinServer(b"x" * 100_000)) as port:
            assert len(await exchange(port, b"")) <= 20_000

    live(scenario())


def test_a_port_has_so_many_connections_and_no_more() -> None:
    async def scenario() -> None:
        async with relayed(JoinServer()) as port:
            held = [await connect(port) for _ in range(relay.MAX_CONNECTIONS_PER_PORT)]
            assert all([await echoes(streams) for streams in held])
            assert not await echoes(await connect(port))
            assert all([await echoes(streams) for streams in held])
            held[0][1].close()

            async def is_free() -> bool:
                return await echoes(await connect(port))

            await eventually(is_free)
            for _, writer in held:
                writer.close()

    live(scenario())


def test_a_port_has_so_many_new_connections_per_second_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "BURST", 3.0)
    monkeypatch.setattr(relay, "NEW_PER_S", 0.001)

    async def scenario() -> None:
        async with relayed(JoinServer()) as port:
            answers = []
            for _ in range(5):
                streams = await connect(port)
                answers.append(await echoes(streams))
                streams[1].close()
            assert answers == [True, True, True, False, False]

    live(scenario())


@pytest.mark.parametrize("trouble", ["no port of the mesh", "no join API", "silence"])
def test_a_relay_that_cannot_help_closes_the_connection(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with relayed(JoinServer(), is_port=trouble != "no port of the mesh") as port:
            if trouble == "no join API":
                monkeypatch.setattr(relay, "JOIN_PORT", 1)
            if trouble == "silence":
                monkeypatch.setattr(relay, "TIMEOUT_S", 0.05)
            reader, writer = await connect(port)
            assert await everything(reader) == b""
            writer.close()

    live(scenario())
