"""What a person sees of a build: a live line per running stage on a terminal, plain lines elsewhere."""

import threading
import time

from rich.console import Console
from rich.live import Live
from rich.table import Table

PLAIN_CHANGES = 6


class Progress:
    """Reports stages as they start, go on and finish. Safe to call from several threads."""

    def __init__(self, console: Console, *, verbose: bool) -> None:
        self.console = console
        self.verbose = verbose
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        self._running: dict[str, tuple[float, str]] = {}
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._live.stop()

    def plan(self, stage: str, reasons: list[str]) -> None:
        """Say that a stage will be made, and with -v why."""
        if self.verbose:
            more = [f"… and {len(reasons) - PLAIN_CHANGES} more"] if len(reasons) > PLAIN_CHANGES else []
            for reason in [*reasons[:PLAIN_CHANGES], *more]:
                self._print(f"{stage}: {reason}")

    def note(self, text: str) -> None:
        """Say something that belongs to no stage."""
        self._print(text)

    def start(self, stage: str) -> None:
        """A stage starts."""
        with self._lock:
            self._running[stage] = (time.monotonic(), "")
        if not self.console.is_terminal:
            self._print(f"{stage}: started")

    def say(self, stage: str, text: str) -> None:
        """A stage tells what it does now."""
        with self._lock:
            if stage in self._running:
                self._running[stage] = (self._running[stage][0], text)
        if not self.console.is_terminal:
            self._print(f"{stage}: {text}")

    def finish(self, stage: str, seconds: float) -> None:
        """A stage is done."""
        self._forget(stage)
        self.seconds[stage] = seconds
        self._print(f"{stage}: done in {seconds:.1f} s")

    def fail(self, stage: str) -> None:
        """A stage failed; the error itself is shown by the caller."""
        self._forget(stage)
        self._print(f"{stage}: failed")

    def _forget(self, stage: str) -> None:
        with self._lock:
            self._running.pop(stage, None)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        with self._lock:
            for stage, (start, text) in self._running.items():
                table.add_row(stage, f"{time.monotonic() - start:5.0f} s", text)
        return table
