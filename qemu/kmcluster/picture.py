"""A cluster as a picture: one SVG that needs nothing else, for light and dark pages."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from kmcluster.layout import Place, arrange

MARGIN, HEAD, FOOT, MIN_WIDTH = 36.0, 40.0, 58.0, 690.0
CARD_HEIGHT, CARD_MIN_WIDTH, LETTER = 60.0, 176.0, 7.3
# From card to card: room for two ports' names and what stands on the cable.
BETWEEN = 150.0
# How far apart several cables between the same nodes are drawn.
APART = 44.0

STYLE = """
svg { --paper: #ffffff; --ink: #1f2933; --faint: #66727f; --frame: #d5dbe1;
      --voter: #2f6fde; --standby: #0f8790; --worker: #5f7183; --none: #87929d;
      --good: #2e9e5b; --busy: #d99a00; --bad: #d43c3c; --slow: #8a5cd6; --off: #9aa5b1; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #12181f; --ink: #e6ebf0; --faint: #9aa7b4; --frame: #2b3641;
        --voter: #3a78e6; --standby: #148f98; --worker: #5d7084; --none: #4a5662;
        --good: #3fbf74; --busy: #e7b030; --bad: #ef6461; --slow: #a783ec; --off: #66727f; }
}
text { font-family: system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; fill: var(--ink);
       font-size: 12px; text-anchor: middle; }
.paper { fill: var(--paper); stroke: var(--frame); }
.title { font-size: 16px; font-weight: 600; text-anchor: start; }
.faint { fill: var(--faint); font-size: 11px; }
.start { text-anchor: start; } .end { text-anchor: end; }
.halo { paint-order: stroke; stroke: var(--paper); stroke-width: 5px; stroke-linejoin: round; }
.name { font-size: 13px; font-weight: 600; fill: #ffffff; } .about { font-size: 11px; fill: #ffffff; }
.gone .name, .gone .about { fill: var(--faint); }
.cable { fill: none; stroke-width: 3; stroke-linecap: round; }
.plugged { stroke: var(--good); } .lossy, .one-way { stroke: var(--busy); } .slow { stroke: var(--slow); }
.cut { stroke: var(--bad); stroke-dasharray: 2 8; } .down { stroke: var(--off); stroke-dasharray: 8 7; }
.voter { fill: var(--voter); } .standby { fill: var(--standby); } .worker { fill: var(--worker); }
.none { fill: var(--none); }
.ring { stroke-width: 3.5; } .hollow { fill: var(--paper); }
.ready { stroke: var(--good); } .busy { stroke: var(--busy); } .failed { stroke: var(--bad); }
.off { stroke: var(--off); stroke-dasharray: 5 5; fill: var(--paper); }
"""

LEGEND_ROLES = (("voter", "voter"), ("standby", "standby"), ("worker", "worker"), ("none", "no role"))
LEGEND_STATES = (("ready", "ready"), ("busy", "not ready"), ("failed", "failed"), ("off", "off or frozen"))
LEGEND_CABLES = (
    ("plugged", "link up"),
    ("lossy", "lossy or one-way"),
    ("slow", "slow"),
    ("cut", "cut"),
    ("down", "no link"),
)


@dataclass(frozen=True)
class Sheet:
    """Where everything is: the middles of the nodes' cards, and the sizes of a card and of the whole, in pixels."""

    places: list[Place]
    card: float
    width: float
    height: float


def draw(described: dict[str, Any]) -> str:
    """The picture of what `report.describe` says; of a cable's two costs the one seen from its end a is first."""
    nodes, cables = described["nodes"], described["cables"]
    ends = [(end_index(cable["a"]), end_index(cable["b"])) for cable in cables]
    sheet = lay_out([node["name"] for node in nodes], ends)
    size = f'width="{sheet.width:.0f}" height="{sheet.height:.0f}"'
    frame = f'width="{sheet.width - 1:.0f}" height="{sheet.height - 1:.0f}"'
    about = f"{described['driver']}, {described['accelerator']}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {sheet.width:.0f} {sheet.height:.0f}" {size} role="img">',
            f"<title>Cluster {escape(described['name'])}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="paper" x="0.5" y="0.5" {frame} rx="10"/>',
            label("title", 20, 29, described["name"]),
            label("faint end", sheet.width - 20, 28, about),
            *draw_cables(cables, ends, sheet),
            *(draw_node(node, place, sheet.card) for node, place in zip(nodes, sheet.places, strict=True)),
            *draw_legend(sheet.height),
            "</svg>\n",
        ]
    )


def end_index(port: str) -> int:
    """Place in the list of the node that a port `1:eth0` belongs to."""
    return int(port.partition(":")[0]) - 1


def lay_out(names: Sequence[str], ends: Sequence[tuple[int, int]]) -> Sheet:
    """Place the nodes in the middle of a sheet that is just big enough."""
    card = max(CARD_MIN_WIDTH, LETTER * max(map(len, names), default=0) + 24)
    places = [(x * (card + BETWEEN), y * (CARD_HEIGHT + BETWEEN)) for x, y in arrange(len(names), ends)]
    left, right = min(x for x, _ in places), max(x for x, _ in places)
    top, bottom = min(y for _, y in places), max(y for _, y in places)
    width = max(MIN_WIDTH, right - left + card + 2 * MARGIN)
    move_x, move_y = (width - left - right) / 2, HEAD + MARGIN + CARD_HEIGHT / 2 - top
    height = bottom + move_y + CARD_HEIGHT / 2 + MARGIN + FOOT
    return Sheet([(x + move_x, y + move_y) for x, y in places], card, width, height)


def draw_cables(cables: Sequence[dict[str, Any]], ends: Sequence[tuple[int, int]], sheet: Sheet) -> list[str]:
    """All cables, lines first; several between the same two nodes are bent apart."""
    together, seen = Counter(map(frozenset, ends)), Counter[frozenset[int]]()
    lines, labels = [], []
    for cable, pair in zip(cables, ends, strict=True):
        key = frozenset(pair)
        bend = APART * (seen[key] - (together[key] - 1) / 2)
        seen[key] += 1
        # The bend is to the same side, whichever way round the cable was drawn.
        curve = bent(sheet.places[pair[0]], sheet.places[pair[1]], bend if pair[0] < pair[1] else -bend)
        lines.append(draw_line(cable, curve))
        labels += label_cable(cable, curve, sheet.card)
    return lines + labels


def bent(a: Place, b: Place, bend: float) -> tuple[Place, Place, Place]:
    """A quadratic Bézier curve from a to b whose middle is `bend` beside the straight line: both ends, control between."""
    length = math.hypot(b[0] - a[0], b[1] - a[1]) or 1.0
    across = (-(b[1] - a[1]) / length * 2 * bend, (b[0] - a[0]) / length * 2 * bend)
    return a, ((a[0] + b[0]) / 2 + across[0], (a[1] + b[1]) / 2 + across[1]), b


def point(curve: tuple[Place, Place, Place], share: float) -> Place:
    """The point of a curve at a share of its way."""
    a, control, b = curve
    rest = 1 - share
    x, y = (rest * rest * a[axis] + 2 * rest * share * control[axis] + share * share * b[axis] for axis in (0, 1))
    return x, y


def draw_line(cable: dict[str, Any], curve: tuple[Place, Place, Place]) -> str:
    """A cable's line, with all that is known of the cable as its tooltip."""
    (ax, ay), (cx, cy), (bx, by) = curve
    there, back = cable["loss"]
    kind = cable["state"] if cable["up"] or cable["state"] == "cut" else "down"
    about = (
        f"{cable['a']} - {cable['b']}: {cable['state']}, loss {there:g} % / {back:g} %, delay {cable['delay_ms']:g} ms"
    )
    path = f"M{ax:.1f} {ay:.1f}Q{cx:.1f} {cy:.1f} {bx:.1f} {by:.1f}"
    return f'<path class="cable {escape(kind)}" d="{path}"><title>{escape(about)}</title></path>'


def label_cable(cable: dict[str, Any], curve: tuple[Place, Place, Place], card: float) -> list[str]:
    """The ports' names where the cable leaves the cards, and in the middle its state and costs."""
    parts = []
    for port, way in ((cable["a"], curve), (cable["b"], curve[::-1])):
        x, y = point(way, leaving(way, card))
        parts.append(label("faint halo", x, y + 4, port.partition(":")[2]))
    x, y = point(curve, 0.5)
    return [*parts, label("halo", x, y + 4, caption(cable))]


def leaving(curve: tuple[Place, Place, Place], card: float) -> float:
    """The share of the way at which a port's name is clear of the card that the curve begins in."""
    (x, y), *_ = curve
    for step in range(1, 40):
        here = point(curve, step / 100)
        if abs(here[0] - x) > card / 2 + 19 or abs(here[1] - y) > CARD_HEIGHT / 2 + 13:
            return step / 100
    return 0.4


def caption(cable: dict[str, Any]) -> str:
    """What stands on a cable: what is wrong with it, and its costs."""
    words = [] if cable["state"] == "plugged" else [cable["state"]]
    if cable["up"]:
        words.append(" / ".join(str(cost) for cost in dict.fromkeys(cable["cost"])))
    elif cable["state"] != "cut":
        words.append("no link")
    return " ".join(words)


def draw_node(node: dict[str, Any], place: Place, card: float) -> str:
    """One node: a card filled by its role and framed by its state."""
    x, y = place
    gone = node["power"] != "on"
    frame = "off" if gone else node["state"] if node["state"] in ("ready", "failed") else "busy"
    about = node["state"] if gone or not node["role"] else f"{node['role']}, {node['state']}"
    box = f'x="{x - card / 2:.1f}" y="{y - CARD_HEIGHT / 2:.1f}" width="{card:.1f}" height="{CARD_HEIGHT:g}" rx="9"'
    parts = [
        f"<title>{escape(node['message'] or about)}</title>",
        f'<rect class="ring {node["role"] or "none"} {frame}" {box}/>',
        label("name", x, y - 9, node["name"]),
        label("about", x, y + 7, about),
        label("about", x, y + 22, health(node)),
    ]
    return f'<g class="{"gone" if gone else "here"}">{"".join(parts)}</g>'


def health(node: dict[str, Any]) -> str:
    """What else the table has of a node: whether its API answers, its pods, and its routes; nothing of one that does not say."""
    pods, words = node.get("pods"), []
    if node["power"] == "on" and node.get("conditions"):
        words.append("api ok" if node["conditions"].get("api") else "no api")
    words += [f"{pods['ready']}/{pods['total']} pods"] if pods else []
    words += [f"{node['routes']} routes"] if node.get("routes") is not None else []
    return " · ".join(words)


def label(kind: str, x: float, y: float, text: str) -> str:
    """One line of text."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def draw_legend(height: float) -> list[str]:
    """What the colours mean, in two lines at the bottom."""
    parts, x, y = [], 20.0, height - 38
    for kind, word in (*LEGEND_ROLES, *((f"ring hollow {kind}", word) for kind, word in LEGEND_STATES)):
        parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y - 10:.1f}" width="18" height="12" rx="4"/>')
        parts.append(label("faint start", x + 25, y, word))
        x += 40 + 6.0 * len(word)
    x, y = 20.0, height - 15
    for kind, word in LEGEND_CABLES:
        parts.append(f'<path class="cable {kind}" d="M{x + 2:.1f} {y - 4:.1f}h22"/>')
        parts.append(label("faint start", x + 32, y, word))
        x += 47 + 6.0 * len(word)
    return parts
