"""The command line."""

import importlib
import sys

import click

from kmplan.errors import UserError

# Where each command is.
MODULES = {
    "image": "kmbuild.image",
    "lock": "kmbuild.lock_command",
    "config": "kmbuild.config_command",
    "cache": "kmbuild.cache_command",
    "init": "kmbuild.init",
    "flash": "kmbuild.flash",
    "cluster": "kmbuild.cluster",
    "nodes": "kmbuild.nodes",
    "recover": "kmbuild.recover",
    "verify": "kmbuild.verify",
}


class Commands(click.Group):
    """Imports a command when it is called, so that none waits for what only another one needs."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """All names."""
        return sorted({*MODULES, *self.commands})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of that name, if there is one; if not, all are there to choose a suggestion from."""
        for one in [name] if name in MODULES else MODULES:
            if one not in self.commands:
                self.add_command(getattr(importlib.import_module(MODULES[one]), one))
        return super().get_command(context, name)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kubermesh", prog_name="kmbuild")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def kmbuild(debug: bool) -> None:
    """Build the Kubermesh image, and run clusters of it on this machine.

    Start with `kmbuild image`, then `kmbuild cluster up one`.
    """
    del debug  # main() looks for it


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
