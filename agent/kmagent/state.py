"""The one thing that the agent's parts share: what is true of this node now, and when it became so."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kmagent.facts import Facts
from kmplan.files import write

CONDITIONS = ("configured", "etcd", "api", "addons", "announced", "ready")
STEPS = {"voter": ("configured", "etcd", "api", "ready")}
OTHER_STEPS = ("configured", "api", "ready")
EVENT_NAMES = {"ready": "node-ready"}
MAX_EVENTS = 200
STALE_S, AT_LEAST_S = 1.0, 30.0
EXPLANATIONS = {
    "starting": "setting up",
    "asking": "asking to be admitted",
    "configured": "waiting for the control plane",
    "etcd": "waiting for the Kubernetes API",
    "api": "waiting for this node to be Ready",
    "ready": "working",
    "stopped": "the agent was stopped",
}


@dataclass
class State:
    """Conditions and events of this node. Parts set conditions, and wait for those of others; none calls another part.

    `on_change` are called after every change, in the event loop; they must not block. `asking` says how far a machine is
    that is not admitted: `state`, `fingerprint`, `via`. `mesh` describes the ports and who is on them, `routes` counts
    the prefixes that the mesh leads to, `serial` is that of the registry; `leads` says whether this node's etcd leads.
    `fenced` says why the control plane must not run here, and is empty when it may; `left_behind` whether neighbours have a newer
    registry than can be had here; `alarms` what only a person can mend, by its kind; `aside` whether other nodes' API servers
    shall be asked though this one's is well, as it is about to be started anew. `disk` says what became of the stick that the
    machine was booted from.
    """

    version: str = ""
    facts: Facts | None = None
    failure: str = ""
    asking: dict[str, str] = field(default_factory=dict)
    serial: int = 0
    leads: bool = False
    fenced: str = ""
    left_behind: bool = False
    alarms: dict[str, str] = field(default_factory=dict)
    aside: bool = False
    disk: str = ""
    mesh: Callable[[], list[dict[str, Any]]] = list
    routes: Callable[[], int] = int
    conditions: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(CONDITIONS, False))
    events: list[dict[str, Any]] = field(default_factory=list)
    on_change: list[Callable[[], None]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    boot_offset: float = field(default_factory=lambda: boot_seconds() - time.monotonic())
    is_stale: bool = False
    stopped: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def set(self, condition: str, value: bool) -> None:
        """Set a condition; a change is an event."""
        if self.conditions[condition] != value:
            self.conditions[condition] = value
            name = EVENT_NAMES.get(condition, condition)
            self.record(name if value else f"{name}-lost")

    def record(self, name: str) -> None:
        """Note that something happened now."""
        now = time.monotonic()
        moment = {"name": name, "boot_s": round(now + self.boot_offset, 2), "agent_s": round(now - self.started, 2)}
        self.events = [*self.events, moment][-MAX_EVENTS:]
        self.notify()

    def fail(self, message: str) -> None:
        """Note that this node cannot go on, or with an empty message that it can again."""
        known, self.failure = self.failure, message
        if message != known:
            self.record("failed" if message else "failed-lost")

    def fence(self, why: str) -> None:
        """Note why the control plane must not run here; with an empty text it may."""
        before, self.fenced = self.fenced, why
        if before != why:
            self.notify()

    def warn(self, kind: str, what: str) -> None:
        """Note what only a person can mend, or with an empty text that there is nothing of this kind any more."""
        known = self.alarm
        self.alarms = {name: text for name, text in {**self.alarms, kind: what}.items() if text}
        if bool(known) != bool(self.alarm):
            self.record("alarm" if self.alarm else "alarm-lost")
        elif known != self.alarm:
            self.notify()

    @property
    def alarm(self) -> str:
        """All that only a person can mend."""
        return "; ".join(f"{kind}: {text}" for kind, text in sorted(self.alarms.items()))

    def leave_behind(self, *, behind: bool) -> None:
        """Note whether neighbours have a newer registry than can be had here."""
        before, self.left_behind = self.left_behind, behind
        if before != behind:
            self.notify()

    def notify(self) -> None:
        """Wake everyone who waits and tell everyone who listens."""
        self._changed.set()
        self._changed = asyncio.Event()
        for callback in self.on_change:
            callback()

    def touch(self) -> None:
        """Note that the picture changed a little: it is written down soon, and nobody is woken."""
        self.is_stale = True

    def change(self) -> asyncio.Event:
        """Return the event of the next change: take it first, then look, then wait."""
        return self._changed

    async def wait_for(self, *conditions: str) -> None:
        """Wait until all these conditions hold."""
        while not all(self.conditions[name] for name in conditions):
            await self._changed.wait()

    def ask(self, **what: str) -> None:
        """Note how far the question to be admitted is; nothing means that it was answered."""
        if what != self.asking:
            self.asking = what
            self.record(f"asking-{what['state']}" if what else "admitted")

    @property
    def phase(self) -> str:
        """The state in one word: starting, asking, configured, etcd, api, ready, stopped, or failed."""
        if self.stopped:
            return "stopped"
        if self.asking and not self.failure:
            return "asking"
        return phase(self.conditions, bool(self.failure), self.facts.role if self.facts else "voter")

    @property
    def message(self) -> str:
        """What the state means, in a few words."""
        if self.stopped:
            return EXPLANATIONS["stopped"]
        if self.asking and not self.failure:
            return self.asking.get("message") or f"{EXPLANATIONS['asking']}: {self.asking['state']}"
        why = self.phase == "configured" and self.fenced
        return self.failure or why or self.alarm or EXPLANATIONS[self.phase]

    def document(self) -> dict[str, Any]:
        """Return everything as plain data: what status.json and /status show."""
        facts = self.facts
        node = {"name": facts.name, "number": facts.number, "addresses": facts.addresses} if facts else None
        return {
            "version": self.version,
            "cluster": facts.cluster if facts else None,
            "node": node,
            "role": facts.role if facts else None,
            "state": self.phase,
            "message": self.message,
            "conditions": self.conditions,
            "asking": self.asking or None,
            "registry": self.serial,
            "leads": self.leads,
            "epoch": facts.epoch if facts else None,
            "fenced": self.fenced,
            "alarm": self.alarm,
            "disk": self.disk,
            "ports": self.mesh(),
            "routes": self.routes(),
            "events": self.events,
            "memory_mib": memory_mib(),
        }


def phase(conditions: dict[str, bool], failed: bool, role: str = "voter") -> str:
    """Return the furthest point that a node with this role has reached and still holds."""
    if failed:
        return "failed"
    reached = "starting"
    for name in STEPS.get(role, OTHER_STEPS):
        if not conditions[name]:
            break
        reached = name
    return reached


def earlier_events(path: Path) -> list[dict[str, Any]]:
    """Return the events that an agent before this one wrote down since the machine started."""
    try:
        events: list[dict[str, Any]] = json.loads(path.read_text())["events"]
    except (OSError, ValueError, KeyError):
        return []
    return events


def write_status(path: Path, state: State) -> None:
    """Write the state to a file that is whole at any moment."""
    write(path, json.dumps(state.document(), indent=1) + "\n")


async def keep_written(path: Path, state: State) -> None:
    """Write down small changes, a few at a time."""
    written = time.monotonic()
    while True:
        await asyncio.sleep(STALE_S)
        if state.is_stale or time.monotonic() - written > AT_LEAST_S:
            state.is_stale, written = False, time.monotonic()
            write_status(path, state)


def memory_mib() -> float:
    """Return how much memory this process occupies (proc(5), statm)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * 4096 / 2**20, 1)


def boot_seconds() -> float:
    """Return the time since this machine's PID 1 started (proc(5), stat, field 22)."""
    fields = Path("/proc/1/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / 100
