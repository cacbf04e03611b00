"""The machine's consoles: who this node is, how it is, and how to reach it."""

import contextlib
import os
from pathlib import Path

from kmagent.paths import in_container
from kmagent.state import State
from kmplan.fingerprint import compared

ACTIVE = Path("/sys/class/tty/console/active")


def block(state: State) -> str:
    """Return what a console shows."""
    facts, phase = state.facts, state.phase
    lines = [f"Kubermesh {state.version}", f"state      {phase}: {state.message}"]
    if facts:
        lines[1:1] = [
            f"node       {facts.name} (number {facts.number}, {facts.role}) of cluster {facts.cluster}",
            f"addresses  {', '.join(facts.addresses)}",
        ]
        lines.append(f"API        https://[{facts.api}]:6443" + (f"   ssh root@{facts.address}" if facts.ssh else ""))
    if state.disk:
        lines.append(f"disk       {state.disk}")
    if state.asking.get("authority"):
        lines.append(f"cluster    {state.asking['cluster']}, fingerprint {compared(state.asking['authority'])}")
    if state.asking.get("fingerprint"):
        lines.append(f"key        {compared(state.asking['fingerprint'])}   (compare it before you approve)")
    return "\r\n" + "".join(f"  {line}\r\n" for line in lines) + "\r\n"


class Console:
    """Shows the block once per change of what it says."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._shown = ""

    def update(self) -> None:
        """Show the block if it is new."""
        text = block(self._state)
        if text != self._shown:
            self._shown = text
            for device in devices():
                show(device, text)


def devices() -> list[Path]:
    """Return the consoles of this machine: the kernel's, or in a container the one it was given."""
    if in_container():
        return [Path("/dev/console")]
    try:
        return [Path("/dev") / name for name in ACTIVE.read_text().split()]
    except OSError:
        return []


def show(device: Path, text: str) -> None:
    """Write to a console; one that hangs or is gone is left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(device, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
