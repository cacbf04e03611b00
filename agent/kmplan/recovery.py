"""What it takes to begin a cluster anew when most of its voters are gone for good: snapshots, and the admin's order."""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

NAME = re.compile(r"([0-9]{1,6})-([0-9]{1,19})-([0-9]{1,12})\.sealed\Z")
# Where a node begins from: the data of its own etcd, or else the name of a snapshot that it keeps.
OWN_DATA = "data"


@dataclass(frozen=True, order=True)
class Snapshot:
    """etcd's data at a `revision` of an `epoch`, `taken` at that moment in seconds since 1970. The newest is the greatest."""

    epoch: int
    revision: int
    taken: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.epoch}-{self.revision}-{self.taken}.sealed"


def parse_snapshot(name: str) -> Snapshot | None:
    """Return what a file's name says; None when it is no snapshot's."""
    match = NAME.match(name)
    return Snapshot(*map(int, match.groups())) if match else None


@dataclass(frozen=True)
class Order:
    """`number` is the node that begins anew, as the only voter, from `source`; `epoch` one more than any before.

    It waits until a majority of all nodes keep the order, so that no majority of older members can be served any more; with
    `force` it does not. `sealed` are the control plane's secrets for a node that does not have them.
    """

    cluster: str
    epoch: int
    number: int
    source: str
    force: bool = False
    sealed: str = ""


def to_text(order: Order) -> str:
    """Return the one form that is signed."""
    return json.dumps(asdict(order), sort_keys=True, separators=(",", ":"))


def pack(text: str, signature: str) -> str:
    """Put text and signature (base64, of the node authority) together as they are kept and sent."""
    return json.dumps({"order": text, "signature": signature}) + "\n"


def unpack(packed: str) -> tuple[Order, str, str]:
    """Return an order, its signed text and the signature; ValueError when it is none. The signature is not checked."""
    try:
        data = json.loads(packed)
        text, signature = str(data["order"]), str(data["signature"])
        order = Order(**json.loads(text))
        known: dict[str, Any] = {
            "cluster": str,
            "epoch": int,
            "number": int,
            "source": str,
            "force": bool,
            "sealed": str,
        }
        if any(type(getattr(order, name)) is not kind for name, kind in known.items()):
            raise TypeError("a value of another type")
    except (TypeError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"not an order to begin anew: {error}") from error
    return order, text, signature
