"""Ways out: which routers there are, and which of them the mesh is told of."""

import json

import pytest

from kmagent import egress
from kmagent.egress import Router, choose, default_routes

FIRST, SECOND = Router(6, "fe80::1", "eth2"), Router(6, "fe80::2", "eth2")
OTHER = Router(4, "192.0.2.1", "eth2")


def test_routers_are_read_also_where_several_are_one_route() -> None:
    """As iproute2 6 shows a network with two routers that advertise."""
    hops = [{"gateway": router.address, "dev": router.port, "weight": 1, "flags": []} for router in (FIRST, SECOND)]
    routes = [
        {"dst": "default", "protocol": "ra", "metric": 1024, "flags": [], "nexthops": hops},
        {"dst": "2001:db8::/64", "dev": "eth2", "protocol": "ra"},
        {"dst": "default", "dev": "tun0", "protocol": "static"},
    ]
    assert default_routes(json.dumps(routes), 6) == {FIRST, SECOND}
    assert default_routes(json.dumps([{"dst": "default", "gateway": "fe80::1", "dev": "eth2"}]), 6) == {FIRST}
    assert default_routes("", 6) == default_routes("Dump terminated\n", 6) == set()


@pytest.mark.parametrize(
    ("good", "announced", "chosen"),
    [
        ({FIRST, SECOND, OTHER}, set(), {FIRST, OTHER}),
        # Nothing changes as long as the one that is used answers.
        ({FIRST, SECOND, OTHER}, {SECOND}, {SECOND, OTHER}),
        ({FIRST}, {SECOND}, {FIRST}),
        (set(), {SECOND}, set()),
    ],
)
def test_one_router_of_each_family_is_used(good: set[Router], announced: set[Router], chosen: set[Router]) -> None:
    assert choose(good, announced) == chosen


def test_a_port_takes_what_is_offered_or_what_is_given() -> None:
    taken = egress.network_file({"port": "eth2", "addresses": [], "routers": []})
    assert "DHCP=yes" in taken and "IPv6AcceptRA=yes" in taken and "Address=" not in taken
    given = egress.network_file({"port": "eth2", "addresses": ["192.0.2.2/28"], "routers": ["192.0.2.1"]})
    assert "DHCP=no" in given and "Address=192.0.2.2/28\n" in given
    assert given.endswith(f"\n[Route]\nGateway=192.0.2.1\nTable={egress.TABLE}\n")
