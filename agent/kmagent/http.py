"""The one HTTP client: a kept connection, used from a thread so that the event loop never waits."""

import asyncio
import contextlib
import hashlib
import http.client
import socket
import ssl
import threading
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
    with every request. Without `tls` the connection is plain.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: Tls | None = None,
        timeout_s: float = 10,
    ) -> None:
        self._address = (host, port)
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
        socket_ = self._connection.sock if self._connection else None
        if socket_:
            with contextlib.suppress(OSError):
                # Not TLS's own: another thread is reading.
                socket.socket.shutdown(socket_, socket.SHUT_RDWR)

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
        connection = self._connection or self._connect()
        self._connection = connection
        if connection.sock is None:
            connection.connect()
        if given_up.is_set():
            raise OSError("given up")
        headers = {"Content-Type": content_type} if body is not None else {}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        response = Response(answer.status, answer.read())
        if answer.will_close:
            self._close()
        return response

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._address
        self._made_at = self._certificate_time()
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
