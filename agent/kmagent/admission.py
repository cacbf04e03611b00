"""Who is admitted: the request of a machine, checked, and the decision that policy and people make of it."""

import re
from dataclasses import dataclass
from typing import Any

from kmagent.registry import Node

MAX_CSR = 2048
MAX_LIST = 16
TEXT = re.compile(r"[\x20-\x7e]{0,64}\Z")
LONG_TEXT = re.compile(r"[\x20-\x7e]{0,300}\Z")


@dataclass(frozen=True)
class Request:
    """What a machine asks: its certificate request, and what it says of itself.

    `wish` is the number it would like, or 0; a `diskless` one forgets everything when it is switched off.
    `blocked` says why it has no disk to live on; until it has one it is no node.
    """

    cluster: str
    csr: str
    wish: int
    uuid: str
    via: str
    ports: tuple[dict[str, str], ...]
    disks: tuple[dict[str, Any], ...]
    diskless: bool = False
    blocked: str = ""


def parse(data: Any) -> Request:
    """Check the shape of a request; ValueError in words when it is wrong."""
    if not isinstance(data, dict) or data.get("version") != 1:
        raise ValueError("expected a JSON object with version 1")
    csr = data.get("csr")
    if not isinstance(csr, str) or len(csr) > MAX_CSR:
        raise ValueError(f"csr: expected PEM of at most {MAX_CSR} bytes")
    return Request(
        cluster=_text(data, "cluster"),
        csr=csr,
        wish=_number(data, "wish"),
        uuid=_text(data, "uuid").lower(),
        via=_text(data, "via"),
        ports=tuple({"name": _text(one, "name"), "mac": _text(one, "mac")} for one in _entries(data, "ports")),
        disks=tuple(
            {"name": _text(one, "name"), "model": _text(one, "model"), "size_bytes": _number(one, "size_bytes")}
            for one in _entries(data, "disks")
        ),
        diskless=data.get("diskless") is True,
        blocked=_text(data, "blocked", LONG_TEXT),
    )


def decide(
    policy: str, allowlist: list[str], request: Request, asked: dict[str, Any] | None, *, returns: bool = False
) -> str:
    """Return `admit`, `wait`, `deny` or `wipe`: what a person said counts, then the policy.

    A machine without a disk `returns` that was admitted before: it forgot that, not those who admitted it.
    """
    decision = (asked or {}).get("decision", "")
    if request.blocked and decision != "Denied":
        return "wipe" if decision == "Approved" and (asked or {}).get("wipe") else "wait"
    if decision in ("Approved", "Denied"):
        return "admit" if decision == "Approved" else "deny"
    listed = bool(request.uuid) and request.uuid in {entry.lower() for entry in allowlist}
    return "admit" if policy == "auto" or (policy == "allowlist" and listed) or returns else "wait"


def comes_back(request: Request, known: dict[str, Any] | None, former: Node | None, *, reachable: bool) -> bool:
    """Tell whether a machine without a disk is one that was admitted before, by its UUID.

    `former` is the node of this UUID; one that can be reached is another machine. That it comes back is still `known` when
    that node was taken out for it.
    """
    if not request.diskless or not request.uuid:
        return False
    remembered = known is not None and known.get("returns", False) and known["uuid"] == request.uuid and former is None
    return remembered or (former is not None and former.diskless and not reachable)


def record(
    request: Request, fingerprint: str, relay: str, known: dict[str, Any] | None, now: float, *, returns: bool = False
) -> dict[str, Any]:
    """Return what is kept of a request, and of the node that it came by (address); times in seconds since 1970."""
    return {
        "fingerprint": fingerprint,
        "csr": request.csr,
        "wish": request.wish,
        "uuid": request.uuid,
        "via": (known or {}).get("via") or request.via,
        "relay": (known or {}).get("relay") or relay,
        "ports": list(request.ports),
        "disks": list(request.disks),
        "diskless": request.diskless,
        "blocked": request.blocked,
        "wipe": (known or {}).get("wipe", False),
        "returns": returns,
        "first_seen": (known or {}).get("first_seen", now),
        "last_seen": now,
        "decision": (known or {}).get("decision", ""),
    }


def _entries(data: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = data.get(key, [])
    if not isinstance(entries, list) or len(entries) > MAX_LIST or not all(isinstance(one, dict) for one in entries):
        raise ValueError(f"{key}: expected a list of at most {MAX_LIST} objects")
    return entries


def _text(data: dict[str, Any], key: str, shape: re.Pattern[str] = TEXT) -> str:
    value = data.get(key, "")
    if not isinstance(value, str) or not shape.match(value):
        raise ValueError(f"{key}: expected up to {64 if shape is TEXT else 300} printable characters")
    return value


def _number(data: dict[str, Any], key: str) -> int:
    value = data.get(key, 0)
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError(f"{key}: expected a number")
    return value
