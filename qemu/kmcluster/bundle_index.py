"""The page that a bundle begins with: how every node is, what was collected, and what was not, and why."""

from collections.abc import Sequence
from html import escape
from typing import Any, Protocol

from kmcluster import picture

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
td, th { text-align: left; padding: .15rem 1.2rem .15rem 0; vertical-align: top; }
td.size { text-align: right; font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; }
"""


class Part(Protocol):
    """A part of a bundle, as `kmcluster.bundle.Part`."""

    name: str
    items: dict[str, str]
    missing: dict[str, str]


def page(described: dict[str, Any], parts: Sequence[Part]) -> str:
    """The page; links lead to the files beside it."""
    name = escape(described["name"])
    lines = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Bundle of {name}</title><style>{STYLE}</style>',
        f"<h1>{name}</h1><p>{escape(described['driver'])}, {escape(described['accelerator'])}, "
        f"image {escape(described['roothash'][:16])}</p>",
        picture.draw(described),
        "<h2>Nodes</h2><table>",
        *(node_row(node) for node in described["nodes"]),
        "</table>",
    ]
    missing = [(part.name, name, reason) for part in parts for name, reason in part.missing.items()]
    if missing:
        lines += ["<h2>Not collected</h2><table>", *(missing_row(*one) for one in missing), "</table>"]
    for part in (part for part in parts if part.items):
        lines += [f"<h2>{escape(part.name or 'cluster')}</h2><table>"]
        lines += [item_row(part.name, name, text) for name, text in part.items.items()] + ["</table>"]
    return "\n".join([*lines, "</html>\n"])


def node_row(node: dict[str, Any]) -> str:
    """A node in one line."""
    links = node["links"]
    words = [node["power"], node["role"] or "no role", node["state"], f"{links['up']} of {links['total']} links"]
    words += [f"disk {fault}" for fault in node["disk_faults"]] + ([node["message"]] if node["message"] else [])
    return f"<tr><th>{escape(node['name'])}</th><td>{escape(', '.join(words))}</td></tr>"


def missing_row(part: str, name: str, reason: str) -> str:
    """What is not there, and why."""
    return f"<tr><td>{escape(f'{part}/{name}'.lstrip('/'))}</td><td>{escape(reason)}</td></tr>"


def item_row(part: str, name: str, text: str) -> str:
    """A file of the bundle: its name as a link, and its size in bytes."""
    path = f"{part}/{name}".lstrip("/")
    size = len(text.encode(errors="replace"))
    return f'<tr><td><a href="{escape(path)}">{escape(name)}</a></td><td class="size">{size:,}</td></tr>'
