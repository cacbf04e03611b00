"""An oracle: a child that counts up in the Kubernetes API, and notes what it was told and when.

`python -m kmcluster.writer KUBECONFIG NAME PACE` reads and replaces the ConfigMap NAME again and again, each time only if
nobody changed it meanwhile (its resourceVersion). It runs in a machine's network, so that the anycast address is what it talks
to. It waits PACE times as long as usual for an answer. Each line on standard output is an `Entry` as JSON. It ends with its
standard input.
"""

import os
import select
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import msgspec

PERIOD_S = 0.1
# Connecting, and waiting for an answer: shorter than the API server's own, as a user would try again.
TIMEOUT_S = (0.5, 1.0)
CONFLICT = 409
SERVED = ("acked", "conflict")


class Entry(msgspec.Struct, frozen=True):
    """One step: `read` saw a value, `acked` was told that it was written, `failed` has the reason.

    `conflict` was told that the other writer was faster, which takes a majority of etcd to say as well.

    `begun` and `ended` are seconds of the monotonic clock, which all processes of a machine share.
    """

    kind: str
    begun: float
    ended: float
    value: int = 0
    why: str = ""


class Count(msgspec.Struct, frozen=True):
    """What the writers together found: writes that were acknowledged, those of them that are gone, and why others failed."""

    acked: int
    lost: tuple[int, ...]
    failed: int


def judge(logs: Sequence[Sequence[Entry]], final: int, split: tuple[float, float] = (0.0, 0.0)) -> Count:
    """Check that every acknowledged value is there, once: none was given to two writers, and nobody read a smaller one later.

    `final` is what was read at the very end. A value whose write failed may be there or not. What was said between the moments
    of `split` does not count: a majority that the cluster went on without may have said it.
    """
    logs = [[entry for entry in log if not split[0] < entry.ended < split[1]] for log in logs]
    acked = sorted((entry.ended, entry.value) for log in logs for entry in log if entry.kind == "acked")
    values = [value for _, value in acked]
    twice = {value for value in values if values.count(value) > 1} if len(set(values)) < len(values) else set()
    reads = [(entry.begun, entry.value) for log in logs for entry in log if entry.kind == "read"]
    seen = [*reads, (float("inf"), final)]
    gone = {value for moment, value in acked for begun, later in seen if begun > moment and later < value}
    failed = sum(entry.kind == "failed" for log in logs for entry in log)
    return Count(len(acked), tuple(sorted(twice | gone)), failed)


def outages(logs: Sequence[Sequence[Entry]], since: float, until: float) -> list[tuple[float, float]]:
    """When a writer was not answered between two moments: from one answer to the next."""
    return [gap for log in logs for gap in gaps((one.ended for one in log if one.kind in SERVED), since, until)]


def gaps(moments: Iterable[float], since: float, until: float) -> list[tuple[float, float]]:
    """The times between two moments, in any order, without one of these: their begins and ends."""
    return list(pairwise([since, *sorted(moment for moment in moments if since < moment < until), until]))


def reason(logs: Sequence[Sequence[Entry]], since: float, until: float) -> str:
    """Why most writes failed that ended between two moments, if any did."""
    found = Counter(one.why for log in logs for one in log if one.kind == "failed" and since <= one.ended <= until)
    return found.most_common(1)[0][0] if found else ""


def main(kubeconfig: str, name: str, pace: str) -> None:
    """Write until standard input ends."""
    from kubernetes import client
    from kubernetes import config as kubeconfigs

    settings = client.Configuration()
    settings.proxy, settings.retries = None, False
    kubeconfigs.load_kube_config(kubeconfig, client_configuration=settings)
    api = client.CoreV1Api(client.ApiClient(settings))
    limits = tuple(limit * float(pace) for limit in TIMEOUT_S)
    while not select.select([sys.stdin], [], [], PERIOD_S)[0]:
        for entry in count_up(api, name, limits):
            os.write(1, msgspec.json.encode(entry) + b"\n")


def count_up(api: Any, name: str, limits: tuple[float, ...]) -> list[Entry]:
    """Read and write once."""
    begun = time.monotonic()
    try:
        item = api.read_namespaced_config_map(name, "default", _request_timeout=limits)
        value = int(item.data["value"])
        read = Entry("read", begun, time.monotonic(), value)
        begun, item.data = time.monotonic(), {"value": str(value + 1)}
        api.replace_namespaced_config_map(name, "default", item, _request_timeout=limits)
    except Exception as error:  # whatever goes wrong is what is to be seen
        if getattr(error, "status", 0) == CONFLICT:
            return [read, Entry("conflict", begun, time.monotonic(), value + 1)]
        return [Entry("failed", begun, time.monotonic(), why=(str(error).splitlines() or [""])[0][:200])]
    return [read, Entry("acked", begun, time.monotonic(), value + 1)]


if __name__ == "__main__":
    main(*sys.argv[1:])
