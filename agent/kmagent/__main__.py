"""The agent's commands: the daemon (no argument), and its helpers `prepare` and `wait-ready`."""

import logging
import sys

from kmplan.errors import UserError


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    try:
        match arguments:
            case []:
                from kmagent import daemon

                return daemon.main()
            case ["prepare"]:
                from kmagent import prepare

                return prepare.main()
            case ["wait-ready"]:
                from kmagent import wait_ready

                return wait_ready.main()
            case _:
                raise UserError(f"unknown command: {' '.join(arguments)}", "commands: prepare, wait-ready, or none")
    except UserError as error:
        print(f"kmagent: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
