"""The reference page, made from the code: `python -m kmbuild.reference > docs/reference.md`."""

from collections.abc import Iterator
from typing import Any

import click

from kmbuild.cli import kmbuild
from kmbuild.config import Config
from kmcluster.topology import Topology
from kmplan import document
from kmplan.cluster import ClusterFile

HEAD = """\
# Reference

Made from the code by `python -m kmbuild.reference > docs/reference.md`; a test keeps it true. Task pages are beside it.
"""
FILES = (
    ("Configuration of the build: kubermesh.yaml", Config),
    ("Cluster file: cluster.yaml", ClusterFile),
    ("Topology file", Topology),
)


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its full name, groups before what is in them."""
    context = click.Context(group)
    for name in sorted(group.list_commands(context)):
        if command := group.get_command(context, name):
            yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


def command_help(path: str, command: click.Command) -> str:
    """Help text of a command, as `--help` prints it in 100 columns."""
    context = click.Context(command, info_name=path, max_content_width=100, terminal_width=100)
    context.help_option_names = command.context_settings.get("help_option_names", ["-h", "--help"])
    return f"### {path}\n\n```\n{command.get_help(context)}\n```\n"


def resolve(part: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Follow a JSON Schema reference."""
    reference = part.get("$ref", "")
    return definitions.get(reference.rpartition("/")[2], part) if reference else part


def describe_type(part: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Put a JSON Schema type into a few words."""
    part = resolve(part, definitions)
    if "anyOf" in part:
        return " or ".join(describe_type(choice, definitions) for choice in part["anyOf"])
    if "enum" in part:
        return " or ".join(f"`{choice}`" for choice in part["enum"])
    if part.get("type") == "array":
        return f"list of {describe_type(part.get('items') or {}, definitions)}"
    pattern = f" matching `{part['pattern']}`".replace("|", "\\|") if "pattern" in part else ""
    return f"{part.get('type', 'anything')}{pattern}"


def rows(part: dict[str, Any], definitions: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield a table row per key, nested ones by their path."""
    for name, value in part.get("properties", {}).items():
        target = resolve(value, definitions)
        place = f"{path}{name}"
        if target.get("properties"):
            yield from rows(target, definitions, f"{place}.")
            continue
        default = "required" if name in part.get("required", []) else f"`{value.get('default')}`"
        text = (value.get("description") or target.get("description") or "").replace("\n", " ")
        yield f"| `{place}` | {describe_type(value, definitions)} | {default} | {text} |"
        items = resolve(target.get("items") or {}, definitions)
        yield from rows(items, definitions, f"{place}[].")


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## Commands\n", command_help("kmbuild", kmbuild)]
    parts += [command_help(path, command) for path, command in commands(kmbuild, "kmbuild")]
    for title, kind in FILES:
        schema = document.schema(kind)
        definitions = schema.get("$defs", {})
        table = ["| key | type | default | |", "|---|---|---|---|", *rows(resolve(schema, definitions), definitions)]
        parts.append(f"## {title}\n\n" + "\n".join(table) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
