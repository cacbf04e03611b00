"""MeshNodes, the cluster's list of its machines: the objects, what users call them, and the API calls on them.

`overlays/node/addons/meshnode.yaml.j2` describes each field.
"""

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from kmplan import document
from kmplan.errors import UserError
from kmplan.fingerprint import grouped

RESOURCE = ("kubermesh.io", "v1", "meshnodes")
MERGE = "application/merge-patch+json"
MANAGER = "kmbuild"
REQUEST_S = 10.0
TOO_MANY_REQUESTS = 429
MIN_PREFIX, MIN_COMPARED = 4, 16
NAMED_IN_ERRORS = 10


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    """What every object of Kubernetes has. Another machine, or the same one asking again, has another `uid`."""

    name: str
    uid: str = ""
    creation_timestamp: datetime | None = None


class Spec(msgspec.Struct, frozen=True):
    """The user's word: "", "Approved", "Denied" or "Removed"; `wipe` lets the machine wipe a disk that holds something."""

    decision: str = ""
    wipe: bool = False


class Port(msgspec.Struct, frozen=True):
    """A network port of the machine."""

    name: str = ""
    mac: str = ""


class Disk(msgspec.Struct, frozen=True):
    """A disk of the machine."""

    name: str = ""
    size_bytes: int = 0
    model: str = ""


class Offer(msgspec.Struct, frozen=True):
    """A port on which a machine is offered a system, and how far that is."""

    port: str = ""
    message: str = ""


class Condition(msgspec.Struct, frozen=True, rename="camel"):
    """One condition: `type` is Admitted, Ready or Voter, `status` is True, False or Unknown."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None


class Status(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What the cluster says of the machine; `number` is 0, `name` and `role` are empty until it was admitted.

    `blocked` says why it has no disk to live on.
    """

    phase: str = ""
    number: int = 0
    name: str = ""
    role: str = ""
    fingerprint: str = ""
    uuid: str = ""
    via: str = ""
    ports: list[Port] = []
    disks: list[Disk] = []
    offers: list[Offer] = []
    blocked: str = ""
    first_seen: datetime | None = None
    last_seen: datetime | None = None
    conditions: list[Condition] = []


class MeshNode(msgspec.Struct, frozen=True, rename="camel"):
    """A machine that asked to be admitted, or was."""

    api_version: str
    kind: str
    metadata: Metadata
    spec: Spec = Spec()
    status: Status = Status()

    @property
    def label(self) -> str:
        """What people call it: the node's name, or the object's while it has none."""
        return self.status.name or self.metadata.name

    def condition(self, kind: str) -> Condition | None:
        """The condition of a type, if it has one."""
        return next((one for one in self.status.conditions if one.type == kind), None)


def order(node: MeshNode) -> tuple[bool, float, str]:
    """Sort key: machines that wait come first, in the order in which they came, then nodes by number."""
    first = node.status.first_seen or node.metadata.creation_timestamp
    waits = node.status.phase in ("Pending", "Installing")
    rank = (first.timestamp() if first else 0) if waits else (node.status.number or float("inf"))
    return not waits, rank, node.metadata.name


def choose(words: Sequence[str], nodes: Sequence[MeshNode]) -> list[MeshNode]:
    """The MeshNodes that a user's words mean, each once; UserError when one means none or several."""
    chosen = {}
    for word in words:
        found = [node for node in nodes if is_meant(word, node)]
        if not found:
            raise UserError(
                f"{word}: no such node", f"there are: {_list(nodes)}" if nodes else "no machine has asked yet"
            )
        if len(found) > 1:
            raise UserError(f"{word}: may be any of {_list(found)}", "give a name, or more of the fingerprint")
        chosen[found[0].metadata.uid] = found[0]
    return list(chosen.values())


def is_meant(word: str, node: MeshNode) -> bool:
    """Whether a word is the node's name, number or UUID, the object's name, or the beginning of the fingerprint."""
    status = node.status
    names = (node.metadata.name, status.name, str(status.number or ""))
    digits = _digits(word)
    return bool(digits) and (
        word in names
        or digits == _digits(status.uuid)
        or (len(digits) >= MIN_PREFIX and status.fingerprint.startswith(digits))
    )


def is_compared(words: Sequence[str], node: MeshNode) -> bool:
    """Whether a word is so much of the node's fingerprint that nobody makes a key to fit it."""
    return any(
        len(_digits(word)) >= MIN_COMPARED and node.status.fingerprint.startswith(_digits(word)) for word in words
    )


def _digits(word: str) -> str:
    return re.sub(r"[:\s-]", "", word).lower()


def _list(nodes: Sequence[MeshNode]) -> str:
    """Nodes for a line of text, with what tells them apart."""
    named = [
        f"{node.label} ({node.status.phase}, {grouped(node.status.fingerprint[:8])})"
        for node in sorted(nodes, key=order)[:NAMED_IN_ERRORS]
    ]
    more = [f"and {len(nodes) - NAMED_IN_ERRORS} more"] if len(nodes) > NAMED_IN_ERRORS else []
    return ", ".join([*named, *more])


class MeshNodeList(msgspec.Struct, frozen=True):
    """The API's answer to a question for all MeshNodes."""

    items: list[MeshNode]


class NoAnswerError(UserError):
    """No use could be made of the API server's answer, if there was one; the next may be better."""


class Api:
    """The API server's MeshNodes. Every call raises UserError in one line, NoAnswerError when trying again may help."""

    def __init__(self, config: dict[str, Any], hint: str) -> None:
        """Take a kubeconfig, and what a user should look at when the server does not answer."""
        # Slow to import, and most commands do not need it.
        import urllib3
        from kubernetes import client
        from kubernetes import config as kubeconfig

        urllib3.disable_warnings()
        settings = client.Configuration()
        # A proxy on the way to the Internet knows no way into the mesh. One named in the kubeconfig is still taken.
        settings.proxy = None
        settings.retries = False
        try:
            kubeconfig.load_kube_config_from_dict(config, client_configuration=settings)
        except (kubeconfig.ConfigException, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"not a usable kubeconfig: {error}", "see admin.kubeconfig in the cluster directory"
            ) from error
        self.server: str = settings.host
        self.hint = hint
        self._objects = client.CustomObjectsApi(client.ApiClient(settings))

    def read_all(self) -> list[MeshNode]:
        """Every MeshNode there is."""
        answer = self._call(self._objects.list_cluster_custom_object)
        return document.convert(answer, MeshNodeList, f"{self.server}: MeshNodes").items

    def decide(self, node: MeshNode, decision: str, *, wipe: bool = False) -> MeshNode:
        """Write the user's word into a MeshNode; returns it as it is then."""
        # With the uid, the word cannot hit a machine that asked after the user looked.
        patch = {
            "metadata": {"uid": node.metadata.uid},
            "spec": {"decision": decision, **({"wipe": True} if wipe else {})},
        }
        change = self._objects.patch_cluster_custom_object
        answer = self._call(change, node.metadata.name, patch, field_manager=MANAGER, _content_type=MERGE)
        return document.convert(answer, MeshNode, f"{self.server}: {node.metadata.name}")

    def _call(self, operation: Callable[..., object], *arguments: object, **options: object) -> object:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return operation(*RESOURCE, *arguments, _request_timeout=REQUEST_S, **options)
        except ApiException as error:
            raise self._refusal(error.status, str(error.reason), error.body) from error
        except (HTTPError, OSError, ValueError) as error:
            raise NoAnswerError(f"{self.server}: no answer of the API server: {_reason(error)}", self.hint) from error

    def _refusal(self, status: int, reason: str, body: str | None) -> UserError:
        message = _message(body)
        if status == 0 and "CERTIFICATE" in reason:
            return UserError(f"{self.server}: {_last_line(reason)}", "is this the kubeconfig of that cluster?")
        if status == 0:  # TLS failed otherwise: what passes the connection on has nobody behind it
            return NoAnswerError(f"{self.server}: no answer of the API server: {_last_line(reason)}", self.hint)
        if status == 404 and not message:
            return UserError(f"{self.server}: knows no MeshNodes", "a cluster that just starts does in a minute")
        where = f"{self.server}: {status} {message or reason}"
        if status in (401, 403):
            return UserError(where, "use that cluster's own admin.kubeconfig; it is good for a year")
        if status >= 500 or status == TOO_MANY_REQUESTS:
            return NoAnswerError(where, "try again in a minute")
        return UserError(where, "see `kmbuild nodes list`")


def _message(body: str | None) -> str:
    """What a Status object of the API says; nothing for any other body."""
    try:
        return _last_line(str(json.loads(body or "")["message"]))
    except (ValueError, KeyError, TypeError):
        return ""


def _reason(error: BaseException) -> str:
    """Why a connection failed: the system's own words where there are some."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, TimeoutError) or type(chain).__name__.endswith("TimeoutError"):
            return f"nothing for {REQUEST_S:g} s"
        if isinstance(chain, OSError) and chain.strerror:
            return chain.strerror
        chain = chain.__cause__ or chain.__context__
    return _last_line(str(error))


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
