"""What a machine's console said: its end, for errors, and the lines that must not be there."""

import re
from pathlib import Path

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bc|[\x00-\x08\x0b-\x1f]")

FAULTS = (
    re.compile(r"Kernel panic|\bOops\b|BUG: |general protection fault|unable to handle (kernel|page)", re.IGNORECASE),
    re.compile(r"Out of memory: Killed|oom-kill:|invoked oom-killer"),
    re.compile(r"^panic: |goroutine \d+ \[running\]|fatal error: "),
    re.compile(r"\[FAILED\]|: Failed with result '"),
    re.compile(r"ordering cycle", re.IGNORECASE),
    re.compile(r"Traceback \(most recent call last\)"),
)

# The firmware's word before it starts a system, the kernel's for a processor that gets no timer interrupts, and the agent's.
STARTING, NO_TIMER, AGENT = "BdsDxe: starting Boot", "kthread timer wakeup didn't happen", "Kubermesh "


def read_lines(path: Path) -> list[str]:
    """The console's lines without colours, carriage returns and blank ones; none if there is no console yet."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return []
    shown = (CONTROL.sub("", line).rstrip() for line in re.split(r"[\r\n]+", text))
    return [line for line in shown if line]


def find_faults(lines: list[str]) -> list[str]:
    """Lines that tell of a panic, an oops, an oom kill, a failed unit or an ordering cycle."""
    return [line for line in lines if any(fault.search(line) for fault in FAULTS)]


def is_stuck(lines: list[str]) -> bool:
    """Tell whether the last boot came to a halt before the agent's first word, as a processor gets no timer interrupts.

    QEMU 10.0 loses the end of an interrupt (EOI) once in about a hundred boots under multi-threaded TCG: the local APIC
    has vector 236 in service for ever, and delivers nothing below it to that processor.
    """
    start = max((at for at, line in enumerate(lines) if STARTING in line), default=0)
    boot = lines[start:]
    return any(NO_TIMER in line for line in boot) and not any(AGENT in line for line in boot)
