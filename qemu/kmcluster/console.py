"""What a machine's console said: its end, for errors, and the lines that must not be there."""

import re
from pathlib import Path

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bc|[\x00-\x08\x0b-\x1f]")

FAULTS = (
    # In capitals: "MP-BIOS bug" is a timer that was slow.
    re.compile(r"\bBUG: |\bkernel BUG at\b"),
    re.compile(r"Kernel panic|\bOops\b|general protection fault|unable to handle (kernel|page)", re.IGNORECASE),
    re.compile(r"Out of memory: Killed|oom-kill:|invoked oom-killer"),
    re.compile(r"^panic: |goroutine \d+ \[running\]|fatal error: "),
    re.compile(r"\[FAILED\]|: Failed with result '"),
    re.compile(r"ordering cycle", re.IGNORECASE),
    re.compile(r"Traceback \(most recent call last\)"),
)


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
