"""What the shell offers at the Tab key: names of clusters, of their nodes and of topologies."""

import click
from click.shell_completion import CompletionItem

from kmcluster import state
from kmcluster.topology import shipped_names
from kmplan.errors import UserError


def complete_cluster(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Clusters on this machine."""
    return beginning_with(incomplete, state.cluster_names())


def complete_node(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Nodes of the cluster that --name says, or of all."""
    name = context.params.get("name")
    return beginning_with(
        incomplete, [node for one in ([name] if name else state.cluster_names()) for node in nodes(one)]
    )


def complete_topology(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped topologies; for what is none of them the shell offers files."""
    names = beginning_with(incomplete, shipped_names())
    return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="file")]


def nodes(name: str) -> list[str]:
    """Names of a cluster's nodes; none where there is no such cluster."""
    try:
        return [machine.name for machine in state.load(name).machines]
    except UserError:
        return []


def beginning_with(start: str, names: list[str]) -> list[str]:
    """The names that begin so."""
    return [name for name in names if name.startswith(start)]
