"""What the Tab key offers."""

from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from test_cluster_state import make_cluster

from kmbuild.cli import kmbuild
from kmcluster import state


@pytest.fixture(autouse=True)
def clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters `lab` and `shop` of one node each, and one that was never made whole."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name in ("lab", "shop"):
        with state.locked(name, make=True):
            make_cluster(name).save()
    (tmp_path / "kubermesh/clusters/half").mkdir()


@pytest.mark.parametrize(
    ("words", "start", "expected"),
    [
        (["cluster", "status"], "", ["half", "lab", "shop"]),
        (["cluster", "bundle"], "l", ["lab"]),
        (["cluster", "power", "--name"], "s", ["shop"]),
        (["cluster", "power"], "", ["lab-1", "shop-1"]),
        (["cluster", "power", "--name", "shop"], "", ["shop-1"]),
        (["cluster", "disk", "lab-1"], "w", ["wipe"]),
        (["cluster", "logs"], "lab", ["lab-1"]),
        (["cluster", "up"], "ri", ["ring5"]),
        (["cluster", "cable", "lab-1"], "", ["lab-1", "shop-1"]),
        (["cluster", "topology", "show"], "gr", ["grid9"]),
        (["verify", "soak"], "two-", ["two-workers", "two-voters-gone"]),
    ],
)
def test_names_are_completed(words: list[str], start: str, expected: list[str]) -> None:
    found = ShellComplete(kmbuild, {}, "kmbuild", "_KMBUILD_COMPLETE").get_completions(words, start)
    assert [item.value for item in found] == expected


def test_a_topology_may_be_a_file() -> None:
    found = ShellComplete(kmbuild, {}, "kmbuild", "_KMBUILD_COMPLETE").get_completions(["cluster", "up"], "./my")
    assert [(item.value, item.type) for item in found] == [("./my", "file")]
