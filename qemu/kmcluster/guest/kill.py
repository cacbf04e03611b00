"""Carried into a machine: sends all processes of a program a signal.

`kill.py PROGRAM SIGNAL`: PROGRAM is the name of the executable file, or of the Python module that runs; SIGNAL is KILL, STOP
or CONT. Prints the pids; to have none is an error.
"""

# ruff: noqa: PTH119, PTH123, PTH208
import contextlib
import json
import os
import signal
import sys


def runs(pid: str, program: str) -> bool:
    """Whether a process runs the program."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().decode(errors="replace").split("\0")
        return os.path.basename(words[0]) == program or "-m\0" + program in "\0".join(words[:6])
    return False


def main() -> None:
    """Send it."""
    number = signal.Signals[f"SIG{sys.argv[2]}"]
    pids = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and runs(pid, sys.argv[1])]
    if not pids:
        sys.exit(f"no process of {sys.argv[1]}")
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    print(json.dumps(pids))


main()
