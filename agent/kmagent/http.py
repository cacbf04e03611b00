"""The one HTTP client: a kept connection, used from a thread so that the event loop never waits."""

import asyncio
import contextlib
import hashlib
import http.client
import socket
import ssl
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Response:
    """An answer: its status and body."""

    status: int
    body: bytes


@dataclass(frozen=True)
class Tls:
    """Whom to trust, and who to be: `certificate` has its key beside it, with the suffix `.key`.

    `server_name` is what the server's certificate must be for, if that is not the address; `digest` is the SHA-256 (hex) of
    the very certificate that it must show, whatever that is for.
    """

    authority: Path
    certificate: Path | None = None
    server_name: str = ""
    digest: str = ""


class Client:
    """One server, reached over one connection that is kept.

    The files of `tls` are read at every connect, and a certificate that was renewed makes a new one: a server may check it
    with every request. Without `tls` the connection is plain. An answer of `most` bytes or more is none.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: Tls | None = None,
        timeout_s: float = 10,
        most: int | None = None,
    ) -> None:
        self._address = (host, port)
        self._most = most
        self._tls = tls
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None
        self._made_at = 0
        # Who waits for the answer to somebody else's question waits without a thread; the lock is between threads.
        self._turn = asyncio.Lock()
        self._lock = threading.Lock()

    async def request(
        self, method: str, path: str, body: bytes | None = None, content_type: str = "application/json"
    ) -> Response:
        """Ask the server; raises OSError when it does not answer. Cancelled, it hangs up: no thread goes on waiting."""
        given_up = threading.Event()
        async with self._turn:
            try:
                return await asyncio.to_thread(self._request, method, path, body, content_type, given_up)
            except asyncio.CancelledError:
                given_up.set()
                self._hang_up()
                raise

    async def lines(self, path: str, body: bytes) -> AsyncGenerator[bytes]:
        """POST over a connection of its own, and give the answer line by line as it comes, however long that takes.

        Raises OSError when it ends, or never begins.
        """
        connection = await asyncio.to_thread(self._connect)
        try:
            answer = await asyncio.to_thread(_begin, connection, path, body)
            while line := await asyncio.to_thread(answer.readline):
                yield line
            raise OSError(f"{path}: the answer has ended")
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            # A thread may still be reading.
            _shut_down(connection)
            connection.close()

    def close(self) -> None:
        """Close the connection; the next request makes another."""
        with self._lock:
            self._close()

    async def is_ok(self, path: str) -> bool:
        """Tell whether a GET is answered with 200."""
        try:
            return (await self.request("GET", path)).status == 200
        except OSError:
            return False

    def _hang_up(self) -> None:
        if connection := self._connection:
            _shut_down(connection)

    def _request(
        self, method: str, path: str, body: bytes | None, content_type: str, given_up: threading.Event
    ) -> Response:
        with self._lock:
            if self._connection is not None and self._made_at != self._certificate_time():
                self._close()
            fresh = self._connection is None
            try:
                return self._ask(method, path, body, content_type, given_up)
            except (OSError, http.client.HTTPException) as error:
                self._close()
                if fresh or given_up.is_set():
                    raise error if isinstance(error, OSError) else OSError(str(error)) from error
            # The server may close a kept connection at any time: only a new one's failure counts.
            try:
                return self._ask(method, path, body, content_type, given_up)
            except http.client.HTTPException as error:
                self._close()
                raise OSError(str(error)) from error
            except OSError:
                self._close()
                raise

    def _ask(
        self, method: str, path: str, body: bytes | None, content_type: str, given_up: threading.Event
    ) -> Response:
        if self._connection is None:
            self._made_at, self._connection = self._certificate_time(), self._connect()
        connection = self._connection
        if connection.sock is None:
            connection.connect()
        if given_up.is_set():
            raise OSError("given up")
        headers = {"Content-Type": content_type} if body is not None else {}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read(self._most)
        if len(content) == self._most:
            raise OSError(f"{path}: the answer has {self._most} bytes or more")
        response = Response(answer.status, content)
        if answer.will_close:
            self._close()
        return response

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._address
        if self._tls is None:
            return http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        return _Connection(host, port, self._tls, self._timeout_s)

    def _certificate_time(self) -> int:
        if self._tls is None or self._tls.certificate is None:
            return 0
        try:
            return self._tls.certificate.stat().st_mtime_ns
        except OSError:
            return 0

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


class _Connection(http.client.HTTPSConnection):
    """An HTTPS connection whose server may be known by another name than its address."""

    def __init__(self, host: str, port: int, tls: Tls, timeout_s: float) -> None:
        context = ssl.create_default_context(cafile=str(tls.authority))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.certificate.with_suffix(".key"))
        super().__init__(host, port, timeout=timeout_s, context=context)
        context.check_hostname = not tls.digest
        self._tls_context = context
        self._server_name = tls.server_name or host
        self._digest = tls.digest

    def connect(self) -> None:
        """Connect; a link-local address may name its port after a `%`."""
        plain = socket.create_connection((self.host, self.port), self.timeout)
        self.sock = self._tls_context.wrap_socket(plain, server_hostname=self._server_name)
        shown = self.sock.getpeercert(binary_form=True) or b""
        if self._digest and hashlib.sha256(shown).hexdigest() != self._digest:
            self.close()
            raise ssl.SSLCertVerificationError("this is another node")


def _begin(connection: http.client.HTTPConnection, path: str, body: bytes) -> http.client.HTTPResponse:
    """Ask for an answer that has no end."""
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise OSError(f"{path}: {answer.status} {answer.read(200)!r}")
    if connection.sock:
        connection.sock.settimeout(None)
    return answer


def _shut_down(connection: http.client.HTTPConnection) -> None:
    """Have whoever reads from a connection read its end."""
    if sock := connection.sock:
        with contextlib.suppress(OSError):
            # Not TLS's own: another thread is reading.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def upload(host: str, port: int, tls: Tls, path: str, file: Path, timeout_s: float) -> Response:
    """Send a file (PUT) of any size, without a client that is kept; raises OSError when it was not taken in."""
    connection = _Connection(host, port, tls, timeout_s)
    try:
        with file.open("rb") as body:
            connection.request("PUT", path, body, {"Content-Length": str(file.stat().st_size)})
            answer = connection.getresponse()
            return Response(answer.status, answer.read())
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()
