"""What people see of the nodes and machines that ask, and what becomes of what they say about them."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from agent_fakes import FIRST, PREFIX, EtcdMember, KubernetesApi, Machine, Shop

from kmagent import kubernetes_api, mesh_nodes, network
from kmagent.mesh_nodes import MeshNodes, condition, object_name, status_of_asked, status_of_node
from kmagent.registry import Node, Registry


def url(number: int) -> str:
    return network.peer_url(PREFIX, number)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    made = Shop(tmp_path / "shop")
    made.etcd.members = [EtcdMember("1", url(1), "shop-1")]
    asyncio.run(made.begin())
    return made


CRD = Path(__file__).parents[2] / "overlays/node/addons/meshnode.yaml.j2"
NODE = replace(FIRST, number=2, name="shop-2", role="standby", uuid="4c4c", admitted=1000.0)


def test_the_status_says_what_the_kind_declares() -> None:
    """Kubernetes drops fields that a kind does not declare, and refuses values that it does not know."""
    version = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]
    properties = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    kinds = properties["conditions"]["items"]["properties"]["type"]["enum"]
    asked = Machine().asked()
    asking = status_of_asked(asked, {}, 2000.0)
    for status in (
        asking,
        status_of_asked({**asked, "decision": "Denied"}, {}, 0),
        status_of_node(NODE, None, asking, 0),
        status_of_node(NODE, True, asking, 0, leaves=True),
    ):
        assert set(status) <= set(properties)
        assert status["phase"] in properties["phase"]["enum"]
        assert {one["type"] for one in status["conditions"]} <= set(kinds)
        times = [status[key] for key in ("firstSeen", "lastSeen") if key in status]
        assert times and all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", time) for time in times)


@pytest.mark.parametrize(("ready", "shown"), [(True, "True"), (False, "False"), (None, "Unknown")])
def test_a_node_is_shown_with_what_was_known_when_it_asked(ready: bool | None, shown: str) -> None:
    asking = status_of_asked(Machine().asked(), {}, 2000.0)
    status = status_of_node(NODE, ready, asking, 3000.0)
    assert (status["phase"], status["number"], status["name"], status["role"]) == ("Admitted", 2, "shop-2", "standby")
    assert (status["via"], status["firstSeen"]) == ("shop-1 eth0", "1970-01-01T00:25:00Z")
    conditions = {one["type"]: one["status"] for one in status["conditions"]}
    assert conditions == {"Admitted": "True", "Ready": shown, "Voter": "False"}


def test_a_condition_has_the_time_of_its_last_change() -> None:
    first = condition({}, "Ready", "True", "Kubelet", "", 1000.0)
    second = condition({"conditions": [first]}, "Ready", "True", "Kubelet", "other words", 2000.0)
    third = condition({"conditions": [second]}, "Ready", "False", "Kubelet", "", 3000.0)
    times = [one["lastTransitionTime"] for one in (first, second, third)]
    assert times == ["1970-01-01T00:16:40Z", "1970-01-01T00:16:40Z", "1970-01-01T00:50:00Z"]


class People:
    """The API as people use it, and the agent that carries out what they decide."""

    def __init__(self, shop: Shop) -> None:
        self.shop, self.api = shop, KubernetesApi()
        self.agent = MeshNodes(self.api, shop.ledger, "shop", PREFIX)  # type: ignore[arg-type]

    def turn(self, now: float = 2000.0, away: int = 0, **ready: bool) -> bool:
        reachable = frozenset(number for number in range(1, 10) if number != away)
        return asyncio.run(self.agent.reconcile(ready, reachable, now))

    def path(self, fingerprint: str) -> str:
        return f"{mesh_nodes.PATH}/{object_name(fingerprint)}"

    def say(self, fingerprint: str, decision: str, **more: Any) -> None:
        self.api.objects[self.path(fingerprint)]["spec"] = {"decision": decision, **more}

    def status(self, fingerprint: str) -> Any:
        return self.api.objects[self.path(fingerprint)]["status"]

    def asks(self, machine: Machine, **changes: Any) -> None:
        asyncio.run(self.shop.ledger.note_asked(machine.asked(**changes)))

    def known(self) -> Registry:
        return asyncio.run(self.shop.ledger.registry())[0]

    def asked(self) -> dict[str, Any]:
        return asyncio.run(self.shop.ledger.asked())

    def left(self) -> set[str]:
        """The nodes' objects that there are, of both kinds."""
        return {path for path in self.api.objects if "admissionregistration" not in path}

    def join(self, *, member: bool = False) -> Node:
        """A node that is admitted and shown, and perhaps a member of etcd; its Node object exists."""
        node = asyncio.run(self.shop.admit(Machine()))
        if member:
            self.shop.etcd.members.append(EtcdMember(str(node.number), url(node.number), node.name))
        self.api.objects[f"/api/v1/nodes/{node.name}"] = {"metadata": {"name": node.name}}
        self.turn()
        return node


@pytest.fixture
def people(shop: Shop) -> People:
    return People(shop)


def test_machines_that_ask_and_nodes_are_shown_and_nothing_is_written_twice(people: People) -> None:
    machine = Machine()
    people.asks(machine)
    assert people.turn() is False
    assert people.status(machine.fingerprint)["phase"] == "Pending"
    assert people.status(FIRST.fingerprint)["name"] == "shop-1"
    written = len(people.api.writes)
    assert people.turn(now=2100.0) is False
    assert len(people.api.writes) == written == 4
    people.turn(now=2200.0, **{"shop-1": True})
    assert people.api.writes[written:] == [f"PUT {people.path(FIRST.fingerprint)}/status"]


def test_what_a_node_offers_to_machines_on_its_cables_is_shown_while_it_does(people: People) -> None:
    people.turn()
    for offers, shown in (
        ({1: {"eth2": "fetching, 40 %", "eth1": "offered"}}, [("eth1", "offered"), ("eth2", "fetching, 40 %")]),
        ({1: {}}, None),
        ({7: {"eth0": "offered"}}, None),
    ):
        asyncio.run(people.agent.reconcile({}, frozenset({1}), 2000.0, offers))
        found = people.status(FIRST.fingerprint).get("offers")
        assert (found and [(one["port"], one["message"]) for one in found]) == shown


def test_an_approved_machine_is_a_node_at_once(people: People) -> None:
    machine = Machine()
    people.asks(machine)
    people.turn()
    people.say(machine.fingerprint, "Approved")
    assert people.turn() is True
    status = people.status(machine.fingerprint)
    assert (status["phase"], status["number"], status["name"]) == ("Admitted", 2, "shop-2")
    assert people.known().numbers == {1, 2} and people.asked() == {}
    assert people.turn() is False


def test_a_machine_without_a_disk_is_shown_with_the_reason_and_is_no_node_before_it_has_one(people: People) -> None:
    machine, why = Machine(), "no disk to install to: /dev/sda (WD, 1000 GB) holds ntfs"
    people.asks(machine, blocked=why)
    people.turn()
    status = people.status(machine.fingerprint)
    assert (status["phase"], status["blocked"], status["conditions"][0]["reason"]) == ("Pending", why, "NeedsDisk")
    # Approved without leave to wipe, it waits; with it, it installs. It is no node either way.
    people.say(machine.fingerprint, "Approved")
    people.turn()
    assert people.status(machine.fingerprint)["phase"] == "Pending"
    people.say(machine.fingerprint, "Approved", wipe=True)
    assert people.turn() is True
    assert people.status(machine.fingerprint)["phase"] == "Installing"
    assert people.asked()[machine.fingerprint]["wipe"] is True
    assert people.known().numbers == {1} and people.turn() is False


@pytest.mark.parametrize("first", [FIRST.fingerprint, None])
def test_what_was_said_of_one_key_does_not_count_for_another_of_the_same_name(
    people: People, first: str | None
) -> None:
    """The name has 48 bits of the key, which somebody may search for; the first may be a node, or wait itself."""
    if first is None:
        machine = Machine()
        people.asks(machine)
        first = machine.fingerprint
    people.turn()
    people.say(first, "Approved", wipe=True)
    twin = first[:12] + "0" * 52
    people.asks(Machine(), fingerprint=twin)
    for _ in range(2):
        people.turn()
        assert people.status(first)["fingerprint"] == first
    assert twin not in {one.fingerprint for one in people.known().nodes}
    assert people.asked()[twin]["decision"] == ""


@pytest.mark.parametrize("twins_digit", ["0", "f"])
def test_the_object_of_one_who_asks_stays_his_while_another_of_the_same_name_asks(
    people: People, twins_digit: str
) -> None:
    machine = Machine()
    first, twin = machine.fingerprint, machine.fingerprint[:12] + twins_digit * 52
    people.asks(machine)
    people.turn()
    people.asks(Machine(), fingerprint=twin)
    for _ in range(2):
        people.turn()
        assert people.status(first)["fingerprint"] == first
    people.say(first, "Approved")
    people.turn()
    assert first in {one.fingerprint for one in people.known().nodes}
    assert people.asked()[twin]["decision"] == ""


def test_a_denied_machine_stays_denied_until_somebody_says_otherwise(people: People) -> None:
    machine = Machine()
    people.asks(machine)
    people.turn()
    people.say(machine.fingerprint, "Denied")
    assert people.turn() is True
    assert people.status(machine.fingerprint)["phase"] == "Denied"
    # Its object was deleted by hand, and once more together with its kind.
    del people.api.objects[people.path(machine.fingerprint)]
    for _ in range(2):
        people.turn(now=2000.0 + 10 * mesh_nodes.FORGET_S)
    assert people.asked()[machine.fingerprint]["decision"] == "Denied"
    assert people.status(machine.fingerprint)["phase"] == "Denied"
    people.api.collections.clear()
    with pytest.raises(kubernetes_api.ApiError):
        people.api.objects.clear()
        people.turn()
    assert people.asked()[machine.fingerprint]["decision"] == "Denied"


def test_a_denied_machine_that_is_approved_is_a_node(people: People) -> None:
    machine = Machine()
    people.asks(machine)
    people.turn()
    for decision in ("Denied", "Approved"):
        people.say(machine.fingerprint, decision)
        people.turn()
    assert people.status(machine.fingerprint)["phase"] == "Admitted"


def test_a_machine_that_went_away_or_is_removed_is_forgotten(people: People) -> None:
    gone, removed = Machine(), Machine()
    people.asks(gone, last_seen=2000.0)
    people.asks(removed, decision="Denied")
    people.turn()
    people.say(removed.fingerprint, "Removed")
    people.turn(now=2000.0 + mesh_nodes.FORGET_S)
    assert set(people.asked()) == {gone.fingerprint}
    people.turn(now=2001.0 + mesh_nodes.FORGET_S)
    assert people.asked() == {}
    assert set(people.api.objects) == {people.path(FIRST.fingerprint)}


def test_an_object_that_somebody_deleted_is_made_again_and_one_of_nobody_goes(people: People) -> None:
    people.turn()
    people.api.objects[f"{mesh_nodes.PATH}/m-of-nobody"] = {"metadata": {"name": "m-of-nobody"}, "spec": {}}
    del people.api.objects[people.path(FIRST.fingerprint)]
    people.turn()
    assert set(people.api.objects) == {people.path(FIRST.fingerprint)}
    assert people.status(FIRST.fingerprint)["phase"] == "Admitted"


def test_a_machine_that_the_policy_admits_at_once_is_shown_with_what_it_said(people: People) -> None:
    machine, port = Machine(), {"name": "eth0", "mac": "02:00:00:00:00:01"}
    asyncio.run(people.shop.admit(machine, ports=[port]))
    assert machine.fingerprint in people.asked()
    people.turn()
    status = people.status(machine.fingerprint)
    assert (status["phase"], status["via"], status["ports"]) == ("Admitted", "shop-1 eth0", [port])
    assert people.asked() == {}


def test_a_node_is_removed_also_right_after_it_was_admitted(people: People) -> None:
    node = people.join()
    people.asks(Machine(), fingerprint=node.fingerprint)
    people.say(node.fingerprint, "Removed")
    people.turn()
    assert people.known().numbers == {1} and people.asked() == {}


@pytest.mark.parametrize("member", [False, True], ids=["a worker", "a voter"])
def test_a_removed_node_loses_its_vote_its_objects_and_its_place(people: People, member: bool) -> None:
    node = people.join(member=member)
    people.say(node.fingerprint, "Removed")
    assert people.turn() is True
    assert people.known().numbers == {1}
    assert [one.url for one in people.shop.etcd.members] == [url(1)]
    assert people.left() == {people.path(FIRST.fingerprint)}


def policies(people: People) -> dict[str, Any]:
    return {item["kind"]: item["spec"] for path, item in people.api.objects.items() if "admissionregistration" in path}


def test_nobody_comes_back_with_the_certificate_of_a_removed_node(people: People) -> None:
    node = people.join()
    people.say(node.fingerprint, "Removed")
    people.turn()
    said = policies(people)["ValidatingAdmissionPolicy"]
    assert said["validations"][0]["expression"] == f'!(object.metadata.name in ["{node.name}"])'
    # Its kubelet was faster, once.
    path = f"/api/v1/nodes/{node.name}"
    people.api.objects[path] = {"metadata": {"name": node.name}}
    people.turn(**{node.name: True})
    assert path not in people.api.objects
    # Its machine was let in again.
    asyncio.run(people.shop.admit(Machine(), uuid=node.uuid))
    people.turn()
    assert policies(people) == {}


def test_a_node_that_is_registered_is_not_kept_out_whatever_rests(people: People) -> None:
    """It came back before its removal was done, or the cluster began anew from before it was let in again."""
    node = people.join()
    asyncio.run(people.shop.ledger.rest(node, 2000.0))
    people.turn(**{node.name: True})
    assert policies(people) == {} and f"/api/v1/nodes/{node.name}" in people.api.objects


def test_what_another_leader_said_of_names_that_rest_is_not_taken_for_known(people: People) -> None:
    node = people.join()
    people.say(node.fingerprint, "Removed")
    people.turn()
    for path in [path for path in people.api.objects if "admissionregistration" in path]:
        del people.api.objects[path]
    people.agent.forget()
    people.turn()
    assert len(policies(people)) == 2


def test_a_learner_that_never_started_goes_with_its_node(people: People) -> None:
    node = people.join()
    people.shop.etcd.members.append(EtcdMember("2", url(node.number), learner=True))
    people.say(node.fingerprint, "Removed")
    people.turn()
    assert [one.url for one in people.shop.etcd.members] == [url(1)]


def test_the_node_that_leads_hands_over_before_it_is_removed(people: People) -> None:
    node = people.join(member=True)
    people.say(FIRST.fingerprint, "Removed")
    assert people.turn() is False
    assert people.shop.etcd.leader == str(node.number)
    assert people.known().numbers == {1, node.number} and len(people.shop.etcd.members) == 2


def test_the_lead_is_handed_to_one_that_is_there(people: People) -> None:
    first, second = people.join(member=True), people.join(member=True)
    people.say(FIRST.fingerprint, "Removed")
    assert people.turn(away=first.number) is False
    assert people.shop.etcd.leader == str(second.number)


def test_a_node_that_etcd_cannot_spare_keeps_nobody_else_waiting(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays, goes, new = people.join(member=True), people.join(), Machine()
    for node in (stays, goes):
        people.say(node.fingerprint, "Removed")
    people.asks(new)
    with monkeypatch.context() as patch:
        refuse = ValueError("unhealthy cluster")
        patch.setattr(people.shop.etcd, "do_cluster_member_remove", lambda _: (_ for _ in ()).throw(refuse))
        assert people.turn() is True
    assert people.known().numbers == {1, stays.number}
    assert people.status(new.fingerprint)["phase"] == "Pending"


@pytest.mark.parametrize("learner", [False, True], ids=["alone", "with a learner"])
def test_the_only_voter_stays(people: People, learner: bool) -> None:
    if learner:
        people.shop.etcd.members.append(EtcdMember("2", url(2), "shop-2", learner=True))
    people.turn()
    people.say(FIRST.fingerprint, "Removed")
    assert people.turn() is False
    assert people.known().numbers == {1} and people.shop.etcd.leader == "1"
    assert people.status(FIRST.fingerprint)["phase"] == "Removing"
    people.say(FIRST.fingerprint, "")
    people.turn()
    assert people.status(FIRST.fingerprint)["phase"] == "Admitted"


def test_a_removal_that_was_interrupted_goes_on_where_it_was(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    node = people.join(member=True)
    people.say(node.fingerprint, "Removed")
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(people.shop.etcd, "do_kv_txn", lambda asked: (_ for _ in ()).throw(ValueError("no leader")))
        people.turn()
    assert people.known().numbers == {1, node.number}
    assert people.turn() is True
    assert people.known().numbers == {1}
    assert people.left() == {people.path(FIRST.fingerprint)}


@pytest.mark.parametrize("member", [False, True])
def test_a_machine_that_lost_its_disk_takes_its_own_place(people: People, member: bool) -> None:
    node, machine = people.join(member=member), Machine()
    # One that asks no more, or was denied, takes nobody's place.
    for said in ({"last_seen": 2000.0 - mesh_nodes.ASKS_S}, {"last_seen": 2000.0, "decision": "Denied"}):
        people.asks(machine, replaces=node.number, uuid=node.uuid, **said)
        people.turn(away=node.number)
        assert people.known().find(number=node.number) == node
        asyncio.run(people.shop.ledger.forget_asked(machine.fingerprint))
        people.turn()
    people.asks(machine, replaces=node.number, uuid=node.uuid, last_seen=2000.0)
    # Somebody who only says so, while the node is there.
    people.turn()
    assert people.known().find(number=node.number) == node
    assert people.turn(away=node.number) is True
    assert people.known().numbers == {1} and [one.url for one in people.shop.etcd.members] == [url(1)]
    assert f"/api/v1/nodes/{node.name}" not in people.api.objects
    assert asyncio.run(people.shop.admit(machine, wish=node.number)).number == node.number


def test_a_machine_of_another_uuid_takes_nobodys_place(people: People) -> None:
    node = people.join()
    people.asks(Machine(), replaces=node.number, uuid="another")
    people.turn(away=node.number)
    assert people.known().find(number=node.number) == node
