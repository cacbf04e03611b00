"""Commands and topologies that the documentation shows are ones that the tool takes."""

import re
import shlex
from pathlib import Path

import click
import pytest

from kmbuild.cli import kmbuild
from kmcluster.topology import Topology, check
from kmplan import document

DOCS = Path(__file__).parents[2]
PAGES = sorted(path for path in (*DOCS.glob("*.md"), *DOCS.glob("docs/*.md")) if path.name != "reference.md")
TOOL = re.compile(r"^(?:sudo )?(?:\.venv/bin/)?kmbuild ")


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    lines = (line.partition("  #")[0] for block in blocks(page) for line in block.splitlines())
    return [TOOL.sub("", line) for line in lines if TOOL.match(line)]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_are_taken(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(re.split(r" [|>&]", line)[0])
        command: click.Command = kmbuild
        while isinstance(command, click.Group) and words:
            found = command.get_command(click.Context(command), words[0])
            assert found is not None, f"{page.name}: {line}: no command {words[0]}"
            command, words = found, words[1:]
        try:
            command.make_context(command.name, words).close()
        except click.exceptions.Exit:
            continue
        except click.UsageError as error:
            raise AssertionError(f"{page.name}: {line}: {error.format_message()}") from error


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "\nnodes:\n" in page.read_text()], ids=lambda page: page.name
)
def test_topologies_are_taken(page: Path) -> None:
    for block in blocks(page):
        if "\nnodes:\n" in block:
            found = document.parse(block, Topology, page.name)
            check(found, page.name)
