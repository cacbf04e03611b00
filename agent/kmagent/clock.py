"""The machine's clock, where its battery is empty: never before what is known to be past.

There is no time service before there is a network, and no way into the cluster while its certificates are "not yet valid". But
who holds the cluster's authority proves by a certificate's beginning that this moment is past: that far the clock is set.
An old certificate says less, and nothing can make the clock go back.

Only a clock that was lost follows others: one that is years ahead on one node of the control plane must not draw all others after
it. And whoever sets the clock while the machine runs is believed, also when it is set back: so a clock that was ahead for a
while leaves nothing behind.
"""

import logging
import socket
import ssl
import time

import msgspec

from kmagent.http import Tls
from kmagent.paths import Paths, in_container
from kmplan.files import write

log = logging.getLogger(__name__)

# X509_V_FLAG_NO_CHECK_TIME of OpenSSL's x509_vfy.h: all of the chain is checked but its times.
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)


# By how much a clock may drift until that is noted, and until it was set by somebody; in seconds.
DRIFT_S, JUMP_S = 1.0, 60.0


class Note(msgspec.Struct, frozen=True):
    """What is known of the clock in this boot: by how much it is ahead of the time since the machine started, and whether it was
    behind what is past when it did."""

    offset: float
    lost: bool = False


def offset() -> float:
    """By how much the clock is ahead of the time since the machine started, in seconds; changes when somebody sets it."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def has_jumped(before: float) -> bool:
    """Tell whether somebody set the clock since `offset` said that."""
    return abs(offset() - before) > JUMP_S


def look(paths: Paths, built: float, last_seen: float) -> tuple[float, bool]:
    """Return the time, and whether somebody has set the clock back since this was asked last in this boot.

    It is not before the image was built, nor before `last_seen` unless it was set back; a clock that is, is set.
    """
    note = read(paths)
    is_back = note is not None and offset() < note.offset - JUMP_S
    floor = built if is_back else max(built, last_seen)
    is_lost = time.time() < floor or (note is not None and note.lost and not is_back)
    set_forward(floor, "what this node has seen")
    if note is None or note.lost != is_lost or abs(offset() - note.offset) > DRIFT_S:
        write(paths.clock, msgspec.json.encode(Note(offset(), is_lost)), 0o600)
    return max(time.time(), floor), is_back


def read(paths: Paths) -> Note | None:
    """What is known of the clock in this boot; None when nobody looked yet."""
    try:
        return msgspec.json.decode(paths.clock.read_bytes(), type=Note)
    except (OSError, msgspec.DecodeError):
        return None


def may_follow(paths: Paths) -> bool:
    """Tell whether the clock may be set after others': it was lost, or this machine is no node yet."""
    note = read(paths)
    return note is None or note.lost


def set_forward(moment: float, why: str) -> None:
    """Set the clock to a moment (seconds since 1970) that it is behind of; a container has another machine's clock."""
    behind_s = moment - time.time()
    if behind_s <= 0:
        return
    log.warning("the clock is %d s behind %s", behind_s, why)
    if not in_container():
        time.clock_settime(time.CLOCK_REALTIME, moment)


def is_behind(error: OSError) -> bool:
    """Tell whether a server could not be believed because its certificate begins in what this machine takes for the future."""
    return isinstance(error, ssl.SSLCertVerificationError) and "not yet valid" in str(error)


def catch_up(host: str, port: int, tls: Tls, timeout_s: float) -> None:
    """Set the clock to the beginning of a server's certificate; OSError when the server is not of the authority."""
    context = ssl.create_default_context(cafile=str(tls.authority))
    context.verify_flags |= NO_CHECK_TIME
    plain = socket.create_connection((host, port), timeout_s)
    with context.wrap_socket(plain, server_hostname=tls.server_name or host) as server:
        certificate = server.getpeercert() or {}
    set_forward(float(ssl.cert_time_to_seconds(str(certificate["notBefore"]))), "a certificate of the cluster")
