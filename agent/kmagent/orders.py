"""Orders to begin the cluster anew (docs/recovery.md): the newest that this node was given."""

import asyncio
import contextlib
import logging
import sys
from dataclasses import replace
from pathlib import Path

from kmagent.facts import Facts
from kmagent.paths import Paths
from kmagent.programs import run_async
from kmagent.state import State
from kmplan import recovery
from kmplan.files import sync_folder, write
from kmplan.recovery import Order

log = logging.getLogger(__name__)


class Orders:
    """What this node knows of epochs: its own, and that of the newest order."""

    def __init__(self, state: State, paths: Paths, facts: Facts) -> None:
        self._state, self._paths, self._facts = state, paths, facts
        self.newest: Order | None = None
        self.packed = ""
        # The epoch of the newest order that is not carried out any more. It never begins, and none begins with its number.
        self.withdrawn = 0
        self._changing = asyncio.Lock()
        self._load()

    @property
    def epoch(self) -> int:
        """The highest epoch that this node knows of: it takes no part in any before it."""
        return max(self._facts.epoch, self.newest.epoch if self.newest else 0)

    @property
    def overtaken(self) -> bool:
        """Whether the cluster was, or shall be, begun anew without what this node has."""
        return self.epoch > self._facts.epoch

    @property
    def is_new(self) -> bool:
        """Whether the newest order was given since this machine was started."""
        with contextlib.suppress(OSError):
            return self._paths.order_taken.read_text() == str(self.epoch)
        return False

    async def take(self, packed: str) -> bool:
        """Check and keep an order; tells whether this node has it now. One that is not newer is no news."""
        order, _, _ = recovery.unpack(packed)
        async with self._changing:
            if order.epoch > self.epoch:
                _, output = await run_async([sys.executable, "-I", "-m", "kmagent", "order"], input=packed, check=False)
                log.info("%s", output.strip())
                self._load()
                if self.newest == order:
                    # Of this boot: /run is empty at the next.
                    self._paths.order_taken.write_text(str(order.epoch))
                self._state.notify()
            return self.newest == order

    async def withdraw(self, order: Order) -> bool:
        """Put an order aside that was not carried out; tells whether it was the newest one still."""
        async with self._changing:
            self._load()
            if self.newest != order:
                return False
            # Its number is all that is needed of it: it may hold the cluster's keys, sealed to this node.
            bare = recovery.to_text(replace(order, sealed=""))
            await asyncio.to_thread(write, self._paths.withdrawn, recovery.pack(bare, ""), 0o600)
            self._paths.order.unlink()
            sync_folder(self._paths.order.parent)
            self._load()
            return True

    def _load(self) -> None:
        self.packed, self.newest = _read(self._paths.order)
        withdrawn = _read(self._paths.withdrawn)[1]
        self.withdrawn = withdrawn.epoch if withdrawn else 0
        if self.newest and self.newest.epoch <= self.withdrawn:
            # The power was cut while it was put aside.
            self.packed, self.newest = "", None


def _read(path: Path) -> tuple[str, Order | None]:
    try:
        packed = path.read_text()
        return packed, recovery.unpack(packed)[0]
    except (OSError, ValueError):
        return "", None
