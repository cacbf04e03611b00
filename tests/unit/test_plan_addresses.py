"""The address plan: which address belongs to what."""

from ipaddress import IPv6Network

import pytest

from kmplan.addresses import AddressPlan, random_prefix

PLAN = AddressPlan.parse("fd12:3456:789a::/48")


@pytest.mark.parametrize(
    ("number", "node", "node4", "pods", "pods4"),
    [
        (1, "fd12:3456:789a::1", "10.0.1.1", "fd12:3456:789a:1::/64", "10.0.1.0/24"),
        (255, "fd12:3456:789a::ff", "10.0.255.1", "fd12:3456:789a:ff::/64", "10.0.255.0/24"),
        (256, "fd12:3456:789a::100", "10.1.0.1", "fd12:3456:789a:100::/64", "10.1.0.0/24"),
        (32767, "fd12:3456:789a::7fff", "10.127.255.1", "fd12:3456:789a:7fff::/64", "10.127.255.0/24"),
    ],
)
def test_a_node_number_gives_its_addresses(number: int, node: str, node4: str, pods: str, pods4: str) -> None:
    found = (PLAN.node(number), PLAN.node4(number), PLAN.pods(number), PLAN.pods4(number))
    assert tuple(map(str, found)) == (node, node4, pods, pods4)


def test_what_the_cluster_shares() -> None:
    assert str(PLAN.services) == "fd12:3456:789a:ffff::/112"
    assert str(PLAN.services4) == "10.255.0.0/16"
    assert str(PLAN.api) == "fd12:3456:789a::a:1"
    assert str(PLAN.join) == "fd12:3456:789a::a:2"
    assert (str(PLAN.dns), str(PLAN.dns4)) == ("fd12:3456:789a:ffff::a", "10.255.0.10")
    assert tuple(map(str, PLAN.kubernetes)) == ("fd12:3456:789a:ffff::1", "10.255.0.1")


@pytest.mark.parametrize("number", [-1, 0, 32768, 65535])
def test_impossible_node_numbers_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="is not in 1"):
        PLAN.node(number)


@pytest.mark.parametrize("prefix", ["fd00::/64", "2001:db8::/48", "fc00::/48", "10.0.0.0/8", "fd00:0:0:1::/48", "x"])
def test_impossible_prefixes_are_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        AddressPlan.parse(prefix)


def test_no_node_is_at_an_anycast_or_service_address() -> None:
    last = PLAN.node(32767)
    assert last < PLAN.api < PLAN.join < PLAN.services[0]
    assert not PLAN.pods(32767).overlaps(PLAN.services)
    assert not PLAN.pods4(32767).overlaps(PLAN.services4)


def test_random_prefixes_are_unique_local_and_differ() -> None:
    prefixes = {random_prefix() for _ in range(20)}
    assert len(prefixes) == 20
    assert all(prefix.prefixlen == 48 and prefix.subnet_of(IPv6Network("fd00::/8")) for prefix in prefixes)
