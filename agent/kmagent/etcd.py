"""etcd's API as JSON (its gRPC gateway, https://etcd.io/docs/v3.6/dev-guide/api_grpc_gateway/), at the local member."""

import base64
import contextlib
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kmagent.http import Client

PORT, METRICS_PORT = 2382, 2381
NO_SPACE, CORRUPT, DEFAULT_QUOTA = "NOSPACE", "CORRUPT", 2 * 2**30
# Not tied to the start of a line: what begins with letters is found ten times faster in the 200 KB of metrics.
RECEIVED = re.compile(rb'etcd_network_peer_received_bytes_total\{From="([0-9a-f]+)"\} (\S+)$', re.MULTILINE)


class EtcdError(OSError):
    """etcd refused a request; `message` is what it said."""


@dataclass(frozen=True)
class Member:
    """A member of the etcd cluster; `name` is empty until it has started. A learner does not vote."""

    id: str
    name: str
    peer_urls: tuple[str, ...]
    learner: bool


@dataclass(frozen=True)
class Status:
    """What the local member says of itself; `revision` is how far its data go.

    Of its database's `size` bytes `used` are in use, and `quota` may be.
    """

    member: str
    leader: str
    learner: bool
    revision: int = 0
    size: int = 0
    used: int = 0
    quota: int = DEFAULT_QUOTA

    @property
    def leads(self) -> bool:
        """Whether it is the leader."""
        return self.member == self.leader


@dataclass(frozen=True)
class Value:
    """A key's value, and the revision it was last changed at; 0 and empty when it does not exist."""

    text: str = ""
    revision: int = 0


class Etcd:
    """The local member. Every call raises OSError when it cannot be asked, EtcdError when it refuses.

    `metrics` is where it serves its metrics: the JSON gateway does not tell what its peers send.
    """

    def __init__(self, client: Client, metrics: Client) -> None:
        self._client, self._metrics = client, metrics

    async def get(self, key: str) -> Value:
        """Read a key."""
        answer = await self._call("kv/range", {"key": _encode(key)})
        return _value(answer["kvs"][0]) if answer.get("kvs") else Value()

    async def read_all(self, prefix: str) -> dict[str, Value]:
        """Read all keys with a prefix."""
        answer = await self._call("kv/range", {"key": _encode(prefix), "range_end": _encode(_end(prefix))})
        return {_decode(item["key"]): _value(item) for item in answer.get("kvs", [])}

    async def get_all(self, *keys: str) -> list[Value]:
        """Read keys as they are at one moment."""
        ranges = [{"request_range": {"key": _encode(key)}} for key in keys]
        answer = await self._call("kv/txn", {"compare": [], "success": ranges})
        found = (one["response_range"].get("kvs") for one in answer["responses"])
        return [_value(kvs[0]) if kvs else Value() for kvs in found]

    async def watch(self, prefixes: Sequence[str]) -> AsyncGenerator[dict[str, str]]:
        """Yield the values of keys with one of the prefixes as they change, empty when a key is removed; ends with OSError.

        The first time it yields nothing: from then on it hears of changes.
        """
        asked = [
            {"create_request": {"key": _encode(prefix), "range_end": _encode(_end(prefix))}} for prefix in prefixes
        ]
        waiting = len(prefixes)
        lines = self._client.lines("/v3/watch", b"".join(json.dumps(one).encode() for one in asked))
        async with contextlib.aclosing(lines):
            async for line in lines:
                try:
                    result = json.loads(line)["result"]
                    changed = [event["kv"] for event in result.get("events", [])]
                    values = {_decode(item["key"]): _decode(item.get("value", "")) for item in changed}
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise EtcdError(f"etcd: watch: {line[:200]!r}") from error
                if result.get("canceled"):
                    raise EtcdError(f"etcd: watch: {result.get('cancel_reason') or 'canceled'}")
                waiting -= bool(result.get("created"))
                if not waiting:
                    yield values

    async def put(self, key: str, text: str) -> None:
        """Write a key."""
        await self._call("kv/put", {"key": _encode(key), "value": _encode(text)})

    async def delete(self, key: str) -> None:
        """Remove a key; none is no error."""
        await self._call("kv/deleterange", {"key": _encode(key)})

    async def commit(self, unchanged: Mapping[str, int], puts: Mapping[str, str], deletes: Sequence[str] = ()) -> bool:
        """Write and remove keys at once if those in `unchanged` still have these revisions; tells whether it was done."""
        compare = [
            {"key": _encode(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
            for key, revision in unchanged.items()
        ]
        success: list[dict[str, Any]] = [
            {"request_put": {"key": _encode(key), "value": _encode(text)}} for key, text in puts.items()
        ]
        success += [{"request_delete_range": {"key": _encode(key)}} for key in deletes]
        answer = await self._call("kv/txn", {"compare": compare, "success": success})
        return bool(answer.get("succeeded"))

    async def members(self) -> list[Member]:
        """Return the cluster's members, as its quorum knows them."""
        answer = await self._call("cluster/member/list", {"linearizable": True})
        return [_member(item) for item in answer.get("members", [])]

    async def add_learner(self, peer_url: str) -> None:
        """Add a member that does not vote yet."""
        await self._call("cluster/member/add", {"peerURLs": [peer_url], "isLearner": True})

    async def promote(self, member: str) -> None:
        """Give a learner its vote; refused until it has caught up."""
        await self._call("cluster/member/promote", {"ID": member})

    async def remove(self, member: str) -> None:
        """Remove a member for good."""
        await self._call("cluster/member/remove", {"ID": member})

    async def move_leader(self, member: str) -> None:
        """Make another member the leader."""
        await self._call("maintenance/transfer-leadership", {"targetID": member})

    async def status(self) -> Status:
        """Ask the local member for its state."""
        answer = await self._call("maintenance/status", {})
        header = answer["header"]
        return Status(
            header["member_id"],
            answer.get("leader", ""),
            bool(answer.get("isLearner")),
            int(header.get("revision", 0)),
            int(answer.get("dbSize", 0)),
            int(answer.get("dbSizeInUse", 0)),
            int(answer.get("dbSizeQuota", 0)) or DEFAULT_QUOTA,
        )

    async def alarms(self) -> dict[str, frozenset[str]]:
        """Return the ids of members that have an alarm, by its kind, `NO_SPACE` or `CORRUPT`; "0" for one that is nobody's."""
        answer = await self._call("maintenance/alarm", {"action": "GET"})
        found = [(alarm.get("alarm"), str(alarm.get("memberID", "0"))) for alarm in answer.get("alarms", [])]
        return {kind: frozenset(member for one, member in found if one == kind) for kind in (NO_SPACE, CORRUPT)}

    async def end_alarm(self, kind: str, member: str) -> None:
        """End a member's alarm; none is no error."""
        await self._call("maintenance/alarm", {"action": "DEACTIVATE", "alarm": kind, "memberID": member})

    async def compact(self, revision: int) -> None:
        """Drop the history before a revision; nothing happens when that was done before."""
        try:
            await self._call("kv/compaction", {"revision": str(revision), "physical": True})
        except EtcdError as error:
            if "compacted" not in str(error):
                raise

    async def defragment(self) -> None:
        """Give room that is not in use back; the local member answers nobody meanwhile."""
        await self._call("maintenance/defragment", {})

    async def received(self) -> dict[str, float]:
        """Return how many bytes the local member was sent by each other one, by their ids."""
        answer = await self._metrics.request("GET", "/metrics")
        found = RECEIVED.findall(answer.body)
        return {str(int(sender, 16)): float(count) for sender, count in found}

    async def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self._client.request("POST", f"/v3/{path}", json.dumps(body).encode())
        try:
            data: dict[str, Any] = json.loads(answer.body)
        except ValueError as error:
            raise EtcdError(f"etcd: {path}: {answer.status} {answer.body[:200]!r}") from error
        if answer.status != 200:
            raise EtcdError(f"etcd: {path}: {data.get('message') or data.get('error') or answer.status}")
        return data


def _member(item: dict[str, Any]) -> Member:
    return Member(item["ID"], item.get("name", ""), tuple(item.get("peerURLs", [])), bool(item.get("isLearner")))


def _value(item: dict[str, Any]) -> Value:
    return Value(_decode(item.get("value", "")), int(item["mod_revision"]))


def _end(prefix: str) -> str:
    """Return the first key behind those with a prefix."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decode(text: str) -> str:
    # Not all that others keep in etcd is text.
    return base64.b64decode(text).decode(errors="replace")
