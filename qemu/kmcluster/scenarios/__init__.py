"""The catalogue of faults: every scenario by its name."""

import re
from collections.abc import Sequence

from kmcluster.scenario import Scenario
from kmcluster.scenarios import links, nodes, papers, processes, virtual
from kmplan.errors import UserError

GROUPS = (processes.SCENARIOS, links.SCENARIOS, papers.SCENARIOS, nodes.SCENARIOS, virtual.SCENARIOS)
ALL: dict[str, Scenario] = {one.name: one for group in GROUPS for one in group}
TAGS = sorted({tag for one in ALL.values() for tag in one.tags})


def choose(names: Sequence[str], tags: Sequence[str], driver: str) -> list[Scenario]:
    """The scenarios for a driver with these names or one of these tags, all of its when neither is given.

    Raises UserError for what there is not, and for a name whose scenario takes another driver.
    """
    unknown = [name for name in names if name not in ALL] + [tag for tag in tags if tag not in TAGS]
    if unknown:
        raise UserError(f"{', '.join(unknown)}: no such scenario or tag", "`kmbuild verify --list` shows them")
    others = [name for name in names if ALL[name].driver != driver]
    if others:
        raise UserError(f"{', '.join(others)}: not with {driver}", f"use --driver {ALL[others[0]].driver}")
    fitting = [one for one in ALL.values() if one.driver == driver]
    chosen = [one for one in fitting if one.name in names or set(tags) & set(one.tags)]
    return chosen if names or tags else fitting


def part_of(scenarios: Sequence[Scenario], part: str) -> list[Scenario]:
    """Every M-th scenario from the Nth on, as `part` says, N/M; so that all are played in M parts. UserError when it is none."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", part)
    number, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= parts:
        raise UserError(f"{part}: no part of a whole", "write 1/3, 2/3 or 3/3")
    return list(scenarios[number - 1 :: parts])
