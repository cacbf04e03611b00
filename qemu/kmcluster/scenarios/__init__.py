"""The catalogue of faults: every scenario by its name."""

from collections.abc import Sequence

from kmcluster.scenario import Scenario
from kmcluster.scenarios import links, nodes, processes
from kmplan.errors import UserError

ALL: dict[str, Scenario] = {one.name: one for one in (*processes.SCENARIOS, *links.SCENARIOS, *nodes.SCENARIOS)}
TAGS = sorted({tag for one in ALL.values() for tag in one.tags})


def choose(names: Sequence[str], tags: Sequence[str]) -> list[Scenario]:
    """The scenarios with these names or one of these tags, all when neither is given; UserError for what there is not."""
    unknown = [name for name in names if name not in ALL] + [tag for tag in tags if tag not in TAGS]
    if unknown:
        raise UserError(f"{', '.join(unknown)}: no such scenario or tag", "`kmbuild verify --list` shows them")
    chosen = [one for one in ALL.values() if one.name in names or set(tags) & set(one.tags)]
    return chosen if names or tags else list(ALL.values())
