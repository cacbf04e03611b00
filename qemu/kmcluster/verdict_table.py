"""The figures of a verdict as rows of a Markdown page, where those of scenarios that were not played this time stay."""

from collections.abc import Sequence
from statistics import median

from kmcluster.scenario import Scenario
from kmcluster.verdict import Run, Verdict, outages_of, quantile, silences_of, wholes_of
from kmplan.errors import UserError

BEGIN, END = "<!-- figures of kmbuild verify -->", "<!-- end of figures -->"
COLUMNS = (
    "scenario", "no write for (median, p95)", "allowed", "no service for (median, p95)", "allowed",
    "as before after (median, p95)", "runs", "failed", "writes lost", "driver, machine, date",
)  # fmt: skip
NONE = "-"
HEAD, RULE = f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"


def publish(page: str, verdict: Verdict, known: dict[str, Scenario]) -> str:
    """Return the page with the verdict's figures in their place, scenarios in the order of `known`.

    A row whose scenario is not known any more goes, one whose scenario could not be played stays as it was. Raises UserError
    when the page has no place for figures.
    """
    before, old, after = split(page)
    rows = {name_of(line): line for line in old.splitlines() if line.startswith("| <a id=")}
    played = {name: runs for name, runs in verdict.by_scenario.items() if any(run.is_played for run in runs)}
    rows |= {name: row(known[name], runs, verdict) for name, runs in played.items() if name in known}
    kept = [rows[name] for name in known if name in rows]
    return f"{before}{BEGIN}\n\n" + "\n".join([HEAD, RULE, *kept]) + f"\n\n{END}{after}"


def split(page: str) -> tuple[str, str, str]:
    """The page before the figures, these, and what comes after them."""
    before, begin, rest = page.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError("the page has no place for figures", f"put a line `{BEGIN}` and a line `{END}` into it")
    return before, old, after


def anchor(name: str) -> str:
    """What links on the page lead to."""
    return f'<a id="{name}"></a>'


def name_of(line: str) -> str:
    """The scenario of a row."""
    return line.split("`")[1]


def row(scenario: Scenario, runs: Sequence[Run], verdict: Verdict) -> str:
    """One scenario's figures over all of its runs."""
    cells = [
        f"{anchor(scenario.name)}[`{scenario.name}`](verify.md) {scenario.title}",
        spread(outages_of(runs)),
        f"{scenario.outage_s:g} s",
        spread(silences_of(runs)),
        f"{scenario.silence_s:g} s" if silences_of(runs) else NONE,
        spread(wholes_of(runs)),
        str(len(runs)),
        str(sum(bool(run.faults) for run in runs)),
        str(sum(run.lost for run in runs)),
        f"{verdict.driver}, {verdict.machine}, {verdict.date.split()[0]}",
    ]
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float]) -> str:
    """Median and 95th percentile, in seconds; a dash where nothing was measured."""
    return NONE if not values else f"{median(values):.1f} s, {quantile(values, 0.95):.1f} s"
