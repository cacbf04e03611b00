"""What the shell offers at the Tab key: names of clusters, of their nodes, of topologies and of scenarios."""

import click
from click.shell_completion import CompletionItem

from kmcluster import state
from kmcluster.scenarios import ALL
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


def complete_scenario(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """What `kmbuild verify` can play."""
    return beginning_with(incomplete, [*ALL])


def nodes(name: str) -> list[str]:
    """Names of a cluster's nodes; none where there is no such cluster."""
    try:
        return [machine.name for machine in state.load(name).machines]
    except UserError:
        return []


def beginning_with(start: str, names: list[str]) -> list[str]:
    """The names that begin so."""
    return [name for name in names if name.startswith(start)]
