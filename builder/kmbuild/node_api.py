"""The nodes' own API, which works without a control plane: what they say of themselves, and the order to begin anew.

`kmagent/node_api.py` is its other end.
"""

import json
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from kmplan import document
from kmplan.errors import UserError

PORT = 9444
REQUEST_S = 30.0

# A node's address and port.
Place = tuple[str, int]


class Etcd(msgspec.Struct, frozen=True):
    """etcd's data on a node: how far they go, None when that is not known, and whether it has a leader.

    `looking` says that they are being read, as no etcd answers there.
    """

    revision: int | None
    has_leader: bool
    looking: bool = False


class State(msgspec.Struct, frozen=True):
    """What a node says of itself: `epoch` is the highest that it knows of, `own_epoch` that of what it has.

    `withdrawn` is the epoch of the newest order that was not carried out; none may have its number again.
    """

    role: str
    epoch: int
    own_epoch: int
    certificate: str
    withdrawn: int = 0
    fenced: str = ""
    failure: str = ""
    etcd: Etcd | None = None
    snapshots: list[str] = []


class Node(msgspec.Struct, frozen=True):
    """A registered node; `state` is None when it does not answer."""

    number: int
    name: str
    role: str
    state: State | None = None


class Survey(msgspec.Struct, frozen=True):
    """All nodes, as the one that was asked hears them."""

    cluster: str
    nodes: list[Node]


class NodeApi:
    """Asks the first of some nodes that answers. Every call raises UserError in one line when none does, or it refuses."""

    def __init__(self, directory: Path, places: Sequence[Place]) -> None:
        """Use the cluster directory's break-glass certificate: it is good for ten years, and needs no RBAC."""
        import urllib3

        pki = directory / "pki"
        try:
            context = ssl.create_default_context(cafile=str(pki / "node-ca.crt"))
            context.load_cert_chain(pki / "break-glass.crt", pki / "break-glass.key")
        except OSError as error:
            raise UserError(f"{pki}: no usable certificates: {error.strerror or error}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # The node authority signs for nodes alone, and which of them answers is no matter.
        context.check_hostname = False
        self._pools = [
            urllib3.HTTPSConnectionPool(
                host, port, ssl_context=context, assert_hostname=False, retries=False, timeout=REQUEST_S
            )
            for host, port in places
        ]

    def survey(self) -> Survey:
        """What all nodes say of themselves."""
        return document.convert(self._ask("GET", "/v1/survey"), Survey, "node API: survey")

    def give_order(self, packed: str) -> list[int]:
        """Give an order to a node, which passes it on; returns the numbers of the nodes that keep it."""
        return document.convert(self._ask("POST", "/v1/order", packed)["kept_by"], list[int], "node API: order")

    def _ask(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        from urllib3.exceptions import HTTPError

        last = "no node is on"
        for pool in self._pools:
            try:
                answer = pool.request(method, path, body=body)
            except (HTTPError, OSError) as error:
                last = f"{pool.host}: {getattr(error, 'reason', None) or error}"
                continue
            if answer.status != 200:
                raise UserError(
                    f"{pool.host}: {path}: {answer.status} {answer.data[:200].decode(errors='replace').strip()}"
                )
            data: dict[str, Any] = json.loads(answer.data)
            return data
        raise UserError(f"no node answers at its own API: {last}", "is one on, and this machine cabled to the mesh?")
