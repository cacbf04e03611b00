"""`kmbuild cluster cable` and `recable`: what a hand does to the cables."""

import json
from typing import Any

import click

from kmbuild.completion import complete_node
from kmbuild.options import json_option, name_option
from kmcluster import cabling, state


@click.command()
@click.argument("a", shell_complete=complete_node)
@click.argument("b", shell_complete=complete_node)
@click.argument("action", type=click.Choice(cabling.ACTIONS))
@click.option(
    "--loss",
    "loss_percent",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help=f"Lost each way.  [lossy: {cabling.LOSS_PERCENT:g}]",
)
@click.option(
    "--delay",
    "delay_ms",
    type=click.FloatRange(0, 10000),
    metavar="MS",
    help=f"Added each way.  [slow: {cabling.DELAY_MS:g}]",
)
@name_option
@json_option
def cable(
    a: str, b: str, action: str, loss_percent: float | None, delay_ms: float | None, name: str | None, as_json: bool
) -> None:
    """Cut the cable between nodes A and B, make it bad, or plug it in as new.

    A and B are nodes, or ports (1:eth0) when two nodes have several cables. one-way: what goes from A to B is lost.
    """
    show(cabling.change(state.only_name(name), a, b, action, loss_percent, delay_ms).describe(), as_json)


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@name_option
@json_option
def recable(source: str, target: str, name: str | None, as_json: bool) -> None:
    """Pull a cable out of port FROM and put that end into the free port TO (ports are written 1:eth0)."""
    show(cabling.move(state.only_name(name), source, target).describe(), as_json)


def show(described: dict[str, Any], as_json: bool) -> None:
    """Print one cable."""
    click.echo(json.dumps(described, indent=2) if as_json else cable_line(described))


def cable_line(described: dict[str, Any]) -> str:
    """One cable in one line."""
    there, back = described["loss"]
    parts = [f"{described['a']} - {described['b']}  {described['state']}"]
    parts += [f"loss {there:g} % / {back:g} %"] if there or back else []
    parts += [f"delay {described['delay_ms']:g} ms"] if described["delay_ms"] else []
    return "  ".join(parts)
