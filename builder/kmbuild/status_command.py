"""`kmbuild cluster status`: how a cluster is, as tables, a picture or JSON."""

import json
from pathlib import Path
from typing import Any

import click

from kmbuild.options import cluster_argument, json_option
from kmbuild.table import table
from kmcluster import picture, report, state
from kmplan.errors import UserError

NODE_HEADER = ("NODE", "ROLE", "POWER", "STATE", "LINKS", "COST", "ROUTES", "API", "PODS", "READY AFTER", "ADDRESS")
CABLE_HEADER = ("A", "B", "CABLE", "LINK", "COST A", "COST B", "SINCE")
NONE = "-"


@click.command()
@cluster_argument
@click.option("--svg", type=click.Path(path_type=Path), metavar="FILE", help="Draw a picture of it too.")
@json_option
def status(name: str | None, svg: Path | None, as_json: bool) -> None:
    """Show a cluster's nodes and cables.

    LINKS are those that are up, of all cables; COST is what the mesh counts a link (96: a perfect wire), the worst one's
    for a node, and for a cable as each end sees it.
    """
    described = report.describe(state.load(state.only_name(name)), ask_api=True)
    if svg:
        save(svg, picture.draw(described))
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    click.echo(f"{described['name']}: {described['driver']}, {described['accelerator']}, {described['image']}\n")
    click.echo(table([NODE_HEADER, *map(node_row, described["nodes"])]))
    if described["cables"]:
        click.echo("\n" + table([CABLE_HEADER, *map(cable_row, described["cables"])]))
    alarms = [f"{node['name']}: {node['alarm']}" for node in described["nodes"] if node["alarm"]]
    if alarms:
        click.echo("\n" + "\n".join(alarms))


def save(path: Path, text: str) -> None:
    """Write the picture."""
    try:
        path.write_text(text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def node_row(node: dict[str, Any]) -> list[str]:
    """One node's cells."""
    links, pods = node["links"], node["pods"]
    said = node["power"] == "on" and bool(node["conditions"])
    other = node["node"] not in (None, node["name"])
    return [
        f"{node['name']} ({node['node']})" if other else node["name"],
        node["role"] or NONE,
        node["power"] + "".join(f", disk {fault}" for fault in node["disk_faults"]),
        node["state"],
        f"{links['up']}/{links['total']}",
        show(links["worst_cost"]),
        show(node["routes"]),
        ("ok" if node["conditions"].get("api") else "no") if said else NONE,
        f"{pods['ready']}/{pods['total']}" if pods else NONE,
        f"{node['ready_after_s']:.1f} s" if node["ready_after_s"] is not None else NONE,
        node["addresses"][0] if node["addresses"] else NONE,
    ]


def cable_row(cable: dict[str, Any]) -> list[str]:
    """One cable's cells."""
    ends = [
        f"{node}:{port.partition(':')[2]}" for node, port in zip(cable["nodes"], (cable["a"], cable["b"]), strict=True)
    ]
    link = "up" if cable["up"] else "down"
    since = f"{cable['since_s']:.0f} s" if cable["since_s"] is not None else NONE
    return [*ends, describe_cable(cable), link, *map(show, cable["cost"]), since]


def describe_cable(cable: dict[str, Any]) -> str:
    """What was done to a cable."""
    there, back = cable["loss"]
    parts = [cable["state"]]
    parts += [f"{there:g} % / {back:g} %" if there != back else f"{there:g} %"] if there or back else []
    parts += [f"{cable['delay_ms']:g} ms"] if cable["delay_ms"] else []
    return ", ".join(parts)


def show(value: int | None) -> str:
    """A number, or that there is none."""
    return NONE if value is None else str(value)
