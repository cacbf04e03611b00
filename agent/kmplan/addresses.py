"""The address plan of a cluster: every address follows from the cluster's /48 and the node's number."""

import secrets
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

MAX_NODE = 32767
UNIQUE_LOCAL = IPv6Network("fd00::/8")

# 10.255.0.0/16 would be the pods of nodes 65280 and up, which no node can be.
SERVICES4 = IPv4Network("10.255.0.0/16")
DNS_HOST = 10


@dataclass(frozen=True)
class AddressPlan:
    """Addresses of a cluster with the unique local prefix `prefix`, a /48 (RFC 4193).

    Node numbers run from 1 to 32767; any other number raises ValueError.
    """

    prefix: IPv6Network

    @classmethod
    def parse(cls, prefix: str) -> "AddressPlan":
        """Return the plan of a prefix in text form; ValueError when it is not a /48 in fd00::/8."""
        network = IPv6Network(prefix)
        if network.prefixlen != 48 or not network.subnet_of(UNIQUE_LOCAL):
            raise ValueError(f"{prefix} is not a /48 in {UNIQUE_LOCAL}")
        return cls(network)

    def node(self, number: int) -> IPv6Address:
        """Return the address of a node on its `lo`."""
        return self.prefix[_checked(number)]

    def node4(self, number: int) -> IPv4Address:
        """Return the IPv4 address of a node: the first of its pods' range."""
        return self.pods4(number)[1]

    def pods(self, number: int) -> IPv6Network:
        """Return the prefix of a node's pods."""
        return IPv6Network((int(self.prefix[0]) + (_checked(number) << 64), 64))

    def pods4(self, number: int) -> IPv4Network:
        """Return the IPv4 prefix of a node's pods."""
        return IPv4Network(((10 << 24) + (_checked(number) << 8), 24))

    def owner(self, prefix: str) -> int | None:
        """Return the number of the node whose address or pods a prefix is; None when it is no node's."""
        network = ip_network(prefix)
        first = int(network.network_address)
        number = first - (10 << 24) >> 8 if network.version == 4 else first - int(self.prefix[0])
        number = number >> 64 if network.prefixlen == 64 else number
        if not 1 <= number <= MAX_NODE:
            return None
        own = (f"{self.node(number)}/128", str(self.pods(number)), str(self.pods4(number)))
        return number if str(network) in own else None

    @property
    def services(self) -> IPv6Network:
        """The prefix of service addresses."""
        return IPv6Network((int(self.prefix[0]) + (0xFFFF << 64), 112))

    @property
    def services4(self) -> IPv4Network:
        """The IPv4 prefix of service addresses."""
        return SERVICES4

    @property
    def api(self) -> IPv6Address:
        """The anycast address of the Kubernetes API."""
        return self.prefix[0xA0001]

    @property
    def join(self) -> IPv6Address:
        """The anycast address of the join API."""
        return self.prefix[0xA0002]

    @property
    def dns(self) -> IPv6Address:
        """The address of the cluster's DNS service."""
        return self.services[DNS_HOST]

    @property
    def dns4(self) -> IPv4Address:
        """The IPv4 address of the cluster's DNS service."""
        return self.services4[DNS_HOST]

    @property
    def kubernetes(self) -> tuple[IPv6Address, IPv4Address]:
        """The addresses of the service `kubernetes`: the first of each family."""
        return self.services[1], self.services4[1]


def random_prefix() -> IPv6Network:
    """Choose a random unique local /48 (RFC 4193, section 3.2)."""
    return IPv6Network(((0xFD << 120) + (secrets.randbits(40) << 80), 48))


def _checked(number: int) -> int:
    if not 1 <= number <= MAX_NODE:
        raise ValueError(f"node number {number} is not in 1…{MAX_NODE}")
    return number
