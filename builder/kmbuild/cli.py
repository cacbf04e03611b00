"""The command line."""

import sys

import click

from kmbuild.cache_command import cache
from kmbuild.cluster import cluster
from kmbuild.config_command import config
from kmbuild.flash import flash
from kmbuild.image import image
from kmbuild.init import init
from kmbuild.lock_command import lock
from kmbuild.nodes import nodes
from kmbuild.recover import recover
from kmbuild.verify import verify
from kmplan.errors import UserError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kubermesh", prog_name="kmbuild")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def kmbuild(debug: bool) -> None:
    """Build the Kubermesh image, and run clusters of it on this machine.

    Start with `kmbuild image`, then `kmbuild cluster up one`.
    """
    del debug  # main() looks for it


for command in (image, lock, config, cache, init, flash, cluster, nodes, recover, verify):
    kmbuild.add_command(command)


def main() -> None:
    """Run the command line; an expected failure is one line on standard error and status 1."""
    if "--debug" in sys.argv:
        kmbuild()
        return
    try:
        # What a command ends with by `click.exceptions.Exit` is returned here, not raised.
        sys.exit(kmbuild(standalone_mode=False))
    except UserError as error:
        sys.exit(f"kmbuild: {error}")
    except (click.Abort, KeyboardInterrupt):
        sys.exit("kmbuild: interrupted")
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
