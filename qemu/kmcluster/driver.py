"""What a driver can do with a machine: the same for QEMU and nspawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kmcluster.cable import Cable
from kmcluster.state import Machine

LONG_S = 600.0


@dataclass(frozen=True)
class Result:
    """What a command in a machine did."""

    code: int
    stdout: str
    stderr: str


class Driver(Protocol):
    """One way to run machines. Every action is idempotent and raises UserError in one line when it fails.

    What a driver starts or makes it first writes into the machine's state (`Machine.processes`, `Machine.cgroups`).
    """

    def power_on(self, machine: Machine) -> None:
        """Start a machine that is off; returns when its firmware or first process runs."""
        ...

    def power_off(self, machine: Machine, timeout_s: float) -> None:
        """Press the power button and wait until the machine is off."""
        ...

    def power_cut(self, machine: Machine) -> None:
        """Pull the plug: nothing in the machine gets another instruction."""
        ...

    def reset(self, machine: Machine) -> None:
        """Press the reset button."""
        ...

    def freeze(self, machine: Machine) -> None:
        """Stop the machine's clock and processors."""
        ...

    def thaw(self, machine: Machine) -> None:
        """Continue a frozen machine."""
        ...

    def power(self, machine: Machine) -> str:
        """The machine's power: "on", "off" or "frozen"."""
        ...

    def console(self, machine: Machine) -> Path:
        """The file that the machine's console is written to."""
        ...

    def execute(self, machine: Machine, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = LONG_S) -> Result:
        """Run a command in the machine to its end."""
        ...

    def execute_on_disk(
        self, machine: Machine, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = LONG_S
    ) -> Result:
        """Run a command of the image with the disk of a machine that is off at /var, and nothing else of it."""
        ...

    def wipe_disk(self, machine: Machine) -> None:
        """Make the disk of a machine that is off as new."""
        ...

    def fail_disk(self, machine: Machine, failing: bool) -> None:
        """Make writes to the disk of a machine that is on fail, or not; at power on the state counts."""
        ...

    def plug_stick(self, machine: Machine, plugged: bool) -> None:
        """Plug the machine's stick in, or pull it out; at power on the state counts."""
        ...

    def attach(self, machine: Machine, argv: Sequence[str]) -> int:
        """Run a command in the machine with this process's standard input, output and error; returns its status."""
        ...

    def read_status(self, machine: Machine) -> dict[str, Any] | None:
        """The agent's status, or None while there is none."""
        ...

    def apply_cables(self, cables: Sequence[Cable]) -> None:
        """Make cables what the state says: where they are plugged in, cut, loss and delay."""
        ...

    def cleanup(self, machine: Machine) -> None:
        """End and remove whatever was started or made for the machine outside of its folder."""
        ...
