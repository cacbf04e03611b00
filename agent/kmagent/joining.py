"""A machine that is not admitted: it greets its neighbours, and asks over theirs until it is told yes."""

import asyncio
import contextlib
import json
import logging
import sys
from typing import Any

from kmagent import notify
from kmagent.disk_state import blocked
from kmagent.mesh import Mesh, Self
from kmagent.paths import Paths
from kmagent.programs import run_async
from kmagent.state import State
from kmplan.run import CommandError

log = logging.getLogger(__name__)

PERIOD_S = {"pending": 2.0, "denied": 15.0, "busy": 3.0, "refused": 10.0, "unreachable": 1.0}
NOBODY_S = 0.2


async def run(state: State, paths: Paths, asked: dict[str, Any]) -> None:
    """Ask until admitted; `asked` is what `prepare` said: the cluster's name, ports to ignore, and the scale of periods."""
    mesh = Mesh(state, paths, Self(asked["join"], 0, ""), tuple(asked["ignored_ports"]))
    greeting = asyncio.create_task(mesh.run())
    notify.send("READY=1\nSTATUS=asking to be admitted")
    state.ask(state="looking", fingerprint="", message="looking for a neighbour that belongs to the cluster")
    try:
        while not await _ask_neighbours(state, paths, mesh, asked["join"], float(asked["probe_scale"])):
            if greeting.done():
                greeting.result()
    finally:
        greeting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await greeting
    state.mesh = list
    state.ask()


async def _ask_neighbours(state: State, paths: Paths, mesh: Mesh, cluster: str, scale: float) -> bool:
    """Ask each neighbour that says it belongs to the cluster, once; tells whether this machine was admitted."""
    found = [(port, one) for port, one in mesh.neighbours() if one.hello.number and one.hello.cluster == cluster]
    if not found:
        await asyncio.sleep(NOBODY_S)
        return False
    if blocked(paths):
        await _install(paths)
    outcome = "unreachable"
    for port, neighbour in found:
        via = f"{neighbour.hello.name} {neighbour.hello.port}"
        answer = await child("join", f"{neighbour.address}%{port.name}", via)
        outcome = answer["state"]
        known = {name: answer.get(name, "") for name in ("fingerprint", "authority")}
        state.ask(state=outcome, cluster=cluster, **known, via=via, message=_explain(outcome, via, answer))
        if outcome == "admitted":
            return True
        if outcome == "wipe" and blocked(paths):
            await _install(paths, "wipe")
        if outcome in ("pending", "denied", "wipe"):
            break
    await asyncio.sleep(PERIOD_S.get(outcome, 5.0) * scale)
    return False


async def _install(paths: Paths, *permission: str) -> None:
    """Look for a disk to live on; with one, the machine starts anew from it, with the key that it has."""
    answer = await child("install", *permission)
    if answer["state"] == "installed":
        await run_async(["systemctl", "--no-block", "reboot"], check=False)
        await asyncio.Event().wait()


def _explain(outcome: str, via: str, answer: dict[str, Any]) -> str:
    match outcome:
        case "pending":
            return f"waiting for approval, asked via {via}"
        case "wipe":
            return "approved: a disk is wiped, and this machine installs itself there"
        case "denied":
            return "this machine was refused by an administrator"
        case "admitted":
            return "admitted"
    return f"{outcome} via {via}: {answer.get('message', '')}"


async def child(*arguments: str) -> dict[str, Any]:
    """Run one of the agent's own children; returns what it said last. A failure is a state like any other."""
    try:
        _, output = await run_async([sys.executable, "-I", "-m", "kmagent", *arguments])
        return answer_of(output)
    except (CommandError, ValueError) as error:
        text = error.output if isinstance(error, CommandError) else str(error)
        message = text.strip().rpartition("\n")[2].removeprefix("kmagent: ")
        log.error("%s: %s", arguments[0], message)
        return {"state": "failed", "message": message}


def answer_of(output: str) -> dict[str, Any]:
    """Return the last line that a child has said, JSON; the lines before are for the journal. ValueError for what is none."""
    *said, result = output.strip().splitlines() or [""]
    for line in said:
        log.info("%s", line)
    answer: dict[str, Any] = json.loads(result)
    return answer
