"""What several test modules begin with."""

from pathlib import Path

import pytest
from agent_recoveries import Node


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Node 3 of a cluster that may be begun anew."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    return Node(tmp_path)
