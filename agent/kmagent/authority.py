"""Signing and sealing on control-plane nodes, in a child: the library for it weighs more than the agent itself.

The child is started when there is something to sign and ends after a while of nothing. One JSON object per line.
"""

import asyncio
import base64
import contextlib
import json
import logging
import sys
from typing import Any

from kmagent import registry as registries
from kmagent.programs import start_async
from kmagent.registry import Registry

log = logging.getLogger(__name__)

IDLE_S = 20.0
ANSWER_S = 60.0


class RefusedError(Exception):
    """What was to be signed is not acceptable; the text says why."""


class Authority:
    """The child, as the daemon sees it. Every call raises RefusedError, or OSError when the child does not answer."""

    def __init__(self, scale: float = 1.0) -> None:
        self._scale = scale
        self._child: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None

    async def inspect(self, csr: str) -> str:
        """Check a certificate request of a machine; returns the fingerprint of its key."""
        return str((await self._ask({"do": "inspect", "csr": csr}))["fingerprint"])

    async def identify(self, csr: str, name: str) -> tuple[str, str]:
        """Issue an identity certificate: PEM, and its SHA-256."""
        answer = await self._ask({"do": "identify", "csr": csr, "name": name})
        return str(answer["certificate"]), str(answer["digest"])

    async def certify_kubelet(self, csr: str, name: str) -> str:
        """Issue a kubelet's client certificate for a node."""
        return str((await self._ask({"do": "kubelet", "csr": csr, "name": name}))["certificate"])

    async def check_serving(self, csr: str, name: str, addresses: list[str]) -> None:
        """Check a kubelet's request for a serving certificate against what the registry says of its node."""
        await self._ask({"do": "serving", "csr": csr, "name": name, "addresses": addresses})

    async def sign(self, registry: Registry) -> str:
        """Sign a registry; returns it as it is kept."""
        text = registries.to_text(registry)
        return registries.pack(text, await self.sign_text(text))

    async def sign_text(self, text: str) -> str:
        """Sign a text with the node authority's key; base64."""
        return str((await self._ask({"do": "sign", "text": text}))["signature"])

    async def seal(self, data: bytes, certificate: str) -> str:
        """Encrypt for the holder of a certificate; base64."""
        request = {"do": "seal", "data": base64.b64encode(data).decode(), "certificate": certificate}
        return str((await self._ask(request))["sealed"])

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        async with self._lock:
            try:
                answer = await asyncio.wait_for(self._exchange(request), ANSWER_S * self._scale)
            except (OSError, TimeoutError, ValueError) as error:
                self._end()
                raise OSError(f"the signing process does not answer: {error}") from error
            self._rest()
        if "refused" in answer:
            raise RefusedError(str(answer["refused"]))
        return answer

    async def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._child is None or self._child.returncode is not None:
            self._child = await start_async([sys.executable, "-I", "-m", "kmagent", "sign"])
        assert self._child.stdin and self._child.stdout  # noqa: S101 - pipes
        self._child.stdin.write(json.dumps(request).encode() + b"\n")
        await self._child.stdin.drain()
        answer: dict[str, Any] = json.loads(await self._child.stdout.readline())
        return answer

    def _rest(self) -> None:
        if self._idle:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._end)

    def _end(self) -> None:
        if self._child is not None and self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()
        self._child = None
