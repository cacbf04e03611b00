"""Commands and carried scripts in a machine, or on the disk of one that is off."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kmcluster.driver import LONG_S, Driver, Result
from kmcluster.state import Machine
from kmplan.errors import UserError

SCRIPTS = Path(__file__).parent / "guest"


def run(driver: Driver, machine: Machine, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = LONG_S) -> Result:
    """Run a command of the image: in the machine, or when that is off with nothing but its disk.

    Raises UserError when the machine is frozen, or off and the driver cannot read its disk.
    """
    off = driver.power(machine) == "off"
    return (driver.execute_on_disk if off else driver.execute)(machine, argv, stdin, timeout_s)


def run_script(driver: Driver, machine: Machine, script: str, *arguments: str, timeout_s: float = LONG_S) -> Any:
    """Run `guest/SCRIPT.py` by the image's Python; returns the JSON value it prints, raises UserError with its complaint."""
    argv = ["python3", "-S", "-E", "-", *arguments]
    result = run(driver, machine, argv, (SCRIPTS / f"{script}.py").read_bytes(), timeout_s)
    if result.code != 0:
        words = result.stderr.strip().splitlines()
        raise UserError(f"{machine.name}: {words[-1] if words else f'{script} failed with status {result.code}'}")
    return json.loads(result.stdout)
