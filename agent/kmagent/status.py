"""The status API on [::1]:9440: /status (JSON), /metrics (Prometheus), /healthz."""

import asyncio
import contextlib
import json
import time

from kmagent.state import State, memory_mib

ADDRESS = ("::1", 9440)
TIMEOUT_S = 5
REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed"}


async def serve(state: State) -> asyncio.Server:
    """Start the server."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT_S)
            writer.write(respond(state, request))
            await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, *ADDRESS, reuse_address=True)


def respond(state: State, request: bytes) -> bytes:
    """Answer one request."""
    method, path, *_ = [*request.split(b"\r\n")[0].decode("latin-1").split(" "), "", ""]
    if method not in ("GET", "HEAD"):
        return _answer(405, "text/plain", "only GET\n")
    match path.partition("?")[0]:
        case "/status":
            return _answer(200, "application/json", json.dumps(state.document(), indent=1) + "\n")
        case "/metrics":
            return _answer(200, "text/plain; version=0.0.4", metrics(state))
        case "/healthz":
            return _answer(200, "text/plain", "ok\n")
    return _answer(404, "text/plain", "try /status, /metrics or /healthz\n")


def metrics(state: State) -> str:
    """Return the state in Prometheus' text format."""
    lines = [
        "# HELP kubermesh_condition Whether a condition of this node holds.",
        "# TYPE kubermesh_condition gauge",
        *(f'kubermesh_condition{{condition="{name}"}} {int(value)}' for name, value in state.conditions.items()),
        "# HELP kubermesh_agent_memory_bytes Memory that the agent occupies.",
        "# TYPE kubermesh_agent_memory_bytes gauge",
        f"kubermesh_agent_memory_bytes {int(memory_mib() * 2**20)}",
        "# HELP kubermesh_agent_uptime_seconds Time since the agent started.",
        "# TYPE kubermesh_agent_uptime_seconds counter",
        f"kubermesh_agent_uptime_seconds {time.monotonic() - state.started:.1f}",
    ]
    if state.facts:
        lines += [
            "# HELP kubermesh_info This node.",
            "# TYPE kubermesh_info gauge",
            f'kubermesh_info{{cluster="{state.facts.cluster}",node="{state.facts.name}",version="{state.version}"}} 1',
        ]
    return "".join(f"{line}\n" for line in lines)


def _answer(status: int, content_type: str, body: str) -> bytes:
    data = body.encode()
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data
