"""Durations as a user writes them: `90s`, `30m`, `1h`, `2d`, `1y`."""

import re

from kmplan.errors import UserError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
PATTERN = re.compile(rf"([0-9]{{1,6}})([{''.join(UNITS)}])")


def parse_duration(text: str) -> int:
    """Return the seconds; a year has 365 days. Raises UserError."""
    found = PATTERN.fullmatch(text)
    if found is None:
        raise UserError(f"{text}: not a duration", "write a number and one of s, m, h, d, w, y, such as 30m")
    return int(found[1]) * UNITS[found[2]]
