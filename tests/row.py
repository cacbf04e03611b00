"""A figure of docs/benchmarks.md, and how it is taken."""

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kmplan.run import run

ROOT = Path(__file__).resolve().parent.parent
KMBUILD = [sys.executable, "-m", "kmbuild"]


@dataclass(frozen=True)
class Row:
    """One figure: what was measured, the target, the value (both as text), and the command."""

    what: str
    target: str
    measured: str
    command: str


def kmbuild(*arguments: str | Path, cwd: Path = ROOT) -> tuple[float, str]:
    """Run kmbuild; returns seconds of wall time and its output."""
    start = time.monotonic()
    done = run([*KMBUILD, *arguments], cwd=cwd)
    return time.monotonic() - start, done.stdout


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median, and the extremes when there are several."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} s" if len(values) == 1 else f"{middle} s ({low} to {high})"
