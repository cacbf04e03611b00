"""A small HTTP/1.1 server (RFC 9112): one request per connection, everything bounded."""

import asyncio
import contextlib
import hashlib
import json
import logging
import re
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

MAX_HEAD = 8 * 1024
LENGTH = re.compile(r"[0-9]{1,9}\Z")
REASONS = {
    200: "OK", 202: "Accepted", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    409: "Conflict", 411: "Length Required", 413: "Content Too Large", 429: "Too Many Requests",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What was asked; `peer` is the address it came from, `certificate` the SHA-256 (hex) of the client's, if it has one."""

    method: str
    path: str
    body: bytes
    peer: str
    certificate: str = ""


@dataclass(frozen=True)
class Answer:
    """A status, and a body."""

    status: int
    body: bytes
    content_type: str = "application/json"


Handler = Callable[[Request], Awaitable[Answer]]


def answer_json(status: int, data: object) -> Answer:
    """Answer with JSON."""
    return Answer(status, json.dumps(data).encode() + b"\n")


def answer_text(status: int, text: str) -> Answer:
    """Answer with text."""
    return Answer(status, text.encode(), "text/plain")


def encode(answer: Answer) -> bytes:
    """Return the bytes of an answer."""
    head = (
        f"HTTP/1.1 {answer.status} {REASONS[answer.status]}\r\nContent-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + answer.body


class Server:
    """Serves `handler`; more than `max_connections` at a time are closed unread, a body over `max_body` bytes is refused."""

    def __init__(
        self, handler: Handler, *, max_body: int = 0, max_connections: int = 32, timeout_s: float = 5.0
    ) -> None:
        self._handler = handler
        self._max_body = max_body
        self._timeout_s = timeout_s
        self._free = max_connections

    async def start(self, host: str, port: int, context: ssl.SSLContext | None = None) -> asyncio.Server:
        """Start listening; with `context` by TLS."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._accept(reader, writer, context)

        return await asyncio.start_server(accept, host, port, reuse_address=True, limit=MAX_HEAD)

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext | None
    ) -> None:
        if self._free <= 0:
            writer.transport.abort()
            return
        self._free -= 1
        try:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                if context:
                    # Here, and not by the listening socket: a handshake is a connection that counts.
                    await writer.start_tls(context, ssl_handshake_timeout=self._timeout_s)
                writer.write(encode(await self._answer(reader, writer)))
                await asyncio.wait_for(writer.drain(), self._timeout_s)
        finally:
            self._free += 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Answer:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), self._timeout_s)
        except asyncio.LimitOverrunError:
            return answer_text(413, "header too large\n")
        lines = head.decode("latin-1").split("\r\n")
        method, path, *_ = [*lines[0].split(" "), "", ""]
        fields = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines[1:])}
        body = b""
        if method in ("POST", "PUT"):
            length = fields.get("content-length", "")
            if not LENGTH.match(length):
                return answer_text(411, "a body needs its length\n")
            if int(length) > self._max_body:
                return answer_text(413, f"a body may have {self._max_body} bytes\n")
            body = await asyncio.wait_for(reader.readexactly(int(length)), self._timeout_s)
        peer = str(writer.get_extra_info("peername")[0])
        request = Request(method, path.partition("?")[0], body, peer, _certificate(writer))
        try:
            return await self._handler(request)
        except Exception:
            # Whatever a stranger sends ends its own request, and nothing else.
            log.exception("%s %s", method, request.path)
            return answer_text(500, "this request cannot be answered\n")


def _certificate(writer: asyncio.StreamWriter) -> str:
    tls = writer.get_extra_info("ssl_object")
    data = tls.getpeercert(binary_form=True) if tls else None
    return hashlib.sha256(data).hexdigest() if data else ""
