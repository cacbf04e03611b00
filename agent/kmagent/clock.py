"""The machine's clock, where its battery is empty: never before what is known to be past.

There is no time service before there is a network, and no way into the cluster while its certificates are "not yet valid". But
who holds the cluster's authority proves by a certificate's beginning that this moment is past: that far the clock is set.
An old certificate says less, and nothing can make the clock go back.
"""

import logging
import socket
import ssl
import time

from kmagent.http import Tls
from kmagent.paths import in_container

log = logging.getLogger(__name__)

# X509_V_FLAG_NO_CHECK_TIME of OpenSSL's x509_vfy.h: all of the chain is checked but its times.
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)


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
