"""Who is admitted, and what the cluster writes down about it."""

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import FIRST, MESH_KEY, Machine, Shop

from kmagent import admission, ledger, registry
from kmagent.registry import Node, Registry
from kmplan import pki
from kmplan.errors import UserError

UUID = "4c4c4544-0042-3510-8052-b4c04f4e3132"
GOOD: dict[str, Any] = {
    "version": 1,
    "cluster": "shop",
    "csr": "-----BEGIN CERTIFICATE REQUEST-----",
    "wish": 3,
    "uuid": UUID.upper(),
    "via": "shop-1 enp2s0",
    "ports": [{"name": "enp1s0", "mac": "52:54:00:12:34:56"}],
    "disks": [{"name": "nvme0n1", "model": "", "size_bytes": 256060514304}],
    "later": "what a newer agent may say",
}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    made = Shop(tmp_path / "shop")
    asyncio.run(made.begin())
    return made


def together(*tasks: Coroutine[Any, Any, Any]) -> list[Any]:
    async def run() -> list[Any]:
        return await asyncio.gather(*tasks)

    return asyncio.run(run())


def test_a_request_is_understood() -> None:
    request = admission.parse(GOOD)
    assert (request.cluster, request.wish, request.uuid, request.via) == ("shop", 3, UUID, "shop-1 enp2s0")
    assert request.ports == ({"name": "enp1s0", "mac": "52:54:00:12:34:56"},)
    assert request.disks == ({"name": "nvme0n1", "model": "", "size_bytes": 256060514304},)
    shortest = admission.parse({"version": 1, "csr": "x" * admission.MAX_CSR})
    assert (shortest.wish, shortest.uuid, shortest.ports, shortest.disks) == (0, "", (), ())


TEXT = "expected up to 64 printable characters"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "expected a JSON object with version 1"),
        ({"version": "1"}, "expected a JSON object with version 1"),
        ({"csr": None}, "csr: expected PEM of at most 2048 bytes"),
        ({"csr": "x" * 2049}, "csr: expected PEM of at most 2048 bytes"),
        ({"cluster": 5}, f"cluster: {TEXT}"),
        ({"cluster": None}, f"cluster: {TEXT}"),
        ({"uuid": "u" * 65}, f"uuid: {TEXT}"),
        ({"uuid": ["u"]}, f"uuid: {TEXT}"),
        ({"via": "\x1b[2J"}, f"via: {TEXT}"),
        ({"via": "shop-1\n"}, f"via: {TEXT}"),
        ({"via": "shöp"}, f"via: {TEXT}"),
        ({"wish": "3"}, "wish: expected a number"),
        ({"wish": True}, "wish: expected a number"),
        ({"wish": 3.0}, "wish: expected a number"),
        ({"wish": -1}, "wish: expected a number"),
        ({"wish": 2**62}, "wish: expected a number"),
        ({"ports": {}}, "ports: expected a list of at most 16 objects"),
        ({"ports": None}, "ports: expected a list of at most 16 objects"),
        ({"ports": ["eth0"]}, "ports: expected a list of at most 16 objects"),
        ({"ports": [{}] * 17}, "ports: expected a list of at most 16 objects"),
        ({"ports": [{"name": "eth0", "mac": 5}]}, f"mac: {TEXT}"),
        ({"disks": [[]]}, "disks: expected a list of at most 16 objects"),
        ({"disks": [{"size_bytes": "much"}]}, "size_bytes: expected a number"),
        ({"disks": [{"model": "m" * 65}]}, f"model: {TEXT}"),
    ],
)
def test_a_wrong_request_is_refused_in_words(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        admission.parse({**GOOD, **change})
    assert str(caught.value) == message


@pytest.mark.parametrize("data", [None, [], "hello", 1, {}])
def test_what_is_no_request_is_refused_in_words(data: Any) -> None:
    with pytest.raises(ValueError, match=r"^expected a JSON object with version 1$"):
        admission.parse(data)


@pytest.mark.parametrize(
    ("policy", "uuid", "decision", "verdict"),
    [
        ("approve", UUID, "", "wait"),
        ("allowlist", UUID.upper(), "", "admit"),
        ("allowlist", "another", "", "wait"),
        # A machine that does not say who it is is not who is listed.
        ("allowlist", "", "", "wait"),
        ("auto", "", "", "admit"),
        ("approve", "", "Approved", "admit"),
        ("allowlist", UUID, "Denied", "deny"),
        ("auto", UUID, "Denied", "deny"),
        ("a newer one", UUID, "", "wait"),
    ],
)
def test_what_people_say_counts_before_the_policy(policy: str, uuid: str, decision: str, verdict: str) -> None:
    request = admission.parse({**GOOD, "uuid": uuid})
    assert admission.decide(policy, [UUID.upper(), ""], request, {"decision": decision}) == verdict
    assert decision or admission.decide(policy, [UUID.upper(), ""], request, None) == verdict


def test_a_request_that_is_repeated_keeps_when_and_where_it_came_first() -> None:
    first = admission.record(admission.parse(GOOD), "f1", "fd12::7", None, 100.0)
    again = admission.parse({**GOOD, "via": "shop-9 eth7", "wish": 5})
    second = admission.record(again, "f1", "fd12::8", {**first, "decision": "Denied"}, 200.0)
    assert second == {**first, "wish": 5, "last_seen": 200.0, "decision": "Denied"}
    assert (first["first_seen"], first["via"], first["decision"]) == (100.0, "shop-1 enp2s0", "")


def some(*numbers: int) -> Registry:
    known = Registry("shop")
    for number in numbers:
        known = known.put(Node(number, f"shop-{number}", "worker", f"f{number}", f"c{number}"))
    return known


@pytest.mark.parametrize(
    ("taken", "wish", "number"),
    [
        ([], 0, 1),
        ([1, 2, 4], 0, 3),
        ([1, 2, 3], 0, 4),
        ([1], 7, 7),
        ([1, 7], 7, 2),
        ([1], -1, 2),
        ([1], 32767, 32767),
        ([1], 32768, 2),
        ([2, 3], 2**61, 1),
    ],
)
def test_a_node_gets_the_number_that_is_wished_for_or_the_lowest_free(taken: list[int], wish: int, number: int) -> None:
    assert some(*taken).free_number(wish) == number


def test_a_number_that_rests_is_given_to_nobody() -> None:
    assert some(1).free_number(2, frozenset({2, 3})) == 4
    assert some(1).free_number(5, frozenset({2, 3})) == 5


def test_there_are_no_more_nodes_than_numbers() -> None:
    nodes = tuple(replace(FIRST, number=number) for number in range(1, 32768))
    with pytest.raises(UserError, match=r"^all node numbers are taken"):
        Registry("shop", nodes=nodes).free_number()


def test_every_change_of_the_registry_has_the_next_serial() -> None:
    known = some(3, 1)
    assert (known.serial, [node.number for node in known.nodes]) == (2, [1, 3])
    assert known.put(replace(FIRST, number=3)).serial == 3
    assert known.put(replace(FIRST, number=3)).numbers == {1, 3}
    dropped = known.drop(1)
    assert (dropped.serial, dropped.numbers) == (3, frozenset({3}))
    assert known.numbers == {1, 3}
    assert known.find(number=3, name="shop-3") == known.nodes[1]
    assert known.find(number=3, name="shop-1") is None


def test_the_registry_survives_being_written(tmp_path: Path) -> None:
    known = replace(some(1, 2), mesh_key=4)
    assert registry.from_text(registry.to_text(known)) == known
    assert registry.unpack(registry.pack(registry.to_text(known), "c2ln")) == (registry.to_text(known), "c2ln")
    (tmp_path / "nodes.json").write_text(registry.pack(registry.to_text(known), "c2ln"))
    assert registry.load(tmp_path / "nodes.json") == known


NO_REGISTRY = ["", "{", "null", "[]", '"text"', "5", "{}", '{"cluster": "shop"}', '{"nodes": [], "more": 1}',
               '{"cluster": "shop", "nodes": 5}', '{"cluster": "shop", "nodes": [5]}',
               '{"cluster": "shop", "nodes": [{"number": 1}]}']  # fmt: skip


@pytest.mark.parametrize("text", NO_REGISTRY)
def test_what_is_no_registry_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        registry.from_text(text)
    with pytest.raises(ValueError):
        registry.from_text(registry.unpack(text)[0])
    (tmp_path / "nodes.json").write_text(text)
    assert registry.load(tmp_path / "nodes.json") is None
    assert registry.load(tmp_path / "none") is None


def recorded(shop: Shop) -> Registry:
    """The registry in etcd; its signature is good."""
    packed = shop.etcd.values[ledger.REGISTRY][0]
    text, signature = registry.unpack(packed)
    assert pki.verify_text(shop.authority.certificate, text, signature)
    return registry.from_text(text)


def test_a_cluster_begins_once(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    others = [shop.another_ledger() for _ in range(2)]
    together(*(one.begin(Registry("shop").put(FIRST), key) for one, key in zip(others, ["aa", "bb"], strict=True)))
    first = dict(shop.etcd.values)
    asyncio.run(shop.begin())
    assert shop.etcd.values == first
    assert (recorded(shop).nodes, recorded(shop).serial, len(shop.changes)) == ((FIRST,), 1, 1)


def test_nobody_is_admitted_before_the_cluster_began(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    with pytest.raises(OSError, match="has not begun"):
        asyncio.run(shop.admit(Machine()))
    assert shop.etcd.values == {}


def test_a_machine_becomes_a_node_with_an_identity(shop: Shop) -> None:
    machine = Machine()
    asyncio.run(shop.ledger.note_asked(machine.asked(wish=7)))
    node = asyncio.run(shop.admit(machine, wish=7))
    assert (node.number, node.name, node.role, node.uuid) == (7, "shop-7", "worker", "4c4c")
    assert recorded(shop).find(fingerprint=machine.fingerprint) == node
    certificate = asyncio.run(shop.ledger.identity(machine.fingerprint))
    assert pki.is_issued_by(certificate, shop.authority.certificate) and pki.matches(certificate, machine.key)
    assert node.certificate == pki.fingerprint(certificate)


def test_machines_that_come_at_once_never_get_the_same_number(shop: Shop) -> None:
    """Three control-plane nodes answer, and most machines wish for the same number."""
    ledgers = [shop.ledger, shop.another_ledger(), shop.another_ledger()]
    machines = [Machine() for _ in range(10)]
    wishes = [5, 5, 5, 5, 5, 5, 0, 0, 1, 2]
    nodes = together(
        *(
            ledgers[index % 3].admit(machine.asked(wish=wishes[index]), "shop-{}".format, 0)
            for index, machine in enumerate(machines)
        )
    )
    assert sorted(node.number for node in nodes) == list(range(2, 12))
    assert set(recorded(shop).nodes) == {FIRST, *nodes}
    assert recorded(shop).serial == 11
    serials = [registry.from_text(registry.unpack(packed)[0]).serial for packed in shop.changes]
    assert sorted(serials) == list(range(1, 12))


def test_a_machine_that_asks_twice_at_once_is_one_node(shop: Shop) -> None:
    machine = Machine()
    one, two = together(
        *(one.admit(machine.asked(), "shop-{}".format, 0) for one in (shop.ledger, shop.another_ledger()))
    )
    assert one == two
    assert recorded(shop).numbers == {1, 2}


def test_admitting_again_changes_nothing(shop: Shop) -> None:
    machine = Machine()
    node = asyncio.run(shop.admit(machine))
    before = dict(shop.etcd.values)
    assert asyncio.run(shop.admit(machine, wish=9)) == node
    assert shop.etcd.values == before


def test_a_removed_node_does_not_have_the_mesh_key_that_the_others_get(shop: Shop) -> None:
    machine = Machine()
    node = asyncio.run(shop.admit(machine))
    known, _ = asyncio.run(shop.ledger.mesh_keys())
    asyncio.run(shop.ledger.remove(node.number))
    keys, _ = asyncio.run(shop.ledger.mesh_keys())
    newest = recorded(shop).mesh_key
    assert newest == max(keys) == max(known) + 1
    assert keys[newest] not in known.values() and len(bytes.fromhex(keys[newest])) == 32
    assert recorded(shop).numbers == {1} and recorded(shop).serial == 3
    assert asyncio.run(shop.ledger.identity(machine.fingerprint)) == ""
    assert asyncio.run(shop.ledger.asked()) == {}
    assert shop.changes[-1] == shop.etcd.values[ledger.REGISTRY][0]
    before = dict(shop.etcd.values)
    asyncio.run(shop.ledger.remove(node.number))
    assert shop.etcd.values == before


def test_a_node_is_removed_also_when_others_change_the_registry_at_that_moment(shop: Shop) -> None:
    node = asyncio.run(shop.admit(Machine()))
    others = [shop.another_ledger().admit(Machine().asked(wish=wish), "shop-{}".format, 0) for wish in (5, 6, 7)]
    together(*others, shop.ledger.remove(node.number))
    assert recorded(shop).numbers == {1, 5, 6, 7}


def test_a_removed_machine_is_a_new_one_when_it_asks_again(shop: Shop) -> None:
    machine = Machine()
    node = asyncio.run(shop.admit(machine))
    asyncio.run(shop.ledger.remove(node.number))
    assert asyncio.run(shop.admit(machine)).certificate != node.certificate


def test_a_removed_nodes_number_rests_until_the_certificates_that_name_it_have_ended(shop: Shop) -> None:
    machine = Machine()
    gone = asyncio.run(shop.admit(machine, wish=3))
    asyncio.run(shop.ledger.rest(gone, 1000.0))
    asyncio.run(shop.ledger.remove(gone.number))
    assert asyncio.run(shop.ledger.resting(1000.0 + 89 * 86400)) == {3: gone.uuid}
    # Only the machine itself is given it again, and that though a lower one is free.
    for one, wish, number in ((Machine(), 3, 2), (machine, 0, 3)):
        asked = one.asked(wish=wish, uuid=gone.uuid if one is machine else "4c4d")
        assert asyncio.run(shop.ledger.admit(asked, "shop-{}".format, 2000.0)).number == number
    assert asyncio.run(shop.ledger.resting(2000.0)) == {}


def test_a_number_whose_rest_is_over_is_given_again(shop: Shop) -> None:
    gone = [asyncio.run(shop.admit(Machine())) for _ in range(2)]
    asyncio.run(shop.ledger.rest(gone[0], 1000.0))
    later = 1000.0 + 90 * 86400
    assert asyncio.run(shop.ledger.resting(later)) == {}
    asyncio.run(shop.ledger.rest(gone[1], later))
    assert {key for key in shop.etcd.values if key.startswith(ledger.RESTING)} == {f"{ledger.RESTING}{gone[1].number}"}


def test_a_machine_that_says_no_uuid_is_not_known_again(shop: Shop) -> None:
    machine = Machine()
    gone = asyncio.run(shop.admit(machine, uuid=""))
    asyncio.run(shop.ledger.rest(gone, 1000.0))
    asyncio.run(shop.ledger.remove(gone.number))
    assert asyncio.run(shop.admit(machine, uuid="")).number == gone.number + 1


def test_an_old_mesh_key_is_good_until_it_is_ended_and_not_after(shop: Shop) -> None:
    asyncio.run(shop.ledger.remove(asyncio.run(shop.admit(Machine())).number))
    keys, _ = asyncio.run(shop.ledger.mesh_keys())
    assert keys[1] == MESH_KEY and keys[2] != MESH_KEY
    assert (recorded(shop).mesh_key, recorded(shop).oldest_key, recorded(shop).serial) == (2, 1, 3)
    # Whoever means those before the first has not heard of the second.
    asyncio.run(shop.ledger.drop_old_keys(1))
    assert asyncio.run(shop.ledger.mesh_keys())[0] == keys
    asyncio.run(shop.ledger.drop_old_keys(2))
    assert asyncio.run(shop.ledger.mesh_keys())[0] == {2: keys[2]}
    assert (recorded(shop).mesh_key, recorded(shop).oldest_key, recorded(shop).serial) == (2, 2, 4)


def test_what_others_write_while_old_keys_end_is_not_lost(shop: Shop) -> None:
    gone, node = (asyncio.run(shop.admit(Machine())) for _ in range(2))
    asyncio.run(shop.ledger.remove(gone.number))
    others = [shop.another_ledger() for _ in range(3)]
    admitting = others[0].admit(Machine().asked(wish=5), "shop-{}".format, 0)
    together(others[1].drop_old_keys(2), admitting, others[2].remove(node.number))
    keys, _ = asyncio.run(shop.ledger.mesh_keys())
    assert recorded(shop).numbers == {1, 5}
    assert recorded(shop).mesh_key == max(keys) and recorded(shop).oldest_key == min(keys)


def test_only_so_many_machines_may_wait(shop: Shop) -> None:
    """A stranger that asks with ever new keys fills what one node may bring, and keeps nobody else out."""
    share = ledger.MAX_ASKED_AT_ONE

    def ask(*names: str, now: float = 1000.0) -> list[bool]:
        async def scenario() -> list[bool]:
            common = {"decision": "", "last_seen": now}
            asked = [{**common, "fingerprint": name, "relay": name.partition("-")[0]} for name in names]
            # All at once: it does not help to be quick. A lock is of one event loop.
            shop.ledger._asking = asyncio.Lock()
            return list(await asyncio.gather(*map(shop.ledger.note_asked, asked)))

        return asyncio.run(scenario())

    for number in range(ledger.MAX_ASKED // share):
        assert ask(*(f"{number}-{one}" for one in range(share + 1))) == [*[True] * share, False]
    # One that waits already may say so again.
    assert ask("new-1", "0-0") == [False, True]
    assert len(asyncio.run(shop.ledger.asked())) == ledger.MAX_ASKED
    asyncio.run(shop.ledger.forget_asked("0-0"))
    assert "0-0" not in asyncio.run(shop.ledger.asked())
    # Who was denied waits no more.
    asyncio.run(
        shop.ledger.etcd.put(ledger.ASKED + "0-1", json.dumps({"decision": "Denied", "relay": "0", "last_seen": 0.0}))
    )
    assert ask("0-99", "0-98", "0-97") == [True, True, False]
    # Who has not asked again for long makes room, and no more than is needed.
    assert ask("0-96", "0-95", now=1000.0 + ledger.QUIET_S) == [True, True]
    assert len(asyncio.run(shop.ledger.asked())) == ledger.MAX_ASKED + 1
    assert ask("1-1", now=1000.0 + ledger.QUIET_S) == [True]


def test_a_change_that_changes_nothing_is_not_written(shop: Shop) -> None:
    before = dict(shop.etcd.values)
    assert asyncio.run(shop.ledger.change(lambda old: None)) == recorded(shop)
    assert shop.etcd.values == before


def test_an_etcd_that_is_away_is_an_oserror_and_nothing_else(shop: Shop) -> None:
    before = json.dumps(shop.etcd.values)
    shop.etcd.down = True
    for call in (shop.admit(Machine()), shop.ledger.remove(1), shop.ledger.asked(), shop.begin()):
        with pytest.raises(OSError):
            asyncio.run(call)
    assert json.dumps(shop.etcd.values) == before
