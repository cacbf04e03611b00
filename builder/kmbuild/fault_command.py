"""`kmbuild cluster disk`, `stick` and `clock`: what an accident, or a hand, does to a machine."""

import json
from datetime import UTC, datetime
from typing import Any

import click

from kmbuild.options import json_option, name_option, node_argument
from kmcluster import bench, disk_faults, state
from kmcluster import clock as clocks
from kmcluster.disk_faults import Outcome

# `-1h` is a shift and no request for help.
shift_settings = {"ignore_unknown_options": True, "help_option_names": ["--help"]}


@click.command()
@node_argument
@click.argument("action", type=click.Choice(disk_faults.ACTIONS))
@click.option("--file", metavar="PATH", help="What to corrupt, in /var.  [default: etcd's newest log]")
@name_option
@json_option
def disk(node: str, action: str, file: str | None, name: str | None, as_json: bool) -> None:
    """Damage a node's disk.

    wipe: empty it, while the node is off. corrupt: overwrite bytes of a file. fill: leave no byte free. errors: let every
    write fail. repair: undo fill and errors.
    """
    outcome = disk_faults.change(state.only_name(name), node, action, file)
    click.echo(json.dumps(outcome.describe(), indent=2) if as_json else tell(outcome))


def tell(outcome: Outcome) -> str:
    """The outcome in one line."""
    facts = outcome.facts
    what = {
        "wipe": "the disk is empty",
        "corrupt": f"{facts.get('file')} was overwritten at {', '.join(map(str, facts.get('offsets', [])))}",
        "fill": f"/var is full, with {facts.get('bytes', 0) / 2**30:.1f} GiB of ballast",
        "errors": "every write to the disk fails",
        "repair": "the disk is good",
    }[outcome.action]
    hint = f"; {facts['hint']}" if "hint" in facts else ""
    return f"{outcome.node}: {what}{hint}"


@click.command("stick")
@node_argument
@click.argument("action", type=click.Choice(("plug", "pull")))
@name_option
@json_option
def plug_stick(node: str, action: str, name: str | None, as_json: bool) -> None:
    """Plug a node's stick in, or pull it out; for nodes with `boot: stick` in the topology."""
    changed = bench.stick(state.only_name(name), node, action == "plug")
    machine = changed.machine(node)
    if as_json:
        click.echo(json.dumps({"node": machine.name, "stick": machine.stick}, indent=2))
        return
    click.echo(f"{machine.name}: the stick is {'in' if machine.stick else 'out'}")


@click.command(context_settings=shift_settings)
@node_argument
@click.argument("shift", metavar="+DURATION|-DURATION")
@name_option
@json_option
def clock(node: str, shift: str, name: str | None, as_json: bool) -> None:
    """Put a node's clock ahead of this machine's (+1h) or behind it (-30m, -1y), or right (+0s).

    qemu only, as containers have this machine's clock.
    """
    changed = clocks.shift(state.only_name(name), node, shift)
    click.echo(json.dumps(changed, indent=2) if as_json else tell_clock(changed))


def tell_clock(changed: dict[str, Any]) -> str:
    """The change in one line."""
    before, after = (datetime.fromtimestamp(changed[key], UTC).strftime("%F %T") for key in ("before", "after"))
    return f"{changed['node']}: from {before} to {after} UTC"
