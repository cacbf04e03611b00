"""`kmbuild cluster topology`: shipped topologies, and new ones."""

import json

import click

from kmbuild.completion import complete_topology
from kmbuild.options import json_option
from kmcluster import random_mesh
from kmcluster.topology import find_topology, read_topology, shipped_names


@click.group()
def topology() -> None:
    """Show and make topologies."""


@topology.command("list")
@json_option
def list_topologies(as_json: bool) -> None:
    """List the topologies that come with the tool."""
    read = {name: read_topology(find_topology(name)) for name in shipped_names()}
    rows = [{"name": name, "nodes": len(one.nodes), "cables": len(one.cables)} for name, one in read.items()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['name']:12} {row['nodes']:>2} node(s), {row['cables']:>2} cable(s)")


@topology.command()
@click.argument("name", shell_complete=complete_topology)
def show(name: str) -> None:
    """Print a topology file; NAME is a file or a shipped one's name."""
    path = find_topology(name)
    read_topology(path)
    click.echo(path.read_text(), nl=False)


@topology.command("random")
@click.option("--nodes", type=int, required=True, help="How many machines.")
@click.option("--degree", type=int, required=True, help="How many cables each has.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same mesh comes of the same number.")
def draw(nodes: int, degree: int, seed: int) -> None:
    """Print a random connected mesh: a ring and chords."""
    edges = random_mesh.draw(nodes, degree, seed)
    click.echo(f"# Random mesh: {nodes} nodes with {degree} cables each, seed {seed}.")
    click.echo(random_mesh.to_yaml(nodes, edges), nl=False)
