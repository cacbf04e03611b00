"""A small HTTP/1.1 server (RFC 9112): one request per connection, everything bounded."""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import re
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

MAX_HEAD = 8 * 1024
CHUNK = 256 * 1024
LENGTH = re.compile(r"[0-9]{1,12}\Z")
REASONS = {
    200: "OK", 202: "Accepted", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    409: "Conflict", 411: "Length Required", 413: "Content Too Large", 429: "Too Many Requests",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What was asked; `peer` is the address it came from, `certificate` the SHA-256 (hex) of the client's, if it has one.

    `pem` is that certificate itself, and `organizations` are those that it names. The body of a PUT is not read yet: `upload` is.
    """

    method: str
    path: str
    body: bytes
    peer: str
    certificate: str = ""
    organizations: frozenset[str] = frozenset()
    pem: str = ""
    upload: "Upload | None" = None


@dataclass(frozen=True)
class Upload:
    """A body that is still to come, of `length` bytes."""

    length: int
    reader: asyncio.StreamReader
    timeout_s: float

    async def save(self, path: Path) -> None:
        """Write it to a new file, which is on the disk then; raises OSError, IncompleteReadError or TimeoutError."""
        left = self.length
        with path.open("xb") as file:
            while left:
                data = await asyncio.wait_for(self.reader.read(min(left, CHUNK)), self.timeout_s)
                if not data:
                    raise asyncio.IncompleteReadError(b"", left)
                left -= len(data)
                await asyncio.to_thread(file.write, data)
            await asyncio.to_thread(_sync, file)


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


async def serve(listening: asyncio.Server) -> None:
    """Serve until cancelled. Connections that are open then are not waited for, as asyncio's own `serve_forever` does."""
    try:
        await asyncio.Event().wait()
    finally:
        listening.close()


class Server:
    """Serves `handler`; more than `max_connections` at a time are closed unread, a body over `max_body` bytes is refused.

    So are connections from addresses that are not `welcome`.

    The body of a PUT may have `max_upload` bytes, and is left to the handler.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        max_body: int = 0,
        max_upload: int = 0,
        max_connections: int = 32,
        timeout_s: float = 5.0,
        welcome: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._handler = handler
        self._max_body, self._max_upload = max_body, max_upload
        self._timeout_s = timeout_s
        self._free = max_connections
        self._welcome = welcome

    async def start(self, host: str | None, port: int, context: ssl.SSLContext | None = None) -> asyncio.Server:
        """Start listening, at all addresses of both families without `host`; with `context` by TLS."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._accept(reader, writer, context)

        return await asyncio.start_server(accept, host, port, reuse_address=True, limit=MAX_HEAD)

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext | None
    ) -> None:
        if self._free <= 0 or not self._welcome(str(writer.get_extra_info("peername")[0])):
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
            writer.close()
            try:
                # TLS waits half a minute for the other end to say goodbye.
                with contextlib.suppress(OSError, TimeoutError):
                    await asyncio.wait_for(writer.wait_closed(), self._timeout_s)
            finally:
                writer.transport.abort()
                self._free += 1

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Answer:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), self._timeout_s)
        except asyncio.LimitOverrunError:
            return answer_text(413, "header too large\n")
        lines = head.decode("latin-1").split("\r\n")
        method, path, *_ = [*lines[0].split(" "), "", ""]
        fields = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines[1:])}
        body, upload = b"", None
        if method in ("POST", "PUT"):
            length = fields.get("content-length", "")
            if not LENGTH.match(length):
                return answer_text(411, "a body needs its length\n")
            most = self._max_upload if method == "PUT" else self._max_body
            if int(length) > most:
                return answer_text(413, f"a body may have {most} bytes\n")
            if method == "PUT":
                upload = Upload(int(length), reader, self._timeout_s)
            else:
                body = await asyncio.wait_for(reader.readexactly(int(length)), self._timeout_s)
        peer = str(writer.get_extra_info("peername")[0])
        certificate, organizations, pem = _client(writer)
        request = Request(method, path.partition("?")[0], body, peer, certificate, organizations, pem, upload)
        try:
            return await self._handler(request)
        except Exception:
            # Whatever a stranger sends ends its own request, and nothing else.
            log.exception("%s %s", method, request.path)
            return answer_text(500, "this request cannot be answered\n")


def _client(writer: asyncio.StreamWriter) -> tuple[str, frozenset[str], str]:
    """The client's certificate, which TLS has checked: SHA-256 (hex), the organizations in its subject, and PEM."""
    tls = writer.get_extra_info("ssl_object")
    data = tls.getpeercert(binary_form=True) if tls else None
    if not data:
        return "", frozenset(), ""
    parts = [part for group in tls.getpeercert()["subject"] for part in group]
    organizations = frozenset(text for key, text in parts if key == "organizationName")
    return hashlib.sha256(data).hexdigest(), organizations, ssl.DER_cert_to_PEM_cert(data)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
