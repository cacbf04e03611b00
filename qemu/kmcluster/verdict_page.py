"""The verdict as one page that a person can read: what was done, what was felt of it, and when all was well again."""

from collections.abc import Sequence
from functools import partial
from html import escape
from statistics import median

from kmcluster.scenario import Scenario
from kmcluster.verdict import Mark, Run, Verdict, outages_of, quantile, silences_of, wholes_of

WIDTH, LEFT, RIGHT, TOP, BAR, FOOT = 760.0, 16.0, 16.0, 24.0, 16.0, 26.0
# The service's silences are a narrower line, below the one of writes.
SERVICE_BAR = 6.0
# A thin line below says from the first to the last write that failed.
ERRORS = 3.0
# How wide a letter of a mark is at most.
LETTER = 7.0
TICKS = (1, 2, 5, 10, 20, 30, 60, 120, 300)

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2933; --faint: #66727f; --line: #d5dbe1;
        --good: #2e9e5b; --bad: #d43c3c; --less: #d99a00;
        --pods: #7a4fbf; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #12181f; --ink: #e6ebf0; --faint: #9aa7b4; --line: #2b3641; --good: #3fbf74; --bad: #ef6461; --less: #e7b030;
          --pods: #b295ea; }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
       background: var(--paper); }
h1 { margin-bottom: 0; } h2 { margin: 2.2rem 0 0; font-size: 1.15rem; } p { margin: .3rem 0; } .faint { color: var(--faint); }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; }
td, th { text-align: right; padding: .2rem .5rem; border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
td { white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
.good { color: var(--good); } .bad { color: var(--bad); } .wrap { overflow-x: auto; }
svg { width: 100%; min-width: 42rem; height: auto; display: block; }
svg text { font: 11px system-ui, sans-serif; fill: var(--faint); }
.whole { fill: var(--good); opacity: .35; } .waiting { fill: var(--less); opacity: .45; } .out { fill: var(--bad); }
.silent { fill: var(--pods); } .failed { fill: var(--bad); }
.key i { display: inline-block; width: 1.6em; height: .8em; margin: 0 .3em 0 1em; } .key i:first-child { margin-left: 0; }
i.out { background: var(--bad); } i.silent { background: var(--pods); } i.waiting { background: var(--less); opacity: .6; }
i.failed { background: var(--bad); height: .25em; vertical-align: middle; }
i.whole { background: var(--good); opacity: .5; }
.axis, .mark { stroke: var(--faint); stroke-width: 1; } .mark { stroke-dasharray: 3 3; }
"""

LEGEND = (
    '<p class="key"><i class="out"></i> no write is acknowledged <i class="failed"></i> from the first to the last that failed '
    '<i class="silent"></i> a service does not answer '
    '<i class="waiting"></i> something is not as before yet <i class="whole"></i> as before; from when the fault began</p>'
)


def page(verdict: Verdict, known: dict[str, Scenario], earlier: Verdict | None = None) -> str:
    """The page, which needs no other file; with `earlier` each figure stands beside what it was then."""
    runs = verdict.by_scenario
    before = earlier.by_scenario if earlier else {}
    failed = len(verdict.failed)
    outcome = f'<span class="bad">{failed} failed</span>' if failed else '<span class="good">all held</span>'
    left_out = f"<p>No time was left for: {escape(', '.join(verdict.left_out))}</p>" if verdict.left_out else ""
    lines = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>kmbuild verify, {escape(verdict.date)}</title><style>{STYLE}</style>",
        f"<h1>{len(verdict.runs)} runs of {len(runs)} scenarios: {outcome}</h1>",
        f'<p class="faint">{escape(verdict.date)}, {escape(verdict.machine)}, {escape(verdict.driver)}, image '
        f"{escape(verdict.roothash[:16])}, seed {verdict.seed}</p>",
        left_out,
        f'<div class="wrap">{table(runs, before)}</div>',
        LEGEND,
        *(section(name, of_one, known) for name, of_one in runs.items()),
        "</html>\n",
    ]
    return "\n".join(lines)


def table(runs: dict[str, list[Run]], before: dict[str, list[Run]]) -> str:
    """All scenarios in a line each."""
    head = [
        "scenario",
        "runs",
        "failed",
        "outage, median",
        "p95",
        "service, median",
        "p95",
        "as before, median",
        "p95",
        "lost",
    ]
    rows = ["".join(f"<th>{name}</th>" for name in head)]
    for name, of_one in runs.items():
        bad = sum(bool(run.faults) for run in of_one)
        old = before.get(name, [])
        cells = [
            f'<a href="#{name}">{name}</a>',
            str(len(of_one)),
            f'<span class="{"bad" if bad else "good"}">{bad}</span>',
            *(cell for of in (outages_of, silences_of, wholes_of) for cell in spread(of(of_one), of(old))),
            str(sum(run.lost for run in of_one)),
        ]
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def spread(now: Sequence[float], old: Sequence[float]) -> list[str]:
    """Median and 95th percentile, and what they were before; dashes where nothing was measured."""
    if not now:
        return ["-", "-"]
    return [
        f"{value(now):.1f} s" + (f' <span class="faint">({value(old):.1f})</span>' if old else "")
        for value in (median, partial(quantile, share=0.95))
    ]


def section(name: str, runs: Sequence[Run], known: dict[str, Scenario]) -> str:
    """One scenario: every run as a timeline, and what did not hold."""
    title = known[name].title if name in known else ""
    lines = [f'<h2 id="{escape(name)}">{escape(name)}</h2><p class="faint">{escape(title)}</p>']
    for run in runs:
        lines.append(f'<div class="wrap">{timeline(run)}</div><p class="faint">{escape(describe(run))}</p>')
        lines += [f'<p class="bad">{escape(fault)}</p>' for fault in run.faults]
        lines += [f'<p class="good">undermined, and noticed: {escape(fault)}</p>' for fault in run.noticed]
        if run.bundle:
            lines.append(f'<p class="faint">everything that tells of it: {escape(run.bundle)}</p>')
    return "\n".join(lines)


def timeline(run: Run) -> str:
    """One run from left to right: when writes were not acknowledged, when the cluster was not whole, and what was done."""
    end = max(run.whole_s, run.undone_s, 1.0) * 1.05
    scale = (WIDTH - LEFT - RIGHT) / end

    def bar(kind: str, since: float, until: float, top: float = TOP, height: float = BAR) -> str:
        x, width = LEFT + since * scale, max(0.0, until - since) * scale
        return f'<rect class="{kind}" x="{x:.1f}" y="{top}" width="{width:.1f}" height="{height}"/>'

    height = TOP + BAR + FOOT
    parts = [f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(describe(run))}">']
    parts += [bar("waiting", 0, run.whole_s), bar("whole", run.whole_s, end)]
    parts += [bar("out", one.since_s, one.until_s, height=BAR - SERVICE_BAR) for one in run.outages]
    parts += [bar("silent", one.since_s, one.until_s, TOP + BAR - SERVICE_BAR, SERVICE_BAR) for one in run.silences]
    tick = next((one for one in TICKS if end / one <= 12), TICKS[-1])
    for number in range(int(end // tick) + 1):
        x = LEFT + number * tick * scale
        parts.append(f'<line class="axis" x1="{x:.1f}" y1="{TOP + BAR}" x2="{x:.1f}" y2="{TOP + BAR + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{TOP + BAR + 17}" text-anchor="middle">{number * tick} s</text>')
    parts += [bar("failed", run.errors[0], run.errors[-1], TOP + BAR, ERRORS)] if run.errors else []
    parts += [line(one, scale) for one in run.marks] + [words(one, scale) for one in spaced(run, scale)]
    return "".join([*parts, "</svg>"])


def spaced(run: Run, scale: float) -> list[Mark]:
    """The marks that have room for their words: the first of those that would stand on each other."""
    found: list[Mark] = []
    free = 0.0
    for one in run.marks:
        begin, end = extent(one, scale)
        if not found or begin >= free:
            found.append(one)
            free = end
    return found


def extent(one: Mark, scale: float) -> tuple[float, float]:
    """From where to where a mark's words reach: those near the end stand before it."""
    x = LEFT + max(0.0, one.at_s) * scale
    width = LETTER * len(one.what)
    return (x - width, x) if x > WIDTH * 2 / 3 else (x, x + width)


def line(mark: Mark, scale: float) -> str:
    """A line where something was done."""
    x = LEFT + max(0.0, mark.at_s) * scale
    return f'<line class="mark" x1="{x:.1f}" y1="{TOP - 4}" x2="{x:.1f}" y2="{TOP + BAR}"/>'


def words(mark: Mark, scale: float) -> str:
    """What it was."""
    x = LEFT + max(0.0, mark.at_s) * scale
    anchor = "end" if x > WIDTH * 2 / 3 else "start"
    return f'<text x="{x:.1f}" y="{TOP - 8}" text-anchor="{anchor}">{escape(mark.what)}</text>'


def describe(run: Run) -> str:
    """A run in words."""
    felt = "; ".join(
        f"no {what} from {one.since_s:.1f} s to {one.until_s:.1f} s"
        for what, outages in (("write", run.outages), ("service", run.silences))
        for one in outages
    )
    errors = f" (from {run.errors[0]:.1f} s to {run.errors[1]:.1f} s)" if run.errors else ""
    counts = f"{run.acked} writes acknowledged, {run.failed} failed{errors}, {run.lost} lost"
    elected = f"; elections of etcd: {run.elections}" if run.elections else ""
    moved = f"; pods evicted from {', '.join(run.evicted)}" if run.evicted else ""
    return f"{felt or 'no outage'}; as before after {run.whole_s:.1f} s; {counts}{elected}{moved}; seed {run.seed}"
