"""Bundles: written whatever state a cluster is in, and without keys."""

import base64
import json
import socket
import subprocess
import tarfile
import time
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_cluster_state import make_cluster

from kmbuild.cluster import cluster as command
from kmcluster import bundle, state
from kmcluster.driver import Result
from kmcluster.guest import collect
from kmcluster.state import Cluster, Machine
from kmplan.errors import UserError

PEM = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIB\nAAAA==\n-----END EC PRIVATE KEY-----"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "kubermesh/clusters"


@pytest.fixture
def saved(home: Path) -> Cluster:
    """Cluster `one`, which is off, with a console."""
    cluster = make_cluster()
    with state.locked("one", make=True):
        cluster.save()
    folder = cluster.machine_folder(cluster.machines[0])
    folder.mkdir(parents=True)
    (folder / "console.log").write_text("Hello\n")
    return cluster


class Answering:
    """A driver whose machine is on and whose collector answers this."""

    def __init__(self, text: str, code: int = 0) -> None:
        self.result = Result(code, text, "Traceback\nValueError: broken\n" if code else "")

    def power(self, machine: Machine) -> str:
        return "on"

    def execute(self, machine: Machine, argv: Sequence[str], stdin: bytes, timeout_s: float) -> Result:
        assert argv[:5] == ["python3", "-S", "-E", "-", "live"]
        assert timeout_s > float(argv[5])
        return self.result


def read(path: Path) -> dict[str, str]:
    """Texts of an archive, by their path below its one folder."""
    with tarfile.open(path) as archive:
        members = {member.name: archive.extractfile(member) for member in archive}
        assert len({name.split("/")[0] for name in members}) == 1
        return {name.split("/", 1)[1]: file.read().decode() for name, file in members.items() if file}


def test_a_bundle_of_a_dead_cluster_says_what_it_lacks_and_why(saved: Cluster, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["bundle", "one", "--output", str(tmp_path / "b.tar.gz")])
    assert result.output == f"{tmp_path}/b.tar.gz\n"
    assert (tmp_path / "b.tar.gz").stat().st_mode & 0o777 == 0o600
    files = read(tmp_path / "b.tar.gz")
    assert files["nodes/one-1/console.log"] == "Hello\n"
    assert json.loads(files["cluster.json"])["name"] == "one"
    assert json.loads(files["status.json"])["nodes"][0]["power"] == "off"
    assert files["picture.svg"].startswith("<svg")
    page = files["index.html"]
    assert "<th>one-1</th><td>off, no role, off, 0 of 0 links</td>" in page
    assert "kubernetes/nodes.txt</td>" in page
    assert "nodes/one-1/all that is inside</td>" in page
    linked = {line.split('href="')[1].split('"')[0] for line in page.splitlines() if 'href="' in line}
    assert linked == set(files) - {"index.html"}


def test_a_folder_gets_a_bundle_by_cluster_and_time(saved: Cluster, tmp_path: Path) -> None:
    path = bundle.collect(saved, tmp_path)
    assert path.parent == tmp_path
    assert path.name.startswith("one-2")
    assert path.name.endswith(".tar.gz")


def test_a_bundle_that_cannot_be_written_is_one_line_and_leaves_nothing(saved: Cluster, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/b.tar.gz").mkdir()
    (tmp_path / "full/b.tar.gz/x").touch()
    with pytest.raises(UserError, match="No such file or directory"):
        bundle.collect(saved, tmp_path / "none/b.tar.gz")
    with pytest.raises(OSError, match="directory"):
        bundle.write(tmp_path / "full/b.tar.gz", "one", {"a": "b"})
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["b.tar.gz"]


def test_what_a_node_collects_is_unpacked(saved: Cluster) -> None:
    found = {"items": {"journal.txt": "line\n"}, "missing": {"babeld.txt": "gone"}}
    text = base64.b64encode(zlib.compress(json.dumps(found).encode())).decode()
    driver: Any = Answering(text)
    part = bundle.collect_node(saved, driver, saved.machines[0])
    assert part.items == {"console.log": "Hello\n", "journal.txt": "line\n"}
    assert part.missing == {"babeld.txt": "gone"}


@pytest.mark.parametrize(("driver", "reason"), [(Answering("", 1), "ValueError: broken"), (Answering("%%"), "")])
def test_a_node_that_answers_nonsense_leaves_the_rest(saved: Cluster, driver: Any, reason: str) -> None:
    part = bundle.collect_node(saved, driver, saved.machines[0])
    assert part.items == {"console.log": "Hello\n"}
    assert reason in part.missing["all that is inside"]


def test_keys_are_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "094db6dd6d775a43d8884204f214384ad79adc716e188a9d7d255ddd07f6518a"
    (tmp_path / "mesh-keys.json").write_text(json.dumps({"1": key}))
    (tmp_path / "encryption.key").write_text("c2VjcmV0c2VjcmV0c2VjcmV0\n")
    monkeypatch.setattr(
        collect, "SECRETS", [f"{tmp_path}/{name}" for name in ("mesh-keys.json", "encryption.key", "no")]
    )
    text = f"key id eth0 type blake2s128 value abcdef0123456789abcd\na {key} b c2VjcmV0c2VjcmV0c2VjcmV0 c\n{PEM}\nvalue 12\n"
    masked = collect.mask(text, collect.known_secrets())
    assert masked == "key id eth0 type blake2s128 value MASKED\na MASKED b MASKED c\nMASKED\nvalue 12\n"


def test_no_file_with_keys_is_collected() -> None:
    paths = {*collect.STATE_FILES.values(), *collect.RUN_FILES.values()}
    assert not [path for path in paths if path.endswith(".key") or "pki" in path or path in collect.SECRETS]


def test_a_job_that_hangs_or_fails_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = {
        "fails": partial(collect.read_end, "/nonexistent"),
        "hangs": partial(collect.run, ["sleep", "60"]),
        "works": lambda _timeout_s: "fine",
    }
    monkeypatch.setattr(collect, "jobs", lambda live: jobs)
    monkeypatch.setattr(collect, "ITEM_S", 0.2)
    start = time.monotonic()
    found = collect.collect(live=True, budget_s=30)
    assert time.monotonic() - start < 10
    assert found["items"] == {"works": "fine"}
    assert found["missing"].keys() == {"fails", "hangs"}
    assert collect.collect(live=True, budget_s=0)["missing"].keys() == jobs.keys()


def test_what_somebody_has_to_answer_is_asked_last_and_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etcd/member").mkdir(parents=True)
    log = "/var/log/pods/kube-system_etcd-one-1_u1/etcd/0.log"
    monkeypatch.setattr(collect, "STATE", str(tmp_path))
    monkeypatch.setattr(collect, "RUN", str(tmp_path))
    monkeypatch.setattr(collect, "ASKED_S", 0.1)
    monkeypatch.setattr(collect.glob, "glob", lambda _: [log])
    names = list(collect.jobs(live=True))
    assert names[:2] == ["journal.txt", "pods/kube-system_etcd-one-1_etcd_0.log"]
    assert names[-3:] == ["babeld.txt", *collect.ETCD_QUESTIONS]
    start = time.monotonic()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/babeld.sock")
        silent.listen()
        with pytest.raises(TimeoutError):
            collect.ask_babeld(60)
    assert time.monotonic() - start < 30


def test_a_command_that_fails_is_shown_with_its_complaint() -> None:
    text = collect.run(["sh", "-c", "echo out; echo err >&2; exit 3"], 10)
    assert text == "out\nerr\n(status 3)\n"


def test_the_collector_runs_as_it_is_carried() -> None:
    script = Path(collect.__file__).read_bytes()
    argv = ["python3", "-S", "-E", "-", "disk", "0"]
    done = subprocess.run(argv, input=script, capture_output=True, check=True)
    found = json.loads(zlib.decompress(base64.b64decode(done.stdout)))
    assert found["missing"]["journal.txt"] == "no time was left"
