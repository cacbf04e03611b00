"""News from etcd: who is woken by what."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from agent_fakes import Told
from agent_sockets import HOST, everything, listening, live, until

from kmagent.candidates import Report, to_text
from kmagent.etcd import Etcd
from kmagent.http import Client
from kmagent.ledger import REPORTS
from kmagent.membership import OPERATION
from kmagent.state import State
from kmagent.watch import PREFIXES, Watch

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Gateway:
    """etcd's JSON gateway as far as it lets others watch: one object a line, each in a chunk."""

    asked: list[bytes] = field(default_factory=list)
    streams: list[asyncio.StreamWriter] = field(default_factory=list)
    ended: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        self.asked.append(await reader.readexactly(length))
        writer.write(HEAD)
        self.streams.append(writer)
        await everything(reader)
        self.ended += 1

    def say(self, result: dict[str, Any]) -> None:
        line = json.dumps({"result": result}).encode() + b"\n"
        self.streams[-1].write(b"%x\r\n%s\r\n" % (len(line), line))

    def begin(self) -> None:
        for number in range(len(PREFIXES)):
            self.say({"watch_id": str(number), "created": True})

    def change(self, key: str, text: str = "") -> None:
        kv = {"key": encode(key), **({"value": encode(text)} if text else {})}
        self.say({"events": [{"kv": kv} if text else {"type": "DELETE", "kv": kv}]})


class Listener(Told):
    """Counts how often it was woken."""

    woken = 0

    def wake(self) -> None:
        self.woken += 1
        self.tell()


def encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@contextlib.asynccontextmanager
async def watching() -> AsyncIterator[tuple[Gateway, Listener, Watch]]:
    """A watch that runs, and what it watches; it ends at once however it is."""
    gateway, listener, state = Gateway(), Listener(), State()
    state.conditions["etcd"] = True
    async with listening(await asyncio.start_server(gateway.serve, HOST, 0)) as port:
        client = Client(HOST, port, timeout_s=30)
        watch = Watch(Etcd(client, client), listener)  # type: ignore[arg-type]
        task = asyncio.create_task(watch.run(state, 0.01))
        await until(lambda: len(gateway.streams) == 1)
        try:
            yield gateway, listener, watch
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def test_whoever_waits_is_woken_by_a_change() -> None:
    async def scenario() -> None:
        async with watching() as (gateway, listener, watch):
            decoder, asked, found = json.JSONDecoder(), gateway.asked[0].decode(), []
            while asked:
                one, end = decoder.raw_decode(asked)
                found.append([base64.b64decode(one["create_request"][name]).decode() for name in ("key", "range_end")])
                asked = asked[end:]
            assert [first for first, _ in found] == [*PREFIXES]
            assert all(first < f"{first}x" < end < f"{first[:-1]}~" for first, end in found)
            gateway.say({"watch_id": "0", "created": True})
            await asyncio.sleep(0.05)
            # Some of it is watched, not all: nobody may rely on it.
            assert not watch.works
            for number in range(1, len(PREFIXES)):
                gateway.say({"watch_id": str(number), "created": True})
            await until(lambda: watch.works and listener.woken == 1)
            news = watch.news
            gateway.change("/registry/minions/shop-1", "k8s\0\n\xff")
            await news.wait()
            gateway.change("/kubermesh/settings")
            await until(lambda: listener.woken == 3)

    live(scenario())


def test_nobody_is_woken_because_a_node_says_that_all_is_as_it_was() -> None:
    async def scenario() -> None:
        async with watching() as (gateway, listener, _):
            gateway.begin()
            for number in range(5):
                gateway.change(f"{REPORTS}2", to_text(Report(frozenset({1, 3}), 60.0 * number, 10**9 - number)))
            gateway.change(f"{REPORTS}2", to_text(Report(frozenset({1}), 400.0)))
            for number in range(5):
                offers = {"eth1": "fetching 40 %"}
                gateway.change(f"{REPORTS}2", to_text(Report(frozenset({1}), 460.0 + number, offers=offers)))
            gateway.change(f"{REPORTS}2", "nonsense")
            gateway.change(f"{REPORTS}2")
            gateway.change(f"{REPORTS}2", to_text(Report()))
            # The leading node's notes of what it does itself.
            gateway.change(OPERATION, "promote")
            gateway.change(OPERATION)
            # Once for the beginning, once for the first report, and for the five others that say something.
            await until(lambda: listener.woken == 7)
            await asyncio.sleep(0.05)
            assert listener.woken == 7

    live(scenario())


def test_a_report_is_news_after_others_were_missed() -> None:
    async def scenario() -> None:
        async with watching() as (gateway, listener, _):
            for number in (1, 2):
                await until(lambda: len(gateway.streams) == number)  # noqa: B023 - at once
                gateway.begin()
                gateway.change(f"{REPORTS}2", to_text(Report(frozenset({1}))))
                await until(lambda: listener.woken == 2 * number)  # noqa: B023 - at once
                gateway.streams[-1].close()

    live(scenario())


@pytest.mark.parametrize(
    "end",
    [
        lambda gateway: gateway.streams[-1].close(),
        lambda gateway: gateway.say({"watch_id": "1", "canceled": True, "cancel_reason": "etcdserver: no leader"}),
        lambda gateway: gateway.streams[-1].write(b"5\r\nnone\n\r\n"),
        lambda gateway: gateway.streams[-1].write(b"5\r\nnull\n\r\n"),
        lambda gateway: gateway.say({"events": [{"kv": {"key": "a"}}]}),
    ],
    ids=["closed", "cancelled", "nonsense", "nothing", "half a key"],
)
def test_a_watch_that_ends_is_begun_anew_and_what_was_missed_is_looked_at(end: Callable[[Gateway], None]) -> None:
    async def scenario() -> None:
        async with watching() as (gateway, listener, watch):
            gateway.begin()
            await until(lambda: listener.woken == 1)
            end(gateway)
            await until(lambda: not watch.works)
            await until(lambda: len(gateway.streams) == 2 and gateway.ended == 1)
            gateway.begin()
            await until(lambda: watch.works and listener.woken == 2)

    live(scenario())
