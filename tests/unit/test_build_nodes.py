"""`kmbuild nodes` against a server that answers as the Kubernetes API does, and the custom resource it works on."""

import base64
import copy
import json
import socket
import ssl
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import jsonschema
import msgspec
import pytest
import yaml
from click.testing import CliRunner, Result
from test_cluster_state import make_cluster

from kmbuild import meshnode, nodes
from kmbuild.cli import kmbuild
from kmbuild.meshnode import MeshNode
from kmcluster import state
from kmplan import pki
from kmplan.errors import UserError

ADDONS = Path(__file__).parents[2] / "overlays/node/addons"
COLLECTION = "/apis/kubermesh.io/v1/meshnodes"
A, B, C = "a1b2c3d4" * 8, "b1b2c3d4" * 8, "a1b2ffff" * 8
UUID = "4c4c4544-0042-3510-8052-b4c04f4e3132"

Object = dict[str, Any]


def machine(fingerprint: str, phase: str = "Pending", number: int = 0, role: str = "", **status: object) -> Object:
    """A MeshNode as the API gives it."""
    given = {"number": number, "name": f"shop-{number}", "role": role or "worker"} if number else {}
    return {
        "apiVersion": "kubermesh.io/v1",
        "kind": "MeshNode",
        "metadata": {"name": f"m-{fingerprint[:12]}", "uid": str(uuid.uuid4()), "resourceVersion": "7"},
        "spec": {"decision": ""},
        "status": {"phase": phase, "fingerprint": fingerprint, "firstSeen": "2026-11-23T10:00:00Z", **given, **status},
    }


class FakeApi(ThreadingHTTPServer):
    """The paths of the API server that `kmbuild nodes` asks, and an agent.

    Each question for the list is followed by one step of the agent's: after a patch, that is `react`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: list[Object] = []
        self.patches: list[Object] = []
        self.refusals: list[tuple[int, str]] = []
        self.react: Callable[[Object], None] = lambda item: None
        self.steps: list[Callable[[], None]] = []

    def find(self, name: str) -> Object | None:
        return next((item for item in self.objects if item["metadata"]["name"] == name), None)


class Handler(BaseHTTPRequestHandler):
    server: FakeApi

    def do_GET(self) -> None:
        if self.server.refusals:
            status, message = self.server.refusals.pop(0)
            self.answer(status, {"kind": "Status", "message": message})
        elif self.path == COLLECTION:
            answer = {"kind": "MeshNodeList", "metadata": {}, "items": copy.deepcopy(self.server.objects)}
            for step in self.server.steps[:1]:
                self.server.steps.remove(step)
                step()
            self.answer(200, answer)
        else:
            self.answer(404, {"kind": "Status", "message": "the path is wrong"})

    def do_PATCH(self) -> None:
        path, _, query = self.path.partition("?")
        folder, _, name = path.rpartition("/")
        item = self.server.find(name) if folder == COLLECTION else None
        patch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Content-Type"] != "application/merge-patch+json" or query != "fieldManager=kmbuild":
            self.answer(415, {"kind": "Status", "message": "not a merge patch"})
        elif item is None or item["metadata"]["uid"] != patch["metadata"]["uid"]:
            self.answer(404, {"kind": "Status", "message": f'meshnodes.kubermesh.io "{name}" not found'})
        else:
            self.server.patches.append({name: patch["spec"]})
            item["spec"].update(patch["spec"])
            self.server.steps.append(lambda: self.server.react(item))
            self.answer(200, item)

    def answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(nodes, "POLL_S", 0.02)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def directory(api: FakeApi, tmp_path: Path) -> Path:
    return make_directory(tmp_path / "shop", f"http://127.0.0.1:{api.server_port}")


def make_directory(path: Path, server: str, cluster: Object | None = None, user: Object | None = None) -> Path:
    path.mkdir()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "shop", "cluster": {"server": server, **(cluster or {})}}],
        "users": [{"name": "admin", "user": user or {}}],
        "contexts": [{"name": "shop", "context": {"cluster": "shop", "user": "admin"}}],
        "current-context": "shop",
    }
    (path / "admin.kubeconfig").write_text(json.dumps(config))
    return path


def run(directory: Path, command: str, *words: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(kmbuild, ["nodes", command, "--cluster", str(directory), *words], input=stdin)


def good(directory: Path, command: str, *words: str) -> Result:
    result = run(directory, command, *words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def refused(directory: Path, command: str, *words: str) -> str:
    result = run(directory, command, *words)
    assert isinstance(result.exception, UserError), (result.output, result.exception)
    assert "\n" not in str(result.exception)
    return str(result.exception)


def admit(item: Object) -> None:
    item["status"].update(phase="Admitted", number=3, name="shop-3", role="worker")


# --- list


def test_list_shows_who_waits_first_then_nodes_by_number(api: FakeApi, directory: Path) -> None:
    ready = [{"type": "Ready", "status": "True"}, {"type": "Admitted", "status": "True"}]
    ready[1]["lastTransitionTime"] = "2026-11-23T12:30:00+01:00"
    api.objects = [
        machine(B, "Admitted", 10),
        machine(C, "Denied"),
        machine(A, uuid=UUID, via="shop-1 enp1s0"),
        machine("c" * 64, "Admitted", 2, "voter", conditions=ready),
    ]
    lines = good(directory, "list").stdout.splitlines()
    assert lines[0].split() == list(nodes.HEADER)
    assert lines[1].split() == [
        *("-", "m-a1b2c3d4a1b2", "-", "Pending", "a1b2", "c3d4", "a1b2", "c3d4", UUID),
        *("shop-1", "enp1s0", "2026-11-23", "10:00", "-"),
    ]
    assert lines[2].split() == [
        *("2", "shop-2", "voter", "Admitted", *["cccc"] * 4, "-", "-"),
        *("2026-11-23", "11:30", "yes"),
    ]
    assert [line.split()[1] for line in lines[3:]] == ["shop-10", "m-a1b2ffffa1b2"]
    assert len({line.index(word) for line, word in zip(lines, ["PHASE", "Pending", "Admitted"], strict=False)}) == 1


def test_list_gives_the_objects_as_json(api: FakeApi, directory: Path) -> None:
    disk = {"name": "sda", "size_bytes": 256060514304, "model": "X"}
    api.objects = [machine(A, disks=[disk], ports=[{"name": "enp1s0", "mac": "02:00:00:00:00:01"}])]
    (shown,) = json.loads(good(directory, "list", "--json").stdout)
    assert shown["status"] == api.objects[0]["status"]
    assert shown["spec"] == {"decision": "", "wipe": False}
    assert shown["metadata"]["name"] == "m-a1b2c3d4a1b2"


def test_an_empty_cluster_says_so(directory: Path) -> None:
    done = good(directory, "list")
    assert (done.stdout, done.stderr) == ("", "no machine has asked to be admitted yet\n")
    assert json.loads(good(directory, "list", "--json").stdout) == []


def test_machines_that_wait_are_listed_in_the_order_they_came() -> None:
    late = machine(A, firstSeen="2026-11-23T10:00:01Z")
    early = machine(B, firstSeen="2026-11-23T10:00:00Z")
    parsed = msgspec.convert([late, machine(C, "Removing", 1), early], list[MeshNode])
    names = [node.metadata.name for node in sorted(parsed, key=meshnode.order)]
    assert names == ["m-b1b2c3d4b1b2", "m-a1b2c3d4a1b2", "m-a1b2ffffa1b2"]


# --- which node is meant


KNOWN = msgspec.convert([machine(A, uuid=UUID), machine(B, "Admitted", 3), machine(C, "Admitted", 12)], list[MeshNode])


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("m-a1b2c3d4a1b2", A),
        (UUID, A),
        (UUID.upper(), A),
        ("a1b2c", A),
        ("A1B2:C3D4:a1b2", A),
        ("a1b2 c3", A),
        (A, A),
        ("shop-3", B),
        ("3", B),
        ("b1b2", B),
        ("12", C),
        ("a1b2-ffff", C),
    ],
)
def test_a_node_is_found_by(word: str, meant: str) -> None:
    assert [node.status.fingerprint for node in meshnode.choose([word], KNOWN)] == [meant]


@pytest.mark.parametrize("word", ["", "-", ":", "0", "shop", "a1b", "1", "2", "4c4c4544", "c3d4", "m-", f"{A}0"])
def test_a_word_that_names_no_node(word: str) -> None:
    with pytest.raises(UserError) as raised:
        meshnode.choose(["3", word], KNOWN)
    assert str(raised.value) == (
        f"{word}: no such node; there are: m-a1b2c3d4a1b2 (Pending, a1b2 c3d4), shop-3 (Admitted, b1b2 c3d4), "
        "shop-12 (Admitted, a1b2 ffff)"
    )


def test_a_word_that_may_mean_several() -> None:
    with pytest.raises(UserError) as raised:
        meshnode.choose(["a1b2"], KNOWN)
    assert str(raised.value) == (
        "a1b2: may be any of m-a1b2c3d4a1b2 (Pending, a1b2 c3d4), shop-12 (Admitted, a1b2 ffff); "
        "give a name, or more of the fingerprint"
    )


def test_a_number_that_begins_another_fingerprint_is_not_guessed() -> None:
    known = msgspec.convert([machine(A, "Admitted", 1234), machine("1234" * 16)], list[MeshNode])
    with pytest.raises(UserError, match="1234: may be any of"):
        meshnode.choose(["1234"], known)
    assert meshnode.choose(["shop-1234"], known) == known[:1]


def test_a_node_that_is_named_twice_is_meant_once() -> None:
    assert meshnode.choose(["3", "shop-3", "12", "b1b2"], KNOWN) == [KNOWN[1], KNOWN[2]]


def test_of_many_nodes_an_error_names_some() -> None:
    known = msgspec.convert([machine(f"{n:064x}", "Admitted", n) for n in range(1, 201)], list[MeshNode])
    with pytest.raises(UserError, match=r"shop-10 \(Admitted, 0000 0000\), and 190 more$"):
        meshnode.choose(["nonsuch"], known)


# --- approve, deny, remove


def test_approve_waits_until_the_machine_is_a_node(api: FakeApi, directory: Path) -> None:
    api.objects, api.react = [machine(A), machine(B)], admit
    done = good(directory, "approve", "a1b2:c3d4")
    assert api.patches == [{"m-a1b2c3d4a1b2": {"decision": "Approved"}}]
    assert done.stdout == "shop-3 is admitted: node 3, worker\n"
    first, *progress = done.stderr.splitlines()
    fingerprint = " ".join(["a1b2 c3d4"] * 4)
    assert first == f"m-a1b2c3d4a1b2 has the fingerprint {fingerprint}: compare it with the machine's console"
    assert [line.split()[2:] for line in progress] == [["m-a1b2c3d4a1b2", "Pending"], ["m-a1b2c3d4a1b2", "Admitted"]]


def test_a_machine_without_an_empty_disk_wipes_one_only_with_a_word_of_its_own(api: FakeApi, directory: Path) -> None:
    why = "no disk to install to: /dev/sda (WD, 1000 GB) holds ntfs"
    api.objects = [machine(A, blocked=why)]
    assert good(directory, "list").stdout.splitlines()[-1] == f"m-a1b2c3d4a1b2: {why}"
    assert refused(directory, "approve", "a1b2") == f"m-a1b2c3d4a1b2: {why}; --wipe lets it wipe one of these disks"
    assert api.patches == []
    api.react = lambda item: item["status"].update(phase="Installing")
    done = good(directory, "approve", "a1b2", "--wipe")
    assert api.patches == [{"m-a1b2c3d4a1b2": {"decision": "Approved", "wipe": True}}]
    assert "wipes a disk and installs itself" in done.stdout


def test_machines_that_boot_from_a_node_are_shown_and_whose_the_cluster_is(api: FakeApi, directory: Path) -> None:
    offers = [{"port": "enp2s0", "message": "fetching, 40 %"}]
    api.objects = [machine(A, "Admitted", 1, offers=offers)]
    assert good(directory, "list").stdout.splitlines()[-1] == "shop-1 enp2s0: fetching, 40 %"
    pair = pki.create_authority("shop")
    (directory / "pki").mkdir()
    (directory / "pki/node-ca.crt").write_text(pair.certificate)
    (directory / "cluster.yaml").write_text("version: 1\nname: shop\nprefix: fd12:3456:789a::/48\n")
    fingerprint = pki.fingerprint(pair.certificate)
    shown = good(directory, "list").stderr.splitlines()[-1]
    assert shown == "cluster shop, fingerprint " + " ".join(fingerprint[at : at + 4] for at in range(0, 32, 4))


def test_approve_all_takes_those_that_wait(api: FakeApi, directory: Path) -> None:
    api.objects, api.react = [machine(A), machine(B, "Denied"), machine(C)], admit
    shown = json.loads(good(directory, "approve", "--all", "--json").stdout)
    assert [list(patch) for patch in api.patches] == [["m-a1b2c3d4a1b2"], ["m-a1b2ffffa1b2"]]
    assert [node["status"]["phase"] for node in shown] == ["Admitted", "Admitted"]
    again = good(directory, "approve", "--all")
    assert (again.stdout, again.stderr) == ("", "no machine waits\n")


def test_approving_a_node_again_changes_nothing(api: FakeApi, directory: Path) -> None:
    api.objects = [machine(A, "Admitted", 3), machine(B, "Admitted", 4)]
    api.objects[1]["spec"]["decision"] = "Approved"
    done = good(directory, "approve", "3", "4")
    assert (done.stdout, done.stderr) == ("shop-3 is admitted already\nshop-4 is admitted already\n", "")
    assert api.patches == []


def test_a_removal_that_has_not_begun_can_be_taken_back(api: FakeApi, directory: Path) -> None:
    api.objects = [machine(A, "Admitted", 3)]
    api.objects[0]["spec"]["decision"] = "Removed"
    assert good(directory, "approve", "3").stdout == "shop-3 is admitted: node 3, worker\n"
    assert api.patches == [{"m-a1b2c3d4a1b2": {"decision": "Approved"}}]


def test_a_denied_machine_can_be_approved(api: FakeApi, directory: Path) -> None:
    api.objects, api.react = [machine(A, "Denied")], admit
    api.objects[0]["spec"]["decision"] = "Denied"
    assert good(directory, "approve", "a1b2").stdout == "shop-3 is admitted: node 3, worker\n"


def test_deny_waits_for_the_denial(api: FakeApi, directory: Path) -> None:
    api.objects, api.react = [machine(A)], lambda item: item["status"].update(phase="Denied")
    assert good(directory, "deny", "a1b2").stdout == "m-a1b2c3d4a1b2 is denied\n"
    assert api.patches == [{"m-a1b2c3d4a1b2": {"decision": "Denied"}}]
    assert good(directory, "deny", "a1b2").stdout == "m-a1b2c3d4a1b2 is denied already\n"
    assert len(api.patches) == 1


def test_remove_waits_until_the_object_is_gone(api: FakeApi, directory: Path) -> None:
    def leave(item: Object) -> None:
        item["status"]["phase"] = "Removing"
        api.steps.append(lambda: api.objects.remove(item))

    api.objects, api.react = [machine(A, "Admitted", 1, "voter"), machine(B, "Admitted", 2)], leave
    done = good(directory, "remove", "2")
    assert done.stdout == "shop-2 is removed\n"
    assert [line.split()[3] for line in done.stderr.splitlines()] == ["Admitted", "Removing", "gone"]
    assert api.patches == [{"m-b1b2c3d4b1b2": {"decision": "Removed"}}]


def test_a_removed_machine_that_asks_again_at_once_counts_as_gone(api: FakeApi, directory: Path) -> None:
    def ask_again(item: Object) -> None:
        api.objects[:] = [machine(A)]

    api.objects, api.react = [machine(A, "Denied")], ask_again
    assert good(directory, "remove", "a1b2").stdout == "m-a1b2c3d4a1b2 is removed\n"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody types."""
    monkeypatch.setattr(nodes, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))


def test_approve_asks_on_a_terminal_whether_somebody_has_compared(
    api: FakeApi, directory: Path, terminal: None
) -> None:
    api.objects = [machine(A), machine(B)]
    asked = run(directory, "approve", "a1b2", "--no-wait", stdin="n\n")
    assert (asked.exit_code, api.patches) == (1, [])
    assert "compare it with the machine's console\nIs it the same? [y/N]" in asked.stderr
    one_by_one = run(directory, "approve", "--all", "--no-wait", stdin="y\nn\n")
    assert (one_by_one.exit_code, one_by_one.stderr.count("Is it the same?"), api.patches) == (1, 2, [])
    # Who types what the console shows has compared.
    assert "Is it the same?" not in good(directory, "approve", A[:16].upper(), "--no-wait").stderr
    assert "Is it the same?" in run(directory, "approve", B[:15], "--no-wait", stdin="y\n").stderr
    assert "Is it the same?" not in good(directory, "approve", "--all", "--yes", "--no-wait").stderr


def test_remove_asks_on_a_terminal(api: FakeApi, directory: Path, terminal: None) -> None:
    api.objects = [machine(A, "Admitted", 2), machine(B, "Denied")]
    api.react = lambda item: api.objects.remove(item)
    asked = run(directory, "remove", "2", "b1b2", stdin="n\n")
    assert (asked.exit_code, api.patches) == (1, [])
    assert asked.stderr.startswith("Remove shop-2 (worker), m-b1b2c3d4b1b2 (Denied)? [y/N]")
    assert run(directory, "remove", "2", stdin="y\n").exit_code == 0
    assert good(directory, "remove", "b1b2", "--yes").stdout == "m-b1b2c3d4b1b2 is removed\n"


def test_the_last_voters_are_not_removed(api: FakeApi, directory: Path) -> None:
    api.objects = [machine(A, "Admitted", 1, "voter"), machine(B, "Admitted", 2, "voter"), machine(C, "Admitted", 3)]
    assert refused(directory, "remove", "1", "2") == (
        "shop-1, shop-2: no other node votes in etcd, the cluster would be lost; admit another node first"
    )
    assert api.patches == []
    assert good(directory, "remove", "1", "--no-wait").stdout == "shop-1: decision is Removed\n"


def test_an_unknown_node_changes_nothing_at_all(api: FakeApi, directory: Path) -> None:
    api.objects = [machine(A)]
    assert refused(directory, "approve", "a1b2", "b1b2").startswith("b1b2: no such node; there are: m-a1b2c3d4a1b2 ")
    assert api.patches == []


def test_what_makes_no_sense_is_refused(api: FakeApi, directory: Path) -> None:
    api.objects = [machine(A, "Admitted", 1), machine(B, "Removing", 2)]
    assert refused(directory, "deny", "1") == "shop-1 is in phase Admitted; `kmbuild nodes remove` takes a node out"
    assert refused(directory, "approve", "2") == "shop-2 is in phase Removing; wait until it has asked again"
    assert api.patches == []


@pytest.mark.parametrize("words", [["approve"], ["approve", "--all", "1"], ["deny"], ["remove"]], ids=" ".join)
def test_a_command_wants_to_know_which_node(words: list[str], directory: Path) -> None:
    assert run(directory, *words).exit_code == 2


def test_when_time_is_over_it_says_what_was_seen_last(api: FakeApi, directory: Path) -> None:
    condition = {"type": "Admitted", "status": "False", "message": "no free number"}
    older = {"type": "Ready", "status": "False", "message": "old", "lastTransitionTime": "2026-11-23T10:00:00Z"}
    api.objects = [machine(A, conditions=[{**condition, "lastTransitionTime": "2026-11-23T10:00:01Z"}, older])]
    assert refused(directory, "approve", "a1b2", "--timeout", "0.1") == (
        "not admitted after 0.1 s: m-a1b2c3d4a1b2 (Pending: no free number); "
        "the decision is kept; see `kmbuild nodes list`"
    )
    api.react = admit
    assert refused(directory, "approve", "a1b2", "--timeout", "0.1").startswith("not admitted")
    assert len(api.patches) == 1, "what was said already is not said again"


def test_without_waiting_it_ends_at_once(api: FakeApi, directory: Path) -> None:
    api.objects = [machine(A)]
    (shown,) = json.loads(good(directory, "approve", "a1b2", "--no-wait", "--json").stdout)
    assert (shown["spec"]["decision"], shown["status"]["phase"]) == ("Approved", "Pending")


def test_an_api_that_goes_away_meanwhile_is_waited_for(api: FakeApi, directory: Path) -> None:
    def stumble(item: Object) -> None:
        api.refusals = [(503, "etcd has no leader"), (503, "etcd has no leader")]
        admit(item)

    api.objects, api.react = [machine(A)], stumble
    done = good(directory, "approve", "a1b2")
    assert done.stdout == "shop-3 is admitted: node 3, worker\n"
    assert done.stderr.count("503 etcd has no leader") == 1


def test_a_machine_that_another_user_removed_is_not_waited_for(api: FakeApi, directory: Path) -> None:
    api.objects, api.react = [machine(A)], lambda item: api.objects.remove(item)
    assert refused(directory, "approve", "a1b2") == (
        "m-a1b2c3d4a1b2 is gone: somebody removed it; wait until it has asked again"
    )


# --- the way to the API


def test_an_api_server_that_refuses_is_one_line(api: FakeApi, directory: Path) -> None:
    server = f"http://127.0.0.1:{api.server_port}"
    api.refusals = [(403, "User admin cannot list"), (500, "etcd is away"), (404, ""), (400, "odd\nrequest")]
    hints = ("use that cluster's own admin.kubeconfig; it is good for a year", "try again in a minute")
    assert refused(directory, "list") == f"{server}: 403 User admin cannot list; {hints[0]}"
    assert refused(directory, "list") == f"{server}: 500 etcd is away; {hints[1]}"
    assert refused(directory, "list") == f"{server}: knows no MeshNodes; a cluster that just starts does in a minute"
    assert refused(directory, "list") == f"{server}: 400 request; see `kmbuild nodes list`"


def test_an_answer_that_is_no_list_of_mesh_nodes_is_one_line(api: FakeApi, directory: Path) -> None:
    api.objects = [machine(A, number="three")]
    assert refused(directory, "list") == (
        f"http://127.0.0.1:{api.server_port}: MeshNodes: items[0].status.number: Expected `int`, got `str`"
    )


def test_an_api_that_is_not_there_is_one_line(api: FakeApi, directory: Path) -> None:
    port = api.server_port
    api.shutdown()
    api.server_close()
    assert refused(directory, "list") == (
        f"http://127.0.0.1:{port}: no answer of the API server: Connection refused; "
        "is a control-plane node on, and this machine cabled to the mesh?"
    )


def test_an_api_that_does_not_answer_is_given_up(
    api: FakeApi, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meshnode, "REQUEST_S", 0.2)
    asked: list[str] = []

    def hang(handler: Handler) -> None:
        asked.append(handler.path)
        threading.Event().wait(1)

    monkeypatch.setattr(Handler, "do_GET", hang)
    assert "no answer of the API server: nothing for 0.2 s; " in refused(directory, "list")
    assert asked == [COLLECTION], "asking again is left to the user"


def test_a_connection_that_ends_at_once_may_be_tried_again(tmp_path: Path) -> None:
    def end_one(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.recv(4096)
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=end_one, args=[listener])
        thread.start()
        directory = make_directory(tmp_path / "shop", f"https://127.0.0.1:{listener.getsockname()[1]}")
        result = run(directory, "list")
        thread.join()
    assert isinstance(result.exception, meshnode.NoAnswerError)
    assert "no answer of the API server: " in str(result.exception)


def test_an_api_of_another_cluster_is_not_trusted(api: FakeApi, tmp_path: Path) -> None:
    serve_tls(api, pki.create_authority("shop cluster-ca"), tmp_path)
    other = base64.b64encode(pki.create_authority("other cluster-ca").certificate.encode()).decode()
    trust = {"certificate-authority-data": other, "tls-server-name": "kubernetes"}
    message = refused(make_directory(tmp_path / "other", f"https://127.0.0.1:{api.server_port}", trust), "list")
    assert "CERTIFICATE_VERIFY_FAILED" in message
    assert message.endswith("; is this the kubeconfig of that cluster?")


def test_a_proxy_of_the_environment_is_not_asked(
    api: FakeApi, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    good(directory, "list")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file or directory; --cluster wants a directory made by `kmbuild init`"),
        ("[", "not YAML"),
        ("3", "Expected `object`, got `int`; --cluster wants a directory made by `kmbuild init`"),
        ("{}", "not a usable kubeconfig: Invalid kube-config file. Expected key current-context in kube-config"),
    ],
)
def test_a_directory_that_is_none_is_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "admin.kubeconfig").write_text(text)
    assert message in refused(tmp_path, "list")


def test_without_a_directory_it_takes_the_one_cluster_on_this_machine() -> None:
    def list_here() -> str:
        return str(CliRunner().invoke(kmbuild, ["nodes", "list"]).exception)

    assert list_here() == "no cluster on this machine; give --cluster DIR, the cluster's directory"
    for name in ("one", "two"):
        with state.locked(name, make=True):
            make_cluster(name).save()
    assert list_here() == "more than one cluster on this machine; give --cluster DIR, the cluster's directory"
    state.remove(state.folder_of("two"))
    assert list_here() == "/nowhere/admin.kubeconfig: cannot be read: No such file or directory"


def test_a_cluster_that_runs_on_this_machine_is_reached_by_its_port(
    api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = pki.create_authority("shop cluster-ca")
    serve_tls(api, authority, tmp_path)
    admin = pki.issue(authority, pki.Subject("admin"), 1)
    data = {
        name: base64.b64encode(text.encode()).decode()
        for name, text in {
            "certificate": admin.certificate,
            "key": admin.key,
            "authority": authority.certificate,
        }.items()
    }
    anycast = "https://[fd12:3456:789a::a:1]:6443"
    user = {"client-certificate-data": data["certificate"], "client-key-data": data["key"]}
    directory = make_directory(tmp_path / "shop", anycast, {"certificate-authority-data": data["authority"]}, user)
    cluster = make_cluster("shop")
    cluster.directory, cluster.machines[0].api_port = directory, api.server_port
    (tmp_path / "state/kubermesh/clusters/half-made").mkdir(parents=True)
    with state.locked("shop", make=True):
        cluster.save()
    monkeypatch.setattr(nodes, "is_on", lambda _cluster: True)
    api.objects = [machine(A)]
    monkeypatch.chdir(tmp_path)
    assert "m-a1b2c3d4a1b2" in good(Path("shop"), "list").stdout
    monkeypatch.setattr(nodes, "is_on", lambda _cluster: False)
    monkeypatch.setattr(meshnode, "REQUEST_S", 0.1)
    assert refused(directory, "list").startswith(anycast), "a cluster that is off here may run elsewhere"


def serve_tls(api: FakeApi, authority: pki.Pair, folder: Path) -> None:
    """Make the server one that has the name of API servers, and wants a client certificate."""
    own = pki.issue(authority, pki.Subject("kube-apiserver", usages=("server",), names=("kubernetes",)), 1)
    (folder / "server.pem").write_text(own.certificate + own.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    context.load_verify_locations(cadata=authority.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    api.socket = context.wrap_socket(api.socket, server_side=True)


def test_the_client_library_is_imported_only_when_it_is_used() -> None:
    every = "import sys, importlib, kmbuild.cli; [*map(importlib.import_module, kmbuild.cli.MODULES.values())]"
    code = f"{every}; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the custom resource


@pytest.fixture(scope="module")
def definition() -> Object:
    text = (ADDONS / "meshnode.yaml.j2").read_text()
    loaded: Object = yaml.safe_load(jinja2.Template(text, undefined=jinja2.StrictUndefined).render())
    return loaded


def properties(schema: Object, path: str = "") -> Iterator[tuple[str, Object]]:
    """Every part of a schema with its place."""
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from properties(part, f"{path}.{name}")
    if "items" in schema:
        yield from properties(schema["items"], f"{path}[]")


def schema_of(definition: Object) -> Object:
    schema: Object = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def test_the_resource_is_what_the_tool_asks_for(definition: Object) -> None:
    spec = definition["spec"]
    (version,) = spec["versions"]
    assert (spec["group"], version["name"], spec["names"]["plural"]) == meshnode.RESOURCE
    assert definition["metadata"]["name"] == f"{spec['names']['plural']}.{spec['group']}"
    assert (spec["scope"], spec["names"]["shortNames"], version["subresources"]) == ("Cluster", ["mn"], {"status": {}})
    wide = [column["name"] for column in version["additionalPrinterColumns"] if column.get("priority")]
    assert wide == ["Fingerprint", "UUID"]


def test_the_schema_is_structural_and_explains_every_field(definition: Object) -> None:
    for path, part in properties(schema_of(definition)):
        assert "type" in part, path
        # The API server refuses anything else of metadata.
        assert part == {"type": "object"} if path == ".metadata" else part.get("description"), path


def test_the_columns_are_fields_of_the_schema(definition: Object) -> None:
    known = dict(properties(schema_of(definition)))
    for column in definition["spec"]["versions"][0]["additionalPrinterColumns"]:
        path = column["jsonPath"]
        assert path in known or path == ".metadata.creationTimestamp"


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        (".spec", meshnode.Spec),
        (".status", meshnode.Status),
        (".status.ports[]", meshnode.Port),
        (".status.disks[]", meshnode.Disk),
        (".status.conditions[]", meshnode.Condition),
    ],
)
def test_the_tool_reads_every_field_of_the_resource(definition: Object, place: str, kind: Any) -> None:
    fields = {field.encode_name for field in msgspec.structs.fields(kind)}
    assert set(dict(properties(schema_of(definition)))[place]["properties"]) == fields


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"spec": {"decision": "Approved"}}, True),
        ({"spec": {"decision": "Maybe"}}, False),
        ({"status": {"phase": "Gone"}}, False),
        ({"status": {"role": "standby", "number": 32767}}, True),
        ({"status": {"number": 0}}, False),
        ({"status": {"fingerprint": "a1b2"}}, False),
        ({"status": {"conditions": [{"type": "Voter", "status": "Unknown"}]}}, True),
        ({"status": {"conditions": [{"type": "Voter"}]}}, False),
    ],
)
def test_the_schema_takes_what_is_right_and_nothing_else(definition: Object, change: Object, good: bool) -> None:
    validator = jsonschema.Draft202012Validator(schema_of(definition))
    assert validator.is_valid({**machine(A, "Admitted", 3), **change}) is good
