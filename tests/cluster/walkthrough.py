"""docs/five-machines.md, word for word: its commands are called, and what it shows is looked for in what is shown."""

import re
import shlex
import subprocess
from pathlib import Path

from machines import kmbuild

NAME = "shop"
PAGE = Path(__file__).parents[2] / "docs/five-machines.md"
KEY = r"\b[0-9a-f]{4}(?: [0-9a-f]{4})+\b"
# What differs from cluster to cluster, as the page has it, and what may be in its place.
VARIES = {
    r"/dev/\w+ \([^()]*\)": r"/dev/\w+ \([^()]*\)",
    KEY: r"[0-9a-f]{4}(?: [0-9a-f]{4})+",
    r"\bfd[0-9a-f]{2}:[0-9a-f:]+": r"fd[0-9a-f]{2}:[0-9a-f:]+",
    r"\bm-[0-9a-f]{12}\b": r"m-[0-9a-f]{12}",
    r"\ben[op]\w+\b": r"eth\d+",
    r"\b\d+m\b": r"(?:\d+[smhd])+",
    r"\d+": r"\d+",
    r"\b(?:voter|standby|worker)\b": r"(?:voter|standby|worker)",
    r" +": r" +",
}
# What the list of nodes has shown of the machine that boots from the first one, in its order.
offered: list[str] = []
SPLIT = re.compile("|".join(f"({one})" for one in VARIES))


def step(number: int) -> list[list[str]]:
    """The lines of each block of a step, without those that are empty."""
    section = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    text = next(one for one in section if one.startswith(f"{number}. "))
    found = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [[line.strip() for line in block.splitlines() if line.strip()] for block in found]


def pattern(line: str) -> re.Pattern[str]:
    """What a line that the page shows may look like elsewhere."""
    kinds = list(VARIES.values())
    at, made = 0, ""
    for found in SPLIT.finditer(line):
        assert found.lastindex
        made += re.escape(line[at : found.start()]) + kinds[found.lastindex - 1]
        at = found.end()
    return re.compile(made + re.escape(line[at:]))


def missing(lines: list[str], shown: list[str]) -> list[str]:
    """The page's lines that were not shown in its order."""
    left, at = [], 0
    for line in lines:
        wanted = pattern(line)
        found = next((place for place in range(at, len(shown)) if wanted.fullmatch(shown[place].strip())), None)
        if found is None:
            left.append(line)
        else:
            at = found + 1
    return left


def called(line: str, home: Path, key: str = "") -> subprocess.CompletedProcess[str]:
    """Call a command of the page, with its cluster's directory below `home` and a machine's `key` in the place of the page's."""
    words = [re.sub(KEY, key, word) for word in shlex.split(line)]
    assert words.pop(0) == ".venv/bin/kmbuild", line
    return kmbuild(*(str(home / word) if word == NAME else word for word in words))
