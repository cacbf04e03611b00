"""The agent's HTTP server and client, over real sockets on the loopback."""

import asyncio
import contextlib
import datetime
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agent_sockets import HOST, eventually, everything, exchange, listening, live, until
from cryptography import x509

from kmagent import clock
from kmagent.http import Client, Tls
from kmagent.http_server import Answer, Handler, Request, Server, answer_json, serve
from kmplan import pki

Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(handler: Handler, context: ssl.SSLContext | None = None, **limits: Any) -> AsyncIterator[int]:
    """Serve; yields the port."""
    server = await Server(handler, **limits).start(HOST, 0, context)
    async with listening(server) as port:
        yield port


async def repeat(request: Request) -> Answer:
    """Answer with what was asked."""
    assert (pki.fingerprint(request.pem) if request.pem else "") == request.certificate
    return answer_json(200, [request.method, request.path, request.body.decode(), request.peer, request.certificate])


LIMIT = 16
LINES = b" /v1/join?x=1 HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (b"GET" + LINES + b"\r\n", 200, ["GET", "/v1/join", "", HOST, ""]),
        (b"POST" + LINES + b"content-length:  2\r\n\r\nab", 200, ["POST", "/v1/join", "ab", HOST, ""]),
        (b"POST" + LINES + b"Content-Length: 0\r\n\r\n", 200, ["POST", "/v1/join", "", HOST, ""]),
        (b"POST" + LINES + b"Content-Length: 16\r\n\r\n" + b"b" * 16, 200, ["POST", "/v1/join", "b" * 16, HOST, ""]),
        (b"PUT" + LINES + b"Content-Length: 2\r\n\r\nab", 413, None),
        (b"POST" + LINES + b"\r\n", 411, None),
        (b"PUT" + LINES + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", 411, None),
        (b"POST" + LINES + b"Content-Length: -1\r\n\r\n", 411, None),
        (b"POST" + LINES + b"Content-Length: many\r\n\r\n", 411, None),
        (b"POST" + LINES + b"Content-Length: \xb2\r\n\r\nab", 411, None),
        (b"POST" + LINES + b"Content-Length: 17\r\n\r\n", 413, None),
        (b"POST" + LINES + b"Content-Length: 17\r\n\r\n" + b"b" * 17, 413, None),
        (b"POST" + LINES + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 411, None),
        (b"GET" + LINES + b"X: " + b"x" * 9000 + b"\r\n\r\n", 413, None),
        (b"GET" + LINES + b"X: " + b"x" * 9000, 413, None),
    ],
    ids=[
        "get", "post", "empty body", "largest body", "no uploads", "no length", "chunked", "negative length", "length in words",
        "length is no digit", "too large announced", "too large sent", "absurd length", "large header", "endless header",
    ],
)  # fmt: skip
def test_a_request_is_answered_or_refused_with_its_reason(sent: bytes, status: int, said: Any) -> None:
    async def scenario() -> None:
        async with served(repeat, max_body=LIMIT) as port:
            head, _, body = (await exchange(port, sent)).partition(b"\r\n\r\n")
            assert head.startswith(f"HTTP/1.1 {status} ".encode())
            assert f"Content-Length: {len(body)}".encode() in head
            assert said is None or json.loads(body) == said

    live(scenario())


@pytest.mark.parametrize("size", [0, 1, 3 * 2**20 + 7])
def test_a_large_body_goes_to_a_file(tmp_path: Path, size: int) -> None:
    async def keep(request: Request) -> Answer:
        assert request.upload
        await request.upload.save(tmp_path / "kept")
        return answer_json(200, request.upload.length)

    async def scenario() -> None:
        async with served(keep, max_upload=4 * 2**20) as port:
            sent = b"PUT" + LINES + f"Content-Length: {size}\r\n\r\n".encode() + b"x" * size
            head, _, body = (await exchange(port, sent)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ") and json.loads(body) == size

    live(scenario())
    assert (tmp_path / "kept").read_bytes() == b"x" * size


def test_a_request_without_sense_does_no_harm() -> None:
    async def scenario() -> None:
        async with served(repeat) as port:
            await exchange(port, b"\r\n\r\n")
            await exchange(port, b"\xff\x00" * 100 + b"\r\n\r\n")
            assert (await exchange(port, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")

    live(scenario())


def test_a_handler_that_breaks_is_answered_with_500() -> None:
    async def broken(request: Request) -> Answer:
        raise KeyError(request.path)

    async def scenario() -> None:
        async with served(broken) as port:
            assert (await exchange(port, b"GET /x HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 500 ")

    live(scenario())


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf"])
def test_a_client_that_says_nothing_more_is_cut_off(sent: bytes) -> None:
    async def scenario() -> None:
        async with served(repeat, max_body=LIMIT, timeout_s=0.05) as port:
            assert await exchange(port, sent) == b""

    live(scenario())


def test_who_is_not_welcome_is_not_heard() -> None:
    async def scenario() -> None:
        async with served(repeat, welcome=lambda address: address != HOST) as port:
            assert await exchange(port, b"GET / HTTP/1.1\r\n\r\n") == b""

    live(scenario())


def test_more_connections_than_allowed_are_closed_unread() -> None:
    async def scenario() -> None:
        async with served(repeat, max_connections=2) as port:
            idle = [await asyncio.open_connection(HOST, port) for _ in range(2)]
            request = b"GET / HTTP/1.1\r\n\r\n"
            assert await exchange(port, request) == b""
            idle[0][1].write(request)
            assert (await everything(idle[0][0])).startswith(b"HTTP/1.1 200 ")

            async def is_served() -> bool:
                return (await exchange(port, request)).startswith(b"HTTP/1.1 200 ")

            await eventually(is_served)
            idle[1][1].close()

    live(scenario())


@dataclass(frozen=True)
class Papers:
    """Files of a node authority, a server that is called `join.kubermesh`, and clients."""

    folder: Path

    def make(self, name: str, authority: pki.Pair, usage: pki.Usage, *names: str) -> pki.Pair:
        pair = pki.issue(authority, pki.Subject(name, usages=(usage,), names=names), 90)
        self.put(name, pair)
        return pair

    def put(self, name: str, pair: pki.Pair) -> None:
        (self.folder / f"{name}.crt").write_text(pair.certificate)
        (self.folder / f"{name}.key").write_text(pair.key)

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server.crt", self.folder / "server.key")
        context.load_verify_locations(self.folder / "ca.crt")
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def tls(self, client: str = "", name: str = "join.kubermesh", authority: str = "ca") -> Tls:
        return Tls(self.folder / f"{authority}.crt", self.folder / f"{client}.crt" if client else None, name)


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    papers, authority, other = Papers(tmp_path), pki.create_authority("ca"), pki.create_authority("ca")
    papers.put("ca", authority)
    papers.put("other", other)
    papers.make("server", authority, "server", "join.kubermesh")
    papers.make("node", authority, "client")
    papers.make("next", authority, "client")
    papers.make("forged", other, "client")
    return papers


def digest(papers: Papers, name: str) -> str:
    return pki.fingerprint((papers.folder / f"{name}.crt").read_text())


def test_the_server_knows_a_client_by_its_certificate_and_serves_who_has_none(papers: Papers) -> None:
    async def scenario() -> None:
        async with served(repeat, papers.context()) as port:
            for client, known_as in (("node", digest(papers, "node")), ("", "")):
                answer = await Client(HOST, port, tls=papers.tls(client)).request("GET", "/")
                assert json.loads(answer.body)[4] == known_as

    live(scenario())


@pytest.mark.parametrize(
    ("client", "name", "authority"),
    [
        ("forged", "join.kubermesh", "ca"),
        ("", "", "ca"),
        ("", "other.kubermesh", "ca"),
        ("", "join.kubermesh", "other"),
    ],
    ids=["forged client", "the address is not its name", "another name", "another authority"],
)
def test_nothing_is_said_to_who_is_not_what_it_should_be(
    papers: Papers, client: str, name: str, authority: str
) -> None:
    asked: list[Request] = []

    async def note(request: Request) -> Answer:
        asked.append(request)
        return await repeat(request)

    async def scenario() -> None:
        async with served(note, papers.context()) as port:
            with pytest.raises(OSError):
                await Client(HOST, port, tls=papers.tls(client, name, authority)).request("POST", "/", b"secret")

    live(scenario())
    assert asked == []


@pytest.mark.parametrize(("authority", "is_set"), [("ca", True), ("other", False)])
def test_a_clock_that_is_behind_is_set_by_who_holds_the_authority_and_by_nobody_else(
    papers: Papers, monkeypatch: pytest.MonkeyPatch, authority: str, is_set: bool
) -> None:
    begins = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(days=3)
    pair = pki.Pair((papers.folder / "ca.crt").read_text(), (papers.folder / "ca.key").read_text())
    subject = pki.Subject("server", usages=("server",), names=("join.kubermesh",))
    papers.put("server", pki.issue(pair, subject, 90, begins))
    moments: list[float] = []
    monkeypatch.setattr(clock, "in_container", lambda: False)
    monkeypatch.setattr(time, "clock_settime", lambda _, moment: moments.append(moment))

    async def scenario() -> None:
        async with served(repeat, papers.context()) as port:
            with pytest.raises(OSError) as refused:
                await Client(HOST, port, tls=papers.tls()).request("GET", "/")
            assert clock.is_behind(refused.value)
            with contextlib.suppress(OSError):
                await asyncio.to_thread(clock.catch_up, HOST, port, papers.tls(authority=authority), 5.0)

    live(scenario())
    certificate = x509.load_pem_x509_certificate((papers.folder / "server.crt").read_bytes())
    assert moments == [certificate.not_valid_before_utc.timestamp()] * is_set


def test_a_clock_is_never_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "in_container", lambda: False)
    monkeypatch.setattr(time, "clock_settime", lambda *_: pytest.fail("set"))
    clock.set_forward(time.time() - 5, "what is past")


def test_handshakes_that_do_not_end_count_as_connections_and_do_end(papers: Papers) -> None:
    async def scenario() -> None:
        async with served(repeat, papers.context(), max_connections=2, timeout_s=1.0) as port:
            idle = [await asyncio.open_connection(HOST, port) for _ in range(2)]
            assert await exchange(port, b"") == b""
            client = Client(HOST, port, tls=papers.tls("node"))
            with pytest.raises(OSError):
                await client.request("GET", "/")
            for reader, _ in idle:
                assert await everything(reader) == b""
            await eventually(lambda: client.is_ok("/"))

    live(scenario())


def test_a_renewed_certificate_is_used_at_the_next_connect(papers: Papers) -> None:
    async def scenario() -> None:
        async with served(repeat, papers.context()) as port:
            client = Client(HOST, port, tls=papers.tls("node"))
            assert (await client.request("GET", "/")).status == 200
            for kind in ("crt", "key"):
                (papers.folder / f"next.{kind}").replace(papers.folder / f"node.{kind}")
            answer = await client.request("GET", "/")
            assert json.loads(answer.body)[4] == digest(papers, "node")

    live(scenario())


class KeepAlive:
    """A server that keeps connections, for so many requests."""

    def __init__(self, requests: int, answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") -> None:
        self.requests, self.answer, self.connections = requests, answer, 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            for _ in range(self.requests):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(self.answer)
        except asyncio.IncompleteReadError:
            pass
        writer.close()


@pytest.mark.parametrize(("per_connection", "connections"), [(9, 1), (2, 3), (1, 6)])
def test_a_connection_is_kept_and_made_anew_when_the_server_closed_it(per_connection: int, connections: int) -> None:
    async def scenario() -> None:
        server = KeepAlive(per_connection)
        async with listening(await asyncio.start_server(server.serve, HOST, 0)) as port:
            client = Client(HOST, port)
            for _ in range(6):
                assert (await client.request("GET", "/")).body == b"ok"
            assert server.connections == connections
            await asyncio.to_thread(client._close)

    live(scenario())


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", None]
)
def test_a_server_that_does_not_answer_properly_is_one_that_cannot_be_asked(answer: bytes | None) -> None:
    """None: it says nothing at all and keeps the connection."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def scenario() -> None:
        serve = silent if answer is None else KeepAlive(1, answer).serve
        async with listening(await asyncio.start_server(serve, HOST, 0)) as port:
            client = Client(HOST, port, timeout_s=0.1)
            with pytest.raises(OSError):
                await client.request("GET", "/")
            assert not await client.is_ok("/")
        with pytest.raises(OSError):
            await client.request("GET", "/")

    live(scenario())


@asynccontextmanager
async def asking(serve: Conversation, papers: Papers | None, timeout_s: float) -> AsyncIterator[Client]:
    """A client of a server that converses as it is told; with papers by TLS."""
    context, tls = (papers.context(), papers.tls("node")) if papers else (None, None)
    async with listening(await asyncio.start_server(serve, HOST, 0, ssl=context)) as port:
        yield Client(HOST, port, tls=tls, timeout_s=timeout_s)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_request_that_is_given_up_is_hung_up_and_the_next_one_goes_on(papers: Papers, encrypted: bool) -> None:
    async def scenario() -> None:
        asked: asyncio.Queue[bytes] = asyncio.Queue()
        ended = asyncio.Event()

        async def silent_at_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asked.put(await reader.readuntil(b"\r\n\r\n"))
            if asked.qsize() > 1:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await everything(reader)
            ended.set()
            writer.close()

        async with asking(silent_at_first, papers if encrypted else None, 3600) as client:
            first = asyncio.create_task(client.request("GET", "/first"))
            await until(lambda: bool(asked.qsize()))
            first.cancel()
            # The server sees it at once, though the client would have waited for an hour: no thread does.
            await ended.wait()
            assert (await client.request("GET", "/second")).body == b"ok"
            assert [(await asked.get()).split()[1] for _ in range(2)] == [b"/first", b"/second"]
            await asyncio.to_thread(client.close)

    live(scenario())


@pytest.mark.parametrize("encrypted", [False, True])
def test_an_answer_without_an_end_is_read_line_by_line_and_can_be_given_up(papers: Papers, encrypted: bool) -> None:
    async def scenario() -> None:
        ended = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n7\r\n\ntwo\nth\r\n")
            await everything(reader)
            ended.set()
            writer.close()

        async with asking(serve, papers if encrypted else None, 30) as client:
            heard: asyncio.Queue[bytes] = asyncio.Queue()

            async def listen() -> None:
                async for line in client.lines("/", b"{}"):
                    heard.put_nowait(line)

            task = asyncio.create_task(listen())
            assert [await heard.get(), await heard.get()] == [b"one\n", b"two\n"]
            task.cancel()
            await ended.wait()
            assert heard.empty()

    live(scenario())


def test_an_answer_that_is_none_is_no_line() -> None:
    async def scenario() -> None:
        refusing = KeepAlive(1, b"HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nbusy")
        async with listening(await asyncio.start_server(refusing.serve, HOST, 0)) as port:
            with pytest.raises(OSError, match="503 b'busy'"):
                async for line in Client(HOST, port, timeout_s=30).lines("/", b"{}"):
                    raise AssertionError(line)

    live(scenario())


def test_who_waits_for_a_silent_server_takes_no_thread_from_others() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await everything(reader)
        writer.close()

    async def scenario() -> None:
        async with listening(await asyncio.start_server(silent, HOST, 0)) as port:
            client = Client(HOST, port, timeout_s=3600)
            waiting = [asyncio.create_task(client.request("GET", "/")) for _ in range(100)]
            await asyncio.sleep(0)
            assert await asyncio.to_thread(int) == 0
            for one in waiting:
                one.cancel()
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(one, asyncio.CancelledError) for one in outcomes)

    live(scenario())


def test_a_server_ends_without_waiting_for_who_is_connected() -> None:
    async def never(_: Request) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    async def scenario() -> None:
        listening_ = await Server(never).start(HOST, 0)
        serving = asyncio.create_task(serve(listening_))
        port = listening_.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"GET" + LINES + b"\r\n")
        await asyncio.sleep(0.05)
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        with pytest.raises(OSError):
            await asyncio.open_connection(HOST, port)
        writer.close()

    live(scenario())
