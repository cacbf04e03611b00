"""Logs of nodes and pods: what is read of them, and where reading goes on."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from kmcluster import inside, logs
from kmcluster.driver import Result
from kmcluster.guest import pod_logs
from kmcluster.state import Machine
from kmcluster.topology import Node
from kmplan.errors import UserError

ONE = Machine(name="one-1", number=1, node=Node())
DRIVER: Any = None


@pytest.fixture
def pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Kubelet's log folder with etcd, whose log was turned over once, and two of coredns."""
    monkeypatch.setattr(pod_logs, "ROOT", str(tmp_path))
    for name in (
        "kube-system_etcd-one-1_u1/etcd",
        "kube-system_coredns-a_u2/coredns",
        "kube-system_coredns-b_u3/coredns",
    ):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path / "kube-system_etcd-one-1_u1/etcd/0.log.20260101-000000", "2026-01-01T00:00:01.5Z stderr F first")
    write(tmp_path / "kube-system_etcd-one-1_u1/etcd/0.log", "2026-01-01T00:00:02.5Z stdout F second one")
    (tmp_path / "kube-system_etcd-one-1_u1/etcd/0.log.20250101-000000.gz").write_bytes(b"\x1f\x8b")
    write(tmp_path / "kube-system_coredns-b_u3/coredns/0.log", "2026-01-01T00:00:01Z stdout F b")
    write(tmp_path / "kube-system_coredns-a_u2/coredns/0.log", "2026-01-01T00:00:03Z stdout F a")
    return tmp_path


def write(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def texts(answer: dict[str, Any]) -> list[str]:
    return [line.split(" ", 1)[1] for line in answer["lines"]]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("etcd", ["etcd-one-1/etcd first", "etcd-one-1/etcd second one"]),
        ("kube-system/etcd-one-1", ["etcd-one-1/etcd first", "etcd-one-1/etcd second one"]),
        ("coredns", ["coredns-b/coredns b", "coredns-a/coredns a"]),
        ("coredns-a", ["coredns-a/coredns a"]),
    ],
)
def test_a_pod_is_meant_by_its_name_or_the_beginning_of_it(pods: Path, word: str, expected: list[str]) -> None:
    assert texts(pod_logs.main(word, 0, {})) == expected


def test_a_word_that_means_no_pod_is_answered_with_all_names(pods: Path) -> None:
    answer = pod_logs.main("nonsuch", 0, {})
    assert answer["lines"] == []
    assert answer["pods"] == ["kube-system/coredns-a", "kube-system/coredns-b", "kube-system/etcd-one-1"]


def test_reading_goes_on_behind_the_last_whole_line(pods: Path) -> None:
    path = pods / "kube-system_coredns-a_u2/coredns/0.log"
    places = pod_logs.main("coredns-a", 0, {})["places"]
    with path.open("a") as file:
        file.write("2026-01-01T00:00:04Z stdout F half")
    assert pod_logs.main("coredns-a", 0, places)["lines"] == []
    with path.open("a") as file:
        file.write(" and half\n")
    assert texts(pod_logs.main("coredns-a", 0, places)) == ["coredns-a/coredns half and half"]
    assert pod_logs.main("coredns-a", 0, places)["lines"] == []


def test_a_log_that_began_anew_is_read_from_its_beginning(pods: Path) -> None:
    path = pods / "kube-system_coredns-a_u2/coredns/0.log"
    places = pod_logs.main("coredns-a", 0, {})["places"]
    path.write_text("2026-01-01T00:00:05Z stdout F c\n")
    path.write_text("2026-01-01T00:00:05Z x F c\n")
    assert texts(pod_logs.main("coredns-a", 0, places)) == ["coredns-a/coredns c"]


def test_what_is_older_is_left_out(pods: Path) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    write(pods / "kube-system_etcd-one-1_u1/etcd/0.log", f"{now}.123456789Z stdout F new")
    assert texts(pod_logs.main("etcd", 60, {})) == ["etcd-one-1/etcd new"]


def test_a_node_without_pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_logs, "ROOT", str(tmp_path / "none"))
    assert pod_logs.main("etcd", 0, {}) == {"pods": [], "lines": [], "places": {}}


def test_the_journal_is_asked_for_units_and_goes_on_at_its_cursor() -> None:
    first = logs.journal_argv(("kmagent", "kubelet"), 600, "")
    assert first[-3:] == ["--unit=kmagent", "--unit=kubelet", "--since=-600s"]
    assert "--merge" in first
    assert logs.journal_argv(("kmagent",), 600, "s=1")[-2:] == ["--unit=kmagent", "--after-cursor=s=1"]


def test_a_cursor_is_no_line_of_the_journal() -> None:
    place = logs.Place()
    assert logs.take_cursor("a\nb\n-- cursor: s=9;i=3\n", place) == "a\nb\n"
    assert place.cursor == "s=9;i=3"
    assert logs.take_cursor("-- No entries --\n", place) == ""
    assert place.cursor == "s=9;i=3"


def test_what_programs_read_is_an_object_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        {"__REALTIME_TIMESTAMP": "1795957328230769", "_SYSTEMD_UNIT": "kmagent.service", "MESSAGE": "node 5 votes"},
        # What systemd says of a unit is its own.
        {
            "__REALTIME_TIMESTAMP": "1795957329000000",
            "_SYSTEMD_UNIT": "init.scope",
            "UNIT": "a.service",
            "MESSAGE": "on",
        },
        {"__REALTIME_TIMESTAMP": "1795957330000000", "SYSLOG_IDENTIFIER": "kernel", "MESSAGE": [107, 255, 10]},
        {"__REALTIME_TIMESTAMP": "1795957331000000", "MESSAGE": "one\u2028line"},
    ]
    fake(
        monkeypatch, "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries) + "-- cursor: s=9;i=3\n"
    )
    place = logs.Place()
    shown = logs.read(DRIVER, ONE, logs.Source(units=("kmagent",)), 0, place, as_json=True)
    assert [json.loads(line) for line in shown.splitlines()] == [
        {
            "time": "2026-11-29T13:02:08.230769+00:00",
            "node": "one-1",
            "unit": "kmagent.service",
            "message": "node 5 votes",
        },
        {"time": "2026-11-29T13:02:09+00:00", "node": "one-1", "unit": "a.service", "message": "on"},
        {"time": "2026-11-29T13:02:10+00:00", "node": "one-1", "unit": None, "message": "k\ufffd\n"},
        {"time": "2026-11-29T13:02:11+00:00", "node": "one-1", "unit": None, "message": "one\u2028line"},
    ]
    assert place.cursor == "s=9;i=3"

    answer = {"lines": ["2026-11-29T13:02:08.1Z etcd-one-1/etcd ready to serve"], "places": {"a": 3}}
    monkeypatch.setattr(inside, "run_script", lambda *_, **__: answer)
    shown = logs.read(DRIVER, ONE, logs.Source(pod="etcd"), 0, place, as_json=True)
    said = {"node": "one-1", "pod": "etcd-one-1/etcd", "message": "ready to serve"}
    assert json.loads(shown) == {"time": "2026-11-29T13:02:08.1Z", **said}


@pytest.mark.parametrize(
    ("what", "units"),
    [
        (None, logs.NODE_UNITS),
        ("agent", ("kmagent",)),
        ("babeld", ("kubermesh-babeld",)),
        ("kubelet", ("kubelet",)),
        ("var.mount", ("var.mount",)),
    ],
)
def test_known_units_are_not_looked_for_among_pods(what: str | None, units: tuple[str, ...]) -> None:
    assert logs.choose_source(DRIVER, ONE, what) == logs.Source(units=units)


@pytest.mark.parametrize(
    ("what", "entries", "expected"),
    [("etcd", "", logs.Source(pod="etcd")), ("systemd-journald", "a line\n", logs.Source(units=("systemd-journald",)))],
)
def test_another_word_is_a_pod_or_else_a_unit(
    monkeypatch: pytest.MonkeyPatch, what: str, entries: str, expected: logs.Source
) -> None:
    fake(monkeypatch, entries)
    assert logs.choose_source(DRIVER, ONE, what) == expected


def test_a_word_that_is_neither_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "-- No entries --\n")
    with pytest.raises(UserError, match=r"^one-1 has no unit and no pod nonsuch; pods: kube-system/etcd-one-1$"):
        logs.choose_source(DRIVER, ONE, "nonsuch")


def fake(monkeypatch: pytest.MonkeyPatch, entries: str) -> None:
    """A node with the pod etcd and a journal with these entries for any unit."""
    monkeypatch.setattr(inside, "run_script", lambda *_, **__: {"pods": ["kube-system/etcd-one-1"]})
    monkeypatch.setattr(inside, "run", lambda *_, **__: Result(0, entries, ""))
