"""`kmbuild config`: look at the configuration."""

import json
from pathlib import Path

import click
import msgspec

from kmbuild import archive
from kmbuild import config as configuration
from kmbuild.options import config_option, json_option


@click.group()
def config() -> None:
    """Show, check and describe the configuration."""


@config.command()
@config_option
@json_option
def show(config_path: Path | None, as_json: bool) -> None:
    """Print the configuration with every key, also those left at their defaults."""
    loaded, place = configuration.load(config_path)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(loaded), indent=1))
        return
    click.echo(f"# from {place}")
    click.echo(configuration.as_yaml(loaded), nl=False)


@config.command()
@config_option
def check(config_path: Path | None) -> None:
    """Check the configuration: keys, types, values, and that there is a Debian archive."""
    loaded, place = configuration.load(config_path)
    archive.find_archives(loaded)
    click.echo(f"{place}: good")


@config.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    click.echo(json.dumps(configuration.schema(), indent=1))


@config.command()
def default() -> None:
    """Print the default configuration with its comments: a start for your own."""
    click.echo(configuration.shipped("default.yaml"), nl=False)
