"""What may pass this node's ports (nft(8)): a cable to a stranger carries the question to be admitted, and what boots a machine.

kube-proxy's tables are its own and come after; `accept` here only means that this table has no objection.
"""

import json
from collections.abc import Collection, Iterable

from kmagent import boot_image, hello, relay, seqno
from kmagent.programs import run_async

TABLE, ARP_TABLE = "inet kubermesh", "arp kubermesh"
# What a port may say that costs something which all ports share; `talkers` is a set that both tables have.
TALKERS = "{ type ifname; size 1024; flags dynamic; }"
LIMIT = "update @talkers { iifname limit rate over 50/second burst 200 packets } drop"

# Chains are filled anew in one transaction; the sets stay, so that a new agent does not cut what is trusted.
RULES = """\
table inet kubermesh {{
  set ports {{ type ifname; }}
  set trusted {{ type ifname; }}
  set gateways {{ type ifname; }}
  set talkers {talkers}
  set computers {{ type ipv6_addr; size 1024; flags dynamic; }}
  chain input {{ type filter hook input priority -10; policy accept; }}
  chain forward {{ type filter hook forward priority -10; policy accept; }}
  chain output {{ type filter hook output priority -10; policy accept; }}
  chain postrouting {{ type nat hook postrouting priority 110; policy accept; }}
}}
flush chain {table} input
flush chain {table} output
flush chain {table} forward
flush chain {table} postrouting
table inet kubermesh {{
  chain input {{
    iifname @trusted accept
    iifname @ports jump stranger
    iifname @gateways jump outside
  }}
  chain stranger {{
    # All ports have one socket, one server, one table of neighbours: who talks too much on one is not to drown who is on another.
    tcp dport {relay} ct state new jump limited
    ip6 saddr fe80::/10 icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, echo-request, echo-reply }} jump greeting
    # Read by the agent when it may look for ways out; the kernel takes no notice of it.
    ip6 saddr fe80::/10 icmpv6 type nd-router-advert jump greeting
    ip6 saddr :: icmpv6 type nd-neighbor-solicit jump greeting
    ip6 saddr fe80::/10 udp dport {{ {babel}, {hello} }} jump greeting
    ip6 saddr fe80::/10 ip6 daddr fe80::/10 tcp dport {relay} accept
{offered}    drop
  }}
  chain limited {{
    {limit}
  }}
  chain greeting {{
    jump limited
    accept
  }}
  chain computer {{
{computer}  }}
  chain outside {{
    ct state established,related accept
    meta l4proto {{ icmp, icmpv6 }} accept
    udp dport {{ 68, 546 }} accept
    drop
  }}
  chain forward {{
{to_api}    iifname @ports iifname != @trusted drop
{from_api}    oifname @ports oifname != @trusted drop
    iifname @gateways ct state established,related accept
    iifname @gateways drop
  }}
  chain output {{
    # Babeld does what it is asked there, and has no key to tell by who asks.
    oifname {asking} meta skuid != 0 drop
  }}
  chain postrouting {{
    oifname @gateways ct state new masquerade
{from_node}  }}
}}
"""

# What is offered to strangers (provision.py): addresses and boot files to a machine without a system, on this very cable; and to
# a computer that somebody plugs in the API, which may be on another node. The mesh knows no way back to it but by this one.
OFFERED = {
    "offered": """\
    tcp dport {serve} ct state new jump limited
    udp dport {{ 67, 547 }} jump greeting
    ip6 saddr {{ fe80::/10, :: }} icmpv6 type nd-router-solicit jump greeting
    ip6 saddr fd6b:6d00::/32 icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} jump greeting
    ip6 daddr fd6b:6d00::/32 fib daddr . iif type != local drop
    ip daddr 198.19.0.0/16 fib daddr . iif type != local drop
    ip6 saddr fd6b:6d00::/32 icmpv6 type echo-request jump greeting
    udp dport 69 ct state new jump limited
    ip6 saddr fd6b:6d00::/32 ip6 daddr fd6b:6d00::/32 udp dport 69 accept
    ip6 saddr {{ fe80::/10, fd6b:6d00::/32 }} ip6 daddr {{ fe80::/10, fd6b:6d00::/32 }} tcp dport {serve} accept
    ip saddr 198.19.0.0/16 icmp type echo-request jump greeting
    ip saddr 198.19.0.0/16 ip daddr 198.19.0.0/16 udp dport 69 accept
    ip saddr 198.19.0.0/16 ip daddr 198.19.0.0/16 tcp dport {serve} accept
    ip6 saddr fd6b:6d00::/32 ip6 daddr {api} tcp dport 6443 jump computer
""",
    "computer": """\
    ct state established accept
    fib saddr . iif oif missing drop
    ct state new limit rate over 20/second burst 60 packets drop
    ct state new add @computers {{ ip6 saddr and ffff:ffff:ffff:ffff:: ct count over 128 }} drop
    accept
""",
    "to_api": """\
    iifname @ports iifname != @trusted ip6 saddr fd6b:6d00::/32 ip6 daddr {api} tcp dport 6443 jump computer
""",
    "from_api": """\
    oifname @ports oifname != @trusted ip6 saddr {api} ct state established accept
    oifname @ports oifname != @trusted meta l4proto icmpv6 ct state related accept
""",
    "from_node": """\
    ip6 saddr fd6b:6d00::/32 ip6 daddr {api} snat to {node}
""",
}


def ruleset(ports: Collection[str], gateways: Iterable[str], api: str, node: str, *, provision: bool) -> str:
    """Return the script that sets the rules and which ports they are about; trusted ports stay as they are.

    `api` is the cluster's API address, `node` this node's own; `provision` says whether strangers are offered something.
    """
    names = {"api": api, "node": node, "serve": boot_image.PORT}
    more = {name: text.format(**names) if provision else "" for name, text in OFFERED.items()}
    declared = RULES.format(
        table=TABLE, babel=seqno.PORT, asking=seqno.AGENT_END, hello=hello.PORT, relay=relay.PORT,
        talkers=TALKERS, limit=LIMIT, **more,
    )  # fmt: skip
    # Chains that are jumped to exist from the second run on: emptied, they are not filled twice.
    named = ("stranger", "limited", "greeting", "computer", "outside")
    head = "".join(f"add chain {TABLE} {name}\nflush chain {TABLE} {name}\n" for name in named)
    return f"add table {TABLE}\n{head}{declared}{_limit_arp(ports)}{_fill('ports', ports)}{_fill('gateways', gateways)}"


def _limit_arp(ports: Collection[str]) -> str:
    """An `inet` table sees no ARP, and who asks is noted in one table of the kernel's for all ports."""
    chain = f"{ARP_TABLE} input"
    script = f"add table {ARP_TABLE}\nadd set {ARP_TABLE} talkers {TALKERS}\n"
    script += f"add chain {chain} {{ type filter hook input priority 0; policy accept; }}\nflush chain {chain}\n"
    return script + "".join(f'add rule {chain} iifname "{port}" {LIMIT}\n' for port in sorted(ports))


def trust(ports: Iterable[str]) -> str:
    """Return the script that makes exactly these ports trusted."""
    return _fill("trusted", ports)


async def apply(script: str) -> None:
    """Run an nft script as one transaction."""
    await run_async(["nft", "-f", "-"], input=script)


async def remove() -> None:
    """Take all of it away: this node was removed, and who was trusted is not to be when it comes back."""
    for table in (TABLE, ARP_TABLE):
        await run_async(["nft", "delete", "table", *table.split()], check=False)


async def members_of(name: str) -> frozenset[str]:
    """Return the ports that are in a set now: those that are `trusted`, or the `gateways`."""
    _, text = await run_async(["nft", "--json", "list", "set", *TABLE.split(), name], check=False)
    try:
        sets = [item["set"] for item in json.loads(text)["nftables"] if "set" in item]
    except (ValueError, KeyError):
        return frozenset()
    return frozenset(name for one in sets for name in one.get("elem", []))


def _fill(name: str, ports: Iterable[str]) -> str:
    elements = ", ".join(f'"{port}"' for port in sorted(ports))
    return f"flush set {TABLE} {name}\n" + (f"add element {TABLE} {name} {{ {elements} }}\n" if elements else "")
