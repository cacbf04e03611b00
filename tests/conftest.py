"""Marks the tests of each folder, refuses those that need root without it, and tells of a failure at once."""

import os
import sys
from pathlib import Path

import pytest

NEED_ROOT = {"build", "cluster", "image"}
MARKED = NEED_ROOT | {"browser"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in MARKED:
            item.add_marker(folder)
    if turn := os.environ.get("KUBERMESH_TURN"):
        marks = {item: item.get_closest_marker("turn") for item in items}
        later = [item for item, mark in marks.items() if mark and int(turn) not in mark.args]
        items[:] = [item for item in items if item not in later]
        config.hook.pytest_deselected(items=later)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Show what failed where: whoever ends a run that takes too long never sees pytest's own closing lines."""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        print(f"\n{report.nodeid}: {crash.message if crash else report.longreprtext}", file=sys.__stdout__, flush=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    marks = NEED_ROOT & {mark.name for mark in item.iter_markers()}
    if marks and os.geteuid() != 0:
        pytest.fail(f"{marks.pop()} tests need root: call pytest with sudo, or only tests/unit", pytrace=False)
