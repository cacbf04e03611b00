"""What a bench overrides, and how it is merged."""

import pytest

from kmplan import document
from kmplan.errors import UserError
from kmplan.files import write_if_changed
from kmplan.tuning import Tuning, merge, merge_arguments


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        ({}, {}, {}),
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": 1}}, {"a": 2}, {"a": 2}),
        ({"a": 2}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"d": False}}}, {"a": {"b": {"c": 1, "d": False}}}),
    ],
)
def test_trees_are_merged_deep(base: dict[str, object], over: dict[str, object], merged: dict[str, object]) -> None:
    before = repr((base, over))
    assert merge(base, over) == merged
    assert repr((base, over)) == before


def test_arguments_are_replaced_in_place_or_appended() -> None:
    command = ["/usr/bin/etcd", "--name=a", "--log-level=warn"]
    merged = merge_arguments(command, {"log-level": "info", "heartbeat-interval": "500"})
    assert merged == ["/usr/bin/etcd", "--name=a", "--log-level=info", "--heartbeat-interval=500"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"probe_scale": 0}, "tuning: probe_scale: Expected `float` >= 0.1"),
        ({"arguments": {"etdc": {}}}, "tuning: arguments: unknown component `etdc`, expected one of etcd, "),
        ({"kubelets": {}}, "tuning: Object contains unknown field `kubelets`"),
    ],
)
def test_a_wrong_tuning_is_refused_in_one_line(data: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        document.convert(data, Tuning, "tuning")
    assert str(caught.value).startswith(message)


def test_an_unchanged_file_is_not_written_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "file"
    assert write_if_changed(path, "one", 0o600)
    inode = path.stat().st_ino
    assert not write_if_changed(path, "one", 0o600)
    assert path.stat().st_ino == inode
    assert write_if_changed(path, "one", 0o644)
    assert write_if_changed(path, "two", 0o644)
