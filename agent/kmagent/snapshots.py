"""Has snapshots of etcd taken by the node that leads: every ten minutes, and before members change."""

import asyncio
import json
import logging
import time

from kmagent import network, snapshot_files
from kmagent.facts import Facts
from kmagent.joining import child
from kmagent.paths import Paths
from kmagent.registry import Registry
from kmagent.snapshot_files import COPIES

log = logging.getLogger(__name__)

PERIOD_S = 600.0
# Changes that follow one another have one snapshot, before the first; and none waits for one for longer than this.
TOGETHER_S, PATIENCE_S = 20.0, 20.0
AGAIN_S, LONELY_S = 60.0, 300.0


class Snapshots:
    """One at a time; what fails is logged and tried again, and keeps nothing else from being done."""

    def __init__(self, paths: Paths, facts: Facts) -> None:
        self._paths, self._facts = paths, facts
        self._taking: asyncio.Task[None] | None = None
        self._late: asyncio.Task[None] | None = None
        # When one was begun, and when a change was let go on with one, or without.
        self._tried = self._taken = float("-inf")
        # How many other nodes have the newest one, and which could be reached when it was begun.
        self._kept_by = COPIES
        self._asked: frozenset[int] = frozenset()

    def take_if_due(self, registry: Registry, reachable: frozenset[int]) -> None:
        """Begin one when the newest that is kept here is old, or not kept by enough others though they are there now."""
        newest = max((one.taken for one in snapshot_files.find(self._paths.snapshots)), default=0)
        is_old = not 0 <= time.time() - newest < PERIOD_S
        is_alone = self._kept_by < min(COPIES, len(reachable - {self._facts.number}))
        # Those that were there may have no room: what is kept is not to be of the last minutes alone.
        is_alone &= reachable != self._asked or time.monotonic() - self._tried >= LONELY_S * self._facts.probe_scale
        if (is_old or is_alone) and time.monotonic() - self._tried >= AGAIN_S * self._facts.probe_scale:
            self._begin(registry, reachable)

    async def take_before_change(self, registry: Registry, reachable: frozenset[int]) -> bool:
        """Have one that is not older than the changes under way; a change that must be made is not kept from it for long.

        Tells whether it was waited for.
        """
        scale = self._facts.probe_scale
        # One that was waited for in vain is not waited for again.
        is_under_way = self._taking is not None and not self._taking.done() and self._taking is not self._late
        if not is_under_way and time.monotonic() - self._taken < TOGETHER_S * scale:
            return False
        self._begin(registry, reachable)
        assert self._taking  # noqa: S101 - begun
        try:
            await asyncio.wait_for(asyncio.shield(self._taking), PATIENCE_S * scale)
        except TimeoutError:
            self._late = self._taking
        self._taken = time.monotonic()
        return True

    def _begin(self, registry: Registry, reachable: frozenset[int]) -> None:
        if self._taking is None or self._taking.done():
            self._tried, self._asked = time.monotonic(), reachable
            self._taking = asyncio.create_task(self._take(registry, reachable))

    async def _take(self, registry: Registry, reachable: frozenset[int]) -> None:
        # Those that have disks and do not vote first: a snapshot is for the day when the voters are gone.
        others = [node for node in registry.nodes if node.number in reachable - {self._facts.number}]
        others.sort(key=lambda node: (node.diskless, node.role == "voter", node.number))
        nodes = [
            {"address": network.node_address(self._facts.prefix, node.number), "digest": node.certificate}
            for node in others
        ]
        answer = await child("snapshot", json.dumps(nodes))
        if "name" in answer:
            self._kept_by = len(answer["kept_by"])
            log.info(
                "snapshot %s is kept here and by %s", answer["name"], ", ".join(answer["kept_by"]) or "nobody else"
            )
