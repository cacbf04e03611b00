"""How long something has been so."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

Key = TypeVar("Key", int, str)


def since(known: Mapping[Key, float], now_so: Iterable[Key], now: float) -> dict[Key, float]:
    """Return since when each of these has been so, in seconds; `known` is what was returned before."""
    return {key: known.get(key, now) for key in now_so}


def changed(
    known: Mapping[Key, tuple[float, float]], values: Mapping[Key, float], now: float
) -> dict[Key, tuple[float, float]]:
    """Return each value, and when it was last seen to have changed, in seconds; `known` is what was returned before."""
    return {
        key: pair if (pair := known.get(key)) and pair[0] == value else (value, now) for key, value in values.items()
    }


def longer_than(seconds: float, known: Mapping[Key, float], now: float) -> frozenset[Key]:
    """Return what has been so for that long."""
    return frozenset(key for key, moment in known.items() if now - moment >= seconds)
