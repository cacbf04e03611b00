"""Carried into a machine: ends all processes of a program with SIGKILL.

`kill.py PROGRAM`: PROGRAM is the name of the executable file, or of the Python module that runs. Prints the pids; to have
none is an error.
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
        return os.path.basename(words[0]) == program or "-m\0" + program in "\0".join(words[:5])
    return False


def main() -> None:
    """Kill them."""
    pids = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and runs(pid, sys.argv[1])]
    if not pids:
        sys.exit(f"no process of {sys.argv[1]}")
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    print(json.dumps(pids))


main()
