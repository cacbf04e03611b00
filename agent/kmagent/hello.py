"""The hello between neighbours: who is at the other end of a cable, and does it belong to this cluster.

One UDP datagram every two seconds and port to a link-local multicast group: a line of JSON, and a line with a MAC of it for every
generation of the mesh key that the sender has. Both ends choose a nonce when a cable is plugged in and repeat the other's;
only a hello with a good MAC, our nonce and a growing sequence number is believed, so nothing recorded is of use.
"""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

PORT = 9441
GROUP = "ff12::6b6d"
PERIOD_S = 2.0
HOLD_S = 15.0
MAX_BYTES = 1400
MAX_GENERATIONS, MAX_AROUND = 8, 32
# It is shown on consoles: nothing that moves a cursor.
TEXT = re.compile(r"[\x20-\x7e]{0,64}\Z")

Keys = Mapping[int, str]


@dataclass(frozen=True)
class Hello:
    """What a machine says of itself on a port; `number` is 0 for one that is not admitted and asks to be.

    `generations` are those of the mesh key that it has, `trusts` whether it believes the receiver. `around` are the numbers of
    nodes to which it has found another way just now (detours.py).
    """

    cluster: str
    number: int
    name: str
    port: str
    mtu: int
    serial: int
    nonce: str
    heard: str
    sequence: int
    generations: tuple[int, ...] = ()
    trusts: bool = False
    around: tuple[int, ...] = ()


FIELDS = frozenset(one.name for one in fields(Hello))


@dataclass(frozen=True)
class Neighbour:
    """Who was heard on a port: its hello and link-local address, whether it is believed, since when, and when last (s)."""

    hello: Hello
    address: str
    authenticated: bool
    since: float
    seen: float


@dataclass(frozen=True)
class Link:
    """One port's side of the exchange: our nonce, and the one that was heard last, to be repeated."""

    nonce: str
    heard: str = ""
    sequence: int = 0
    neighbour: Neighbour | None = None


def new_link() -> Link:
    """Begin anew: a cable was plugged in."""
    return Link(nonce=secrets.token_hex(8))


def encode(hello: Hello, keys: Keys) -> bytes:
    """Return the datagram."""
    said = {name: value for name, value in asdict(hello).items() if name != "around" or value}
    payload = json.dumps(said, separators=(",", ":")).encode()
    macs = {str(generation): _mac(key, payload) for generation, key in keys.items()}
    return payload + b"\n" + json.dumps(macs, separators=(",", ":")).encode()


def decode(data: bytes, keys: Keys) -> tuple[Hello, bool] | None:
    """Return what a datagram says and whether one of our keys made its MAC; None when it is no hello."""
    payload, _, rest = data.partition(b"\n")
    if len(data) > MAX_BYTES:
        return None
    try:
        said: dict[str, Any] = json.loads(payload)
        macs: dict[str, str] = json.loads(rest)
        lists = {name: tuple(said.get(name, ())) for name in ("generations", "around")}
        # What a later version says besides is passed over.
        hello = Hello(**{name: value for name, value in {**said, **lists}.items() if name in FIELDS})
        good = any(
            hmac.compare_digest(_mac(key, payload), macs.get(str(generation), "")) for generation, key in keys.items()
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return (hello, good) if _is_sound(hello) else None


def receive(link: Link, hello: Hello, good: bool, address: str, now: float) -> Link:
    """Take in a hello: what the link knows after it. A stranger does not displace a neighbour that is believed."""
    # Who was not heard for long has to hear a new nonce: what it said before may be said again by others.
    link = expire(link, now)
    old = link.neighbour
    believed = good and hello.heard == link.nonce
    if old and old.authenticated:
        same = old.hello.number == hello.number
        if not good or (same and hello.sequence <= old.hello.sequence):
            return replace(link, neighbour=old)
        if not believed:
            # A neighbour whose agent was started anew does not know our nonce yet: tell it, and believe it then.
            return replace(link, neighbour=old, heard=hello.nonce)
    continues = old is not None and old.authenticated == believed and old.hello.name == hello.name
    since = old.since if old and continues else now
    return replace(link, heard=hello.nonce, neighbour=Neighbour(hello, address, believed, since, now))


def expire(link: Link, now: float) -> Link:
    """Forget a neighbour that was not heard for long, and with it the nonce that it knew."""
    return new_link() if link.neighbour and now - link.neighbour.seen >= HOLD_S else link


def common_generation(mine: Keys, theirs: tuple[int, ...]) -> int | None:
    """Return the newest generation of the mesh key that both ends have."""
    return max(set(mine) & set(theirs), default=None)


def _is_sound(hello: Hello) -> bool:
    texts = (hello.cluster, hello.name, hello.port, hello.nonce, hello.heard)
    numbers = (hello.number, hello.mtu, hello.serial, hello.sequence, *hello.generations, *hello.around)
    return all(type(text) is str and TEXT.match(text) for text in texts) and all(
        type(value) is int for value in numbers
    )


def _mac(key: str, payload: bytes) -> str:
    derived = hmac.digest(bytes.fromhex(key), b"kubermesh hello", hashlib.sha256)
    return hmac.new(derived, payload, hashlib.sha256).hexdigest()[:32]
