"""A cable: which two ports it is plugged into, and what it does to packets."""

import re
from typing import Any

import msgspec

from kmplan.errors import UserError

PORT = re.compile(r"([1-9][0-9]?):eth(0|[1-9][0-9]?)")
MTU = 1500


class Port(msgspec.Struct, frozen=True):
    """A network port of a machine: the machine's number, and the port's place, counted from 0."""

    node: int
    index: int

    def __str__(self) -> str:
        return f"{self.node}:{self.name}"

    @property
    def name(self) -> str:
        """What the port is called in the machine."""
        return f"eth{self.index}"

    @property
    def mac(self) -> str:
        """The port's hardware address, the same at every power on."""
        return f"52:54:00:6c:{self.node:02x}:{self.index:02x}"


def parse_port(text: str) -> Port:
    """Read `1:eth0`; raises UserError when it is not of that form."""
    found = PORT.fullmatch(text)
    if found is None:
        raise UserError(f"{text}: not a port", "write a node's number and its port, such as 1:eth0")
    return Port(int(found[1]), int(found[2]))


class Cable(msgspec.Struct, frozen=True):
    """One cable as it is now; its number is its place in the topology, counted from 1.

    `loss_percent` is lost of what goes (from a to b, from b to a); `delay_ms` is added each way.
    """

    number: int
    a: Port
    b: Port
    mtu: int = MTU
    cut: bool = False
    loss_percent: tuple[float, float] = (0.0, 0.0)
    delay_ms: float = 0.0

    @property
    def state(self) -> str:
        """The cable's state in one word."""
        if self.cut:
            return "cut"
        there, back = self.loss_percent
        if (there == 100) != (back == 100):
            return "one-way"
        if any(self.loss_percent):
            return "lossy"
        return "slow" if self.delay_ms else "plugged"

    def describe(self) -> dict[str, Any]:
        """The cable as data for --json."""
        return {
            "number": self.number,
            "a": str(self.a),
            "b": str(self.b),
            "state": self.state,
            "loss": list(self.loss_percent),
            "delay_ms": self.delay_ms,
            "mtu": self.mtu,
        }
