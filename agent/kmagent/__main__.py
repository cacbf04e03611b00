"""The agent's commands: the daemon (no argument), and the short-lived children that it starts."""

import logging
import sys

from kmplan.errors import UserError

COMMANDS = "prepare, join, enrol, sign, wait-ready"


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
            case ["join", address, via]:
                from kmagent import join

                return join.main(address, via)
            case ["enrol", *addresses] if len(addresses) <= 1:
                from kmagent import enrol

                return enrol.main(*addresses)
            case ["sign"]:
                from kmagent import sign

                return sign.main()
            case ["wait-ready"]:
                from kmagent import wait_ready

                return wait_ready.main()
            case _:
                raise UserError(f"unknown command: {' '.join(arguments)}", f"commands: {COMMANDS}, or none")
    except UserError as error:
        print(f"kmagent: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
