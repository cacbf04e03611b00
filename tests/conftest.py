"""Marks the tests of each folder, and refuses those that need root without it."""

import os
from pathlib import Path

import pytest

NEED_ROOT = {"build", "cluster", "image"}
MARKED = NEED_ROOT | {"browser"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in MARKED:
            item.add_marker(folder)


def pytest_runtest_setup(item: pytest.Item) -> None:
    marks = NEED_ROOT & {mark.name for mark in item.iter_markers()}
    if marks and os.geteuid() != 0:
        pytest.fail(f"{marks.pop()} tests need root: call pytest with sudo, or only tests/unit", pytrace=False)
