"""Options that several commands share, and what they all check first."""

import os
from pathlib import Path

import click

from kmbuild.completion import complete_cluster, complete_node
from kmplan.errors import UserError

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration; without it ./kubermesh.yaml, if there is one.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
name_option = click.option(
    "--name",
    "name",
    metavar="CLUSTER",
    shell_complete=complete_cluster,
    help="Which cluster; may be left out if there is one.",
)
cluster_argument = click.argument("name", required=False, shell_complete=complete_cluster)
node_argument = click.argument("node", shell_complete=complete_node)


def require_root(what: str) -> None:
    """Refuse in one line when not called as root."""
    if os.geteuid() != 0:
        raise UserError(f"{what} needs root", "call it with sudo")
