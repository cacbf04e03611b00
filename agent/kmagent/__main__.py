"""The agent's commands: the daemon (no argument), and the short-lived children that it starts."""

import importlib
import logging
import sys

from kmplan.errors import UserError

# By name: the module whose `main` it is, and how many arguments it takes. Each is loaded when it is asked for only.
COMMANDS = {
    "disk": ("home_disk", (0,)),
    "install": ("install", (0, 1)),
    "prepare": ("prepare", (0,)),
    "join": ("join", (2,)),
    "enrol": ("enrol", (0, 1)),
    "sign": ("sign", (0,)),
    "snapshot": ("take_snapshot", (1,)),
    "revision": ("data_revision", (0,)),
    "order": ("keep_order", (0,)),
    "begin-anew": ("begin_anew", (0,)),
    "provide": ("provide", (0,)),
    "wait-ready": ("wait_ready", (0,)),
}


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    module, counts = COMMANDS.get(arguments[0], ("", ())) if arguments else ("daemon", (0,))
    try:
        if len(arguments[1:]) not in counts:
            raise UserError(f"unknown command: {' '.join(arguments)}", f"commands: {', '.join(COMMANDS)}, or none")
        return int(importlib.import_module(f"kmagent.{module}").main(*arguments[1:]))
    except UserError as error:
        print(f"kmagent: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
