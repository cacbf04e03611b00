"""The status API on [::1]:9440: /status (JSON), /metrics (Prometheus), /healthz."""

import asyncio
import json
import time

from kmagent.http_server import Answer, Request, Server, answer_text
from kmagent.state import State, memory_mib

ADDRESS = ("::1", 9440)


async def serve(state: State) -> asyncio.Server:
    """Start the server."""

    async def handle(request: Request) -> Answer:
        return respond(state, request.method, request.path)

    return await Server(handle).start(*ADDRESS)


def respond(state: State, method: str, path: str) -> Answer:
    """Answer one request."""
    if method not in ("GET", "HEAD"):
        return answer_text(405, "only GET\n")
    match path:
        case "/status":
            return Answer(200, json.dumps(state.document(), indent=1).encode() + b"\n")
        case "/metrics":
            return Answer(200, metrics(state).encode(), "text/plain; version=0.0.4")
        case "/healthz":
            return answer_text(200, "ok\n")
    return answer_text(404, "try /status, /metrics or /healthz\n")


def metrics(state: State) -> str:
    """Return the state in Prometheus' text format."""
    lines = [
        "# HELP kubermesh_condition Whether a condition of this node holds.",
        "# TYPE kubermesh_condition gauge",
        *(f'kubermesh_condition{{condition="{name}"}} {int(value)}' for name, value in state.conditions.items()),
        "# HELP kubermesh_alarm Whether there is something that only a person can mend.",
        "# TYPE kubermesh_alarm gauge",
        f"kubermesh_alarm {int(bool(state.alarm))}",
        "# HELP kubermesh_agent_memory_bytes Memory that the agent occupies.",
        "# TYPE kubermesh_agent_memory_bytes gauge",
        f"kubermesh_agent_memory_bytes {int(memory_mib() * 2**20)}",
        "# HELP kubermesh_agent_uptime_seconds Time since the agent started.",
        "# TYPE kubermesh_agent_uptime_seconds counter",
        f"kubermesh_agent_uptime_seconds {time.monotonic() - state.started:.1f}",
        *_links(state),
    ]
    if state.facts:
        lines += [
            "# HELP kubermesh_info This node.",
            "# TYPE kubermesh_info gauge",
            f'kubermesh_info{{cluster="{state.facts.cluster}",node="{state.facts.name}",version="{state.version}"}} 1',
        ]
    return "".join(f"{line}\n" for line in lines)


def _links(state: State) -> list[str]:
    found = [(port["name"], port["neighbour"]) for port in state.mesh() if port["neighbour"]]
    return [
        "# HELP kubermesh_link_cost Cost of a link to a neighbour: 96 is a perfect wire, 65535 none.",
        "# TYPE kubermesh_link_cost gauge",
        *(
            f'kubermesh_link_cost{{port="{name}",neighbour="{one["name"]}"}} {one["cost"]}'
            for name, one in found
            if one["authenticated"] and one["cost"] is not None
        ),
    ]
