"""Between neighbours: who is believed, what babeld is told, and what may pass a port."""

import asyncio
import contextlib
import json
import re
import socket
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import FACTS
from agent_sockets import live, until

from kmagent import babel, boot_image, firewall, hello, mesh, network, ports, relay, seqno
from kmagent.hello import HOLD_S, Hello, Keys, Link
from kmagent.paths import Paths
from kmagent.ports import Port
from kmagent.state import State

KEY, OTHER = "11" * 32, "22" * 32
KEYS = {1: KEY}
NOW = 1000.0
PORTS = (("eth0", 2, True), ("eth1", 3, True), ("eth2", 4, False))


def say(**changes: Any) -> Hello:
    common = {"cluster": "one", "number": 2, "name": "one-2", "port": "enp1s0", "mtu": 1500, "serial": 7}
    exchange = {"nonce": "theirs", "heard": "", "sequence": 1, "generations": (1,)}
    return Hello(**{**common, **exchange, **changes})


def heard(link: Link, message: Hello, keys: Keys = KEYS, now: float = NOW) -> Link:
    """What a link knows after a hello from a sender with these keys, when ours are KEYS."""
    decoded = hello.decode(hello.encode(message, keys), KEYS)
    assert decoded is not None
    return hello.receive(link, *decoded, "fe80::2", now)


def believed(link: Link) -> bool:
    return link.neighbour is not None and link.neighbour.authenticated


@pytest.fixture
def link() -> Link:
    """A link whose neighbour is believed."""
    fresh = hello.new_link()
    return heard(fresh, say(heard=fresh.nonce, sequence=5))


def test_a_hello_arrives_as_it_was_said() -> None:
    message = say(number=32767, name="x" * 64, heard="ours", generations=(1, 2), trusts=True)
    assert hello.decode(hello.encode(message, KEYS), KEYS) == (message, True)


@pytest.mark.parametrize(
    ("theirs", "ours", "good"),
    [
        (KEYS, KEYS, True),
        ({}, KEYS, False),
        (KEYS, {}, False),
        ({1: OTHER}, KEYS, False),
        ({2: KEY}, KEYS, False),
        # While a new key goes round, one that both have is enough.
        ({1: KEY, 2: OTHER}, KEYS, True),
        ({1: KEY, 2: OTHER}, {2: OTHER}, True),
        ({1: OTHER, 2: KEY}, {1: KEY, 2: KEY}, True),
    ],
)
def test_only_a_key_of_ours_makes_a_hello_good(theirs: Keys, ours: Keys, good: bool) -> None:
    assert hello.decode(hello.encode(say(), theirs), ours) == (say(), good)


def test_a_hello_of_another_version_is_understood() -> None:
    """What it says besides is passed over, and what it does not say yet is nothing."""
    decoded = hello.decode(packet(surprise=1), KEYS)
    assert decoded is not None and decoded[0] == say()
    # One that leads around nothing says what versions before this one said, which passed nothing over.
    assert b"around" not in hello.encode(say(), KEYS) and b"around" in hello.encode(say(around=(3,)), KEYS)
    assert hello.decode(hello.encode(say(around=(3,)), KEYS), KEYS) == (say(around=(3,)), True)


def test_a_hello_that_was_changed_on_the_way_is_not_good() -> None:
    data = hello.encode(say(number=2), KEYS)
    assert hello.decode(data.replace(b'"number":2', b'"number":3'), KEYS) == (say(number=3), False)


def packet(**changes: Any) -> bytes:
    return json.dumps({**asdict(say()), **changes}).encode() + b"\n{}"


GARBAGE = {
    "nothing": b"",
    "no fields": b"{}\n{}",
    "no object": b"[]\n[]",
    "null": b"null\n{}",
    "no JSON": b"hello",
    "no text": b"\xff\xfe\n{}",
    "deep": b"[" * 1390 + b"\n{}",
    "no second line": packet()[:-3],
    "no MACs": packet().replace(b"\n{}", b"\n[]"),
    "a MAC that is a number": packet().replace(b"\n{}", b'\n{"1": 5}'),
    "a MAC that is no hex": packet().replace(b"\n{}", '\n{"1": "ä"}'.encode()),
    "a missing field": packet().replace(b'"nonce": "theirs", ', b""),
    "a number as text": packet(number="2"),
    "a number that is true": packet(number=True),
    "a fraction": packet(number=2.0),
    "no MTU": packet(mtu=None),
    "no sequence": packet(sequence=[]),
    "a name that is a number": packet(name=5),
    "a long nonce": packet(nonce="n" * 65),
    "a long name": packet(cluster="c" * 65),
    "no generations": packet(generations=None),
    "generations as text": packet(generations="12"),
    "generations that are texts": packet(generations=["1"]),
    # What is said is shown on the console, next to the fingerprint that people compare.
    "an escape sequence": packet(name="\x1b[2J"),
    "a line break": packet(port="a\nb"),
    "half a character": packet(name="\ud800"),
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
def test_what_is_no_hello_is_passed_over(data: bytes) -> None:
    assert hello.decode(data, KEYS) is None


def test_a_hello_that_is_too_large_is_passed_over() -> None:
    data = hello.encode(say(), KEYS)
    padding = b" " * (hello.MAX_BYTES - len(data))
    assert hello.decode(data.replace(b"{", b"{" + padding, 1), {}) == (say(), False)
    assert hello.decode(data.replace(b"{", b"{ " + padding, 1), {}) is None


def converse(one: Link, two: Link, speakers: str, first: int = 1) -> tuple[Link, Link]:
    """The two ends say hello in this order; a hello repeats the nonce that was heard last."""
    ends = {"1": one, "2": two}
    for sequence, speaker in enumerate(speakers, first):
        here, listener = ends[speaker], "2" if speaker == "1" else "1"
        message = say(number=int(speaker), nonce=here.nonce, heard=here.heard, sequence=sequence)
        ends[listener] = heard(ends[listener], message)
    return ends["1"], ends["2"]


def test_two_ends_believe_each_other_after_three_hellos() -> None:
    one, two = converse(hello.new_link(), hello.new_link(), "12")
    assert believed(one) and not believed(two)
    assert believed(converse(one, two, "1", 3)[1])


def test_a_neighbour_whose_agent_starts_anew_is_believed_again_after_three_hellos() -> None:
    one, _ = converse(hello.new_link(), hello.new_link(), "121")
    one, two = converse(one, hello.new_link(), "212", 4)
    assert believed(one) and believed(two)
    assert one.neighbour is not None and one.neighbour.hello.nonce == two.nonce


@pytest.mark.parametrize(
    "message",
    [
        say(heard="another link's", sequence=6),
        say(sequence=6),
        say(heard="ours", sequence=5),
        say(heard="ours", sequence=4, nonce="from before it started anew"),
    ],
    ids=["recorded elsewhere", "does not answer", "a second time", "older"],
)
def test_a_hello_that_was_recorded_changes_nothing(link: Link, message: Hello) -> None:
    message = replace(message, heard=link.nonce) if message.heard == "ours" else message
    assert heard(link, message, now=NOW + 1).neighbour == link.neighbour


def test_what_was_recorded_is_not_believed_when_the_neighbour_is_gone(link: Link) -> None:
    recorded = say(heard=link.nonce, sequence=6)
    assert not believed(heard(hello.expire(link, NOW + HOLD_S), recorded, now=NOW + HOLD_S))
    # Nobody has looked meanwhile who is still heard.
    assert not believed(heard(link, recorded, now=NOW + HOLD_S))


@pytest.mark.parametrize("keys", [{}, {1: OTHER}], ids=["without a key", "with a wrong key"])
def test_a_stranger_does_not_displace_a_neighbour_that_is_believed(link: Link, keys: Keys) -> None:
    stranger = say(number=0, name="", nonce="strange", heard=link.nonce, sequence=10**15)
    assert heard(link, stranger, keys, NOW + HOLD_S - 0.1) == link
    taken = heard(link, stranger, keys, NOW + HOLD_S)
    assert taken.neighbour is not None
    assert (taken.neighbour.hello, taken.neighbour.authenticated) == (stranger, False)


def test_a_neighbour_is_forgotten_when_it_was_not_heard_for_long(link: Link) -> None:
    assert hello.expire(link, NOW + HOLD_S - 0.1) == link
    assert hello.expire(link, NOW + HOLD_S).neighbour is None
    assert hello.expire(heard(link, say(heard=link.nonce, sequence=6), now=NOW + 10), NOW + HOLD_S).neighbour


def test_since_when_is_told_of_a_neighbour(link: Link) -> None:
    def since(changed: Link) -> float:
        assert changed.neighbour is not None
        return changed.neighbour.since

    assert since(heard(link, say(heard=link.nonce, sequence=6), now=NOW + 5)) == NOW
    assert since(heard(link, say(heard=link.nonce, nonce="anew", sequence=6), now=NOW + 5)) == NOW
    assert since(heard(link, say(heard=link.nonce, name="one-3", number=3, sequence=6), now=NOW + 5)) == NOW + 5
    strange = heard(hello.new_link(), say())
    assert since(heard(strange, say(heard=strange.nonce, sequence=2), now=NOW + 5)) == NOW + 5


@pytest.mark.parametrize(
    ("mine", "theirs", "common"),
    [([1], (1,), 1), ([1, 2], (1,), 1), ([1, 2, 3], (3, 2), 3), ([2], (1, 3), None), ([1], (), None)],
)
def test_a_link_goes_to_the_newest_key_that_both_ends_have(
    mine: list[int], theirs: tuple[int, ...], common: int | None
) -> None:
    assert hello.common_generation(dict.fromkeys(mine, KEY), theirs) == common


def test_babeld_announces_this_nodes_own_and_takes_only_what_is_of_the_cluster() -> None:
    lines = babel.configuration(FACTS, [("eth0", KEY), ("eth1", OTHER)], Path("/run/b.sock")).splitlines()
    assert [line for line in lines if line.startswith("redistribute")] == [
        "redistribute local ip fd12:3456:789a::1/128 eq 128 allow",
        "redistribute local ip fd12:3456:789a::a:1/128 eq 128 allow",
        "redistribute local ip fd12:3456:789a::a:2/128 eq 128 allow",
        "redistribute local deny",
        # An address that is about to be withdrawn: whoever knows another way takes that.
        *(f"redistribute ip fd12:3456:789a::a:{place}/128 eq 128 proto 202 metric 32768" for place in (1, 2)),
        "redistribute ip fd12:3456:789a:1::/64 eq 64 proto 3 allow",
        "redistribute ip 10.0.1.0/24 eq 24 proto 3 allow",
        *(f"redistribute ip ::/0 eq 0 proto {proto} metric 128" for proto in (4, 9, 16)),
        *(f"redistribute ip 0.0.0.0/0 eq 0 proto {proto} metric 128" for proto in (4, 9, 16)),
        "redistribute deny",
    ]
    assert [line for line in lines if line.startswith("in ")] == [
        "in if seqno0 deny",
        "in ip fd12:3456:789a::/48 allow",
        "in ip 10.0.0.0/8 allow",
        "in ip ::/0 eq 0 allow",
        "in ip 0.0.0.0/0 eq 0 allow",
        "in deny",
    ]
    assert {"install ip ::/0 pref-src fd12:3456:789a::1", "install ip 0.0.0.0/0 pref-src 10.0.1.1"} <= {*lines}
    # A number of whole seconds: babeld takes no other, and does not start.
    assert "smoothing-half-life 1" in lines
    # babeld wants a key before the interface that uses it.
    of_ports = lines[-5:-1]
    assert of_ports == babel.interface(FACTS, "eth0", KEY) + babel.interface(FACTS, "eth1", OTHER)
    assert of_ports[0] == f"key id eth0 type blake2s128 value {KEY}"
    assert of_ports[1].startswith("interface eth0 key eth0 ")
    # The one without a key leads to the agent.
    assert lines[-1].startswith("interface seqno0 type wired ")


@pytest.mark.parametrize(
    ("hello_s", "intervals"),
    [(0.2, "hello-interval 0.2 update-interval 2 "), (1.0, "hello-interval 1 update-interval 10 ")],
)
def test_a_slower_hello_makes_updates_slower_too(hello_s: float, intervals: str) -> None:
    assert intervals in babel.configuration(FACTS, [("eth0", KEY)], Path("/run/b.sock"), hello_s)


def test_a_slow_machine_is_not_taken_for_a_slow_cable() -> None:
    at_once, slowly = (babel.interface(replace(FACTS, probe_scale=scale), "eth0", KEY)[1] for scale in (1, 10))
    assert " rtt-min 100 rtt-max 200 " in at_once and " rtt-min 1000 rtt-max 2000 " in slowly


DUMP = """\
add interface eth0 up true ipv6 fe80::9 ipv4 10.0.1.1
add neighbour 55d0 address fe80::1 if eth0 reach ffff ureach 0000 rxcost 96 txcost 96 cost 96
add neighbour 55d1 address fe80::2 if eth1 reach 00f0 ureach 0000 rxcost 65535 txcost 96 rtt 0.3 rttcost 0 cost 65535
add neighbour 55d2 address fe80::3 if eth1 reach ffff ureach 0000 rxcost 96 txcost 256 cost 256
add xroute fd00::1/128-::/0 prefix fd00::1/128 from ::/0 metric 0
add route 55 prefix fd00::2/128 from ::/0 installed yes id 02:aa metric 96 refmetric 0 via fe80::1 if eth0
add route 56 prefix fd00::2/128 from ::/0 installed no id 02:aa metric 192 refmetric 96 via fe80::3 if eth1
add route 57 prefix fd00::3/128 from ::/0 installed no id 02:bb metric 65535 refmetric 65535 via fe80::3 if eth1
add route 60 prefix fd00::4/128 from ::/0 installed yes id 02:cc metric 65535 refmetric 65535 via fe80::1 if eth0
add route 58 prefix 10.0.2.0/24 from 0.0.0.0/0 installed yes id 02:aa metric 96 refmetric 0 via fe80::1 if eth0

add
"""


def test_what_babeld_knows_is_read() -> None:
    table = babel.parse(DUMP.splitlines())
    assert table.installed == {"fd00::2/128", "10.0.2.0/24"}
    assert table.link("eth0") == babel.Link("fe80::1", 96, 96, 96, 0xFFFF)
    assert table.link("eth1") == babel.Link("fe80::3", 96, 256, 256, 0xFFFF)
    assert [link.rtt_ms for _, link in table.neighbours] == [None, 0.3, None]
    assert table.link("eth2") is None
    assert table.interfaces == {"eth0"}
    assert babel.parse([]) == babel.Table()
    # A neighbour whose cable was pulled is of no use, though it is still listed.
    assert table.heard() == {babel.Way("fe80::1", "eth0"), babel.Way("fe80::3", "eth1")}
    assert table.own == {"fd00::1/128"}
    assert table.routes[1] == babel.Route("fd00::2/128", 192, 96, babel.Way("fe80::3", "eth1"), installed=False)
    # One that was retracted.
    assert table.routes[3].installed and not table.routes[3].in_use
    # The metric of a route that stays in use is no news.
    assert table == babel.parse(DUMP.replace("metric 96 refmetric 0", "metric 97 refmetric 1").splitlines())


async def nothing(_: babel.Table) -> bool:
    """What follows from an answer besides."""
    return False


class Babeld:
    """Stands in for babeld: one scripted reign per connection; notes what it was told."""

    def __init__(self, *dumps: str) -> None:
        self.dumps = list(dumps)
        self.told: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dump = self.dumps.pop(0) if self.dumps else ""
        writer.write(b"BABEL 1.0\nversion babeld-1.13\nok\n")
        while line := (await reader.readline()).decode().strip():
            self.told.append(line)
            writer.write(f"{dump}ok\n".encode() if line == "dump" else b"ok\n")
            if dump == "nonsense\n" * 3:
                break
        writer.close()


NONSENSE = ["add neighbour 55d0 address\n", DUMP.replace("reach ffff", "reach much"), "x" * 2**17, "nonsense\n" * 3]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=["half a line", "no number", "no end", "it dies"])
def test_a_babeld_that_talks_nonsense_or_dies_is_asked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nonsense: str
) -> None:
    monkeypatch.setattr(babel, "RETRY_S", 0.001)
    monkeypatch.setattr(babel, "OFTEN_S", 0.001)

    async def scenario() -> None:
        news = asyncio.Event()
        server = await asyncio.start_unix_server(Babeld(nonsense, DUMP).serve, tmp_path / "b.sock")
        talk = babel.Babel(tmp_path / "b.sock", news.set, nothing)
        task = asyncio.create_task(talk.run())
        try:
            while not talk.table.installed:
                await asyncio.wait_for(news.wait(), 5)
                news.clear()
                assert not task.done()
        finally:
            task.cancel()
            server.close()

    asyncio.run(scenario())


def test_commands_reach_babeld_in_order_and_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(babel, "OFTEN_S", 60.0)

    async def scenario() -> list[str]:
        babeld, news = Babeld(DUMP), asyncio.Event()
        server = await asyncio.start_unix_server(babeld.serve, tmp_path / "b.sock")
        talk = babel.Babel(tmp_path / "b.sock", news.set, nothing)
        task = asyncio.create_task(talk.run())
        await asyncio.wait_for(news.wait(), 5)
        babeld.told.clear()
        talk.send(babel.interface(FACTS, "eth3", KEY))
        async with asyncio.timeout(10):
            while "dump" not in babeld.told:
                await asyncio.sleep(0.001)
        task.cancel()
        server.close()
        return babeld.told

    told = asyncio.run(scenario())
    assert told[:3] == [*babel.interface(FACTS, "eth3", KEY), "dump"]


API, NODE = "fd12::a:1", "fd12::7"


def chains(script: str) -> dict[str, list[str]]:
    """The rules of each chain that has some."""
    found = re.findall(r"chain (\w+) \{\n(.*?)\n  \}", script, re.DOTALL)
    return {name: [rule.strip() for rule in rules.splitlines() if "#" not in rule] for name, rules in found}


def test_a_stranger_reaches_what_lets_it_boot_and_ask_and_nothing_else() -> None:
    rules = chains(firewall.ruleset(["eth0"], [], API, NODE, provision=True))
    assert rules["input"][:2] == ["iifname @trusted accept", "iifname @ports jump stranger"]
    *shown, last = rules["stranger"]
    accepted = [rule for rule in shown if not rule.endswith(("drop", "jump limited"))]
    assert last == "drop"
    # Each connection takes something of a server that all ports have.
    limited = [rule.split()[2] for rule in shown if rule.endswith("ct state new jump limited")]
    assert limited == [str(relay.PORT), str(boot_image.PORT), "69"]
    # What is answered to makes entries in tables that all ports share.
    assert not [rule for rule in accepted if re.search("icmp|67", rule) and not rule.endswith("greeting")]
    # From addresses of this very cable; a machine that asks for one has none yet.
    sources = r"fe80::/10|::|fd6b:6d00::/32|\{ fe80::/10, (::|fd6b:6d00::/32) \}"
    own = re.compile(rf"(ip6 saddr ({sources})|ip saddr 198.19.0.0/16) .* (accept|jump computer|jump greeting)$")
    assert [rule for rule in accepted if not own.match(rule)] == ["udp dport { 67, 547 } jump greeting"]
    reached = {
        found
        for rule in accepted
        for found in re.findall(r"(tcp|udp) dport (.*) (?:accept|jump computer|jump greeting)", rule)
    }
    assert reached == {
        ("udp", f"{{ 6696, {hello.PORT} }}"), ("udp", "{ 67, 547 }"), ("udp", "69"),
        ("tcp", str(relay.PORT)), ("tcp", str(boot_image.PORT)), ("tcp", "6443"),
    }  # fmt: skip
    assert rules["limited"] == ["update @talkers { iifname limit rate over 50/second burst 200 packets } drop"]
    assert rules["greeting"] == ["jump limited", "accept"]
    script = firewall.ruleset(["eth0", "eth1"], ["eth2"], API, NODE, provision=True)
    arp = re.findall(r'add rule arp kubermesh input iifname "(\w+)" (.*)', script)
    assert arp == [("eth0", rules["limited"][0]), ("eth1", rules["limited"][0])]
    to = {rule.partition("daddr ")[2].partition(" tcp")[0] for rule in accepted if "tcp" in rule}
    assert to == {"fe80::/10", "{ fe80::/10, fd6b:6d00::/32 }", "198.19.0.0/16", API}
    icmp = {kind for rule in accepted for kind in re.findall(r"(?:nd|echo)-[a-z-]+", rule)}
    assert "nd-redirect" not in icmp and icmp <= {
        "nd-neighbor-solicit", "nd-neighbor-advert", "nd-router-solicit", "nd-router-advert", "echo-request", "echo-reply",
    }  # fmt: skip


def test_nothing_but_the_api_is_forwarded_for_a_port_that_is_not_trusted() -> None:
    rules = chains(firewall.ruleset(["eth0"], ["eth1"], API, NODE, provision=True))
    stranger = "iifname @ports iifname != @trusted"
    to_stranger = "oifname @ports oifname != @trusted"
    assert rules["forward"] == [
        f"{stranger} ip6 saddr fd6b:6d00::/32 ip6 daddr {API} tcp dport 6443 jump computer",
        f"{stranger} drop",
        f"{to_stranger} ip6 saddr {API} ct state established accept",
        f"{to_stranger} meta l4proto icmpv6 ct state related accept",
        f"{to_stranger} drop",
        "iifname @gateways ct state established,related accept",
        "iifname @gateways drop",
    ]
    # Only from addresses of its own cable, and not without end.
    assert [rule.rpartition(" ")[2] for rule in rules["computer"]] == ["accept", "drop", "drop", "drop", "accept"]
    # The mesh has no route back to a plain computer: the API server sees this node.
    assert f"ip6 saddr fd6b:6d00::/32 ip6 daddr {API} snat to {NODE}" in rules["postrouting"]


def test_where_nothing_is_offered_a_stranger_reaches_the_question_to_be_admitted_only() -> None:
    rules = chains(firewall.ruleset(["eth0"], [], API, NODE, provision=False))
    limited, *accepted, last = rules["stranger"]
    assert limited.endswith("jump limited") and last == "drop"
    assert all(re.match(r"ip6 saddr (fe80::/10|::) .* (accept|jump greeting)$", rule) for rule in accepted)
    assert "6443" not in str(rules) and str(boot_image.PORT) not in str(rules)
    assert [rule for rule in rules["forward"] if not rule.endswith("drop")] == [
        "iifname @gateways ct state established,related accept"
    ]


def test_the_outside_gets_answers_only_and_sees_one_address() -> None:
    rules = chains(firewall.ruleset([], ["eth1"], API, NODE, provision=True))
    assert rules["input"][2] == "iifname @gateways jump outside"
    assert (rules["outside"][0], rules["outside"][-1]) == ("ct state established,related accept", "drop")
    assert rules["postrouting"][0] == "oifname @gateways ct state new masquerade"


def test_a_new_agent_fills_every_chain_anew_and_leaves_what_is_trusted() -> None:
    script = firewall.ruleset(["eth1", "eth0"], ["wan"], API, NODE, provision=True)
    flushed = set(re.findall(r"^flush chain inet kubermesh (\w+)$", script, re.MULTILINE))
    assert flushed == set(chains(script))
    assert script.endswith(
        'flush set inet kubermesh ports\nadd element inet kubermesh ports { "eth0", "eth1" }\n'
        'flush set inet kubermesh gateways\nadd element inet kubermesh gateways { "wan" }\n'
    )
    assert "flush set inet kubermesh trusted" not in script


@pytest.mark.parametrize(
    ("ports", "script"),
    [
        ([], "flush set inet kubermesh trusted\n"),
        (
            ["eth1", "eth0"],
            'flush set inet kubermesh trusted\nadd element inet kubermesh trusted { "eth0", "eth1" }\n',
        ),
    ],
)
def test_exactly_these_ports_are_trusted(ports: list[str], script: str) -> None:
    assert firewall.trust(ports) == script


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What an agent tells the firewall that starts anew where all ports were trusted; the third has no carrier."""
    applied: list[str] = []
    found = tuple(Port(name, index, "02:00:00:00:00:01", carrier, 1500) for name, index, carrier in PORTS)

    async def apply(script: str) -> None:
        applied.append(script)

    async def members_of(name: str) -> frozenset[str]:
        return frozenset(port for port, _, _ in PORTS if name == "trusted")

    async def command(*_: Any, **__: Any) -> tuple[int, str]:
        await asyncio.sleep(0.02)
        return 0, ""

    monkeypatch.setattr(ports, "physical_ports", lambda **_: found)
    monkeypatch.setattr(firewall, "apply", apply)
    monkeypatch.setattr(firewall, "members_of", members_of)
    for module in (mesh, seqno, network):
        monkeypatch.setattr(module, "run_async", command)
    monkeypatch.setattr(mesh, "_hello_socket", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    return applied


def trusted_in(applied: list[str]) -> list[str]:
    return [script for script in applied if script.startswith("flush set inet kubermesh trusted")]


def test_a_new_agent_cuts_no_port_while_it_brings_the_next_one_up(tmp_path: Path, applied: list[str]) -> None:
    """Greeting begins when the first port is up; the second one's neighbour was trusted before, and stays so."""

    async def scenario() -> None:
        one = mesh.Mesh(State(), Paths(run=tmp_path), mesh.Self("one", 1, "one-1", KEYS), facts=FACTS)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(one.run(), 0.3)

    asyncio.run(scenario())
    # Whoever is plugged in at the third is not who was there before.
    assert trusted_in(applied) == [firewall.trust(["eth0", "eth1"])]


@pytest.mark.parametrize(
    ("carriers", "restarts"),
    [
        # The last neighbour goes; who is on the third port belongs to no cluster.
        ([(True, True, True), (False, True, True), (False, False, True)], 1),
        ([(True, True, True), (False, False, False)], 1),
        ([(True, True, False), (False, True, False)], 0),
        ([(False, False, True), (False, False, False)], 0),
    ],
)
def test_a_babeld_that_nobody_hears_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, applied: list[str], carriers: list[tuple[bool, ...]], restarts: int
) -> None:
    ran: list[list[str]] = []

    async def command(argv: list[str], **_: Any) -> tuple[int, str]:
        ran.append(argv)
        return 0, ""

    monkeypatch.setattr(mesh, "run_async", command)

    async def scenario() -> None:
        one = mesh.Mesh(State(), Paths(run=tmp_path), mesh.Self("one", 1, "one-1", KEYS), facts=FACTS)
        monkeypatch.setattr(one, "_believes", lambda name: name != "eth2")
        for states in carriers:
            found = [Port(f"eth{index}", index, "02::1", carrier, 1500) for index, carrier in enumerate(states)]
            await one._take_ports({port.name: port for port in found})

    asyncio.run(scenario())
    assert ran.count(["systemctl", "try-restart", babel.UNIT]) == restarts


class Speaking:
    """A babeld that begins with its configuration, and then speaks where it is told to: with these lines, and these keys."""

    def __init__(self, paths: Paths) -> None:
        self.lines: dict[str, str] = {}
        self.keys: dict[str, str] = {}
        self._paths = paths

    async def start(self) -> asyncio.Server:
        for line in self._paths.babel_config.read_text().splitlines():
            self._take(line)
        return await asyncio.start_unix_server(self._serve, self._paths.babel_socket)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ok\n")
        while line := (await reader.readline()).decode().strip():
            self._take(line)
            dump = [f"add interface {name} up true\n" for name in self.lines] if line == "dump" else []
            writer.write("".join([*dump, "ok\n"]).encode())
        writer.close()

    def _take(self, line: str) -> None:
        if line.startswith("flush interface "):
            del self.lines[line.split()[2]]
        elif line.startswith("interface eth"):
            self.lines[line.split()[1]] = line
        elif line.startswith("key id "):
            self.keys[line.split()[2]] = line.split()[-1]


def test_no_neighbour_hears_of_an_address_that_is_for_strangers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, applied: list[str]
) -> None:
    """The first port was lent by an agent before this one, the second is by this one; both are taken back."""
    paths = Paths(run=tmp_path)
    paths.provision.mkdir()
    (paths.provision / "eth0.dnsmasq").write_text("")
    monkeypatch.setattr(mesh, "LEND_S", 10.0)

    async def scenario() -> None:
        one = mesh.Mesh(State(), paths, mesh.Self("one", 1, "one-1", KEYS), facts=FACTS)
        running = asyncio.create_task(one.run())
        await until(paths.babel_config.exists)
        babeld = Speaking(paths)
        server = await babeld.start()

        async def is_so(spoken: set[str], trusted: list[str]) -> None:
            await until(lambda: set(babeld.lines) == spoken and trusted_in(applied)[-1:] == [firewall.trust(trusted)])
            begins = re.findall("^interface (eth.)", paths.babel_config.read_text(), re.MULTILINE)
            assert set(begins) == spoken

        await is_so({"eth1", "eth2"}, ["eth1"])
        await one.lend("eth1")
        assert set(babeld.lines) == {"eth2"}
        await is_so({"eth2"}, [])
        one.take_back("eth0")
        await is_so({"eth0", "eth2"}, ["eth0"])
        # What is lost on the way, with a connection that ends, is made good.
        babeld.lines["eth1"] = babeld.lines.pop("eth0")
        one._babel.hurry()
        await is_so({"eth0", "eth2"}, ["eth0"])
        one.take_back("eth1")
        await is_so({"eth0", "eth1", "eth2"}, ["eth0", "eth1"])
        # With all that those have which it began with.
        assert babeld.lines == {name: babel.interface(FACTS, name, KEY)[1] for name in ("eth0", "eth1", "eth2")}
        # All of them go to a new key at once when the old one is gone.
        one.replace_self(mesh.Self("one", 1, "one-1", {2: OTHER}))
        assert paths.babel_config.read_text().count(OTHER) == 3
        await until(lambda: babeld.keys == dict.fromkeys(babeld.lines, OTHER))
        running.cancel()
        server.close()

    live(scenario())


def test_hellos_of_all_ports_go_out_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that idles is woken up once a period, however many cables it has."""
    sent: list[tuple[float, str]] = []
    monkeypatch.setattr(hello, "PERIOD_S", 0.2)
    monkeypatch.setattr(mesh, "TOGETHER_S", 0.1)
    monkeypatch.setattr(mesh, "_hello_socket", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    monkeypatch.setattr(mesh.Mesh, "_send", lambda _, name: sent.append((time.monotonic(), name)))

    async def scenario() -> None:
        one = mesh.Mesh(State(), Paths(run=tmp_path), mesh.Self("one", 1, "one-1", KEYS))
        greeting = asyncio.create_task(one._greet())
        for name in ("eth0", "eth1", "eth2"):
            one.links[name] = hello.new_link()
            one._answer(name)
            await asyncio.sleep(0.07)
        # Each is greeted when its cable is plugged in, and all have found together two periods later.
        await asyncio.sleep(2 * hello.PERIOD_S)
        sent.clear()
        await asyncio.sleep(3.5 * hello.PERIOD_S)
        greeting.cancel()

    asyncio.run(scenario())
    rounds = [sent[at : at + 3] for at in range(0, len(sent), 3)]
    assert len(rounds) >= 2
    for one in rounds:
        assert [name for _, name in one] == ["eth0", "eth1", "eth2"], sent
    # One round a period, and no pause between the ports of one.
    assert all(second[0][0] - first[2][0] > first[2][0] - first[0][0] for first, second in pairwise(rounds))


def test_ends_of_a_cable_that_take_packets_of_different_sizes_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh, "_hello_socket", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))

    async def scenario() -> None:
        state = State()
        one = mesh.Mesh(state, Paths(run=tmp_path), mesh.Self("one", 1, "one-1", KEYS, registered=frozenset({2})))
        one.ports = {"eth0": Port("eth0", 2, "02:00", True, 1500)}
        one.links = {"eth0": hello.new_link()}

        def told(mtu: int, sequence: int, good: bool = True) -> list[str]:
            said = say(mtu=mtu, heard=one.links["eth0"].nonce, sequence=sequence)
            one._receive("eth0", said, good, "fe80::2")
            return [event["name"] for event in state.document()["events"] if event["name"].startswith("mtu")]

        assert told(9000, 1, good=False) == told(1500, 2) == []
        different = "mtu 1500 on eth0, and 9000 at the other end"
        assert told(9000, 3) == told(9000, 4) == told(1500, 5) == [different]
        assert told(9000, 6) == [different] * 2

    asyncio.run(scenario())
