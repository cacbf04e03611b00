"""What may pass this node's ports (nft(8)): a cable to a stranger carries nothing but the question to be admitted.

kube-proxy's tables are its own and come after; `accept` here only means that this table has no objection.
"""

import json
from collections.abc import Iterable

from kmagent import boot_image, hello, relay
from kmplan.run import run_async

BABEL_PORT = 6696
TABLE = "inet kubermesh"

# Chains are filled anew in one transaction; the sets stay, so that a new agent does not cut what is trusted.
RULES = """\
table inet kubermesh {{
  set ports {{ type ifname; }}
  set trusted {{ type ifname; }}
  set gateways {{ type ifname; }}
  chain input {{ type filter hook input priority -10; policy accept; }}
  chain forward {{ type filter hook forward priority -10; policy accept; }}
  chain postrouting {{ type nat hook postrouting priority 110; policy accept; }}
}}
flush chain {table} input
flush chain {table} forward
flush chain {table} postrouting
table inet kubermesh {{
  chain input {{
    iifname @trusted accept
    iifname @ports jump stranger
    iifname @gateways jump outside
  }}
  chain stranger {{
    ip6 saddr fe80::/10 icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, echo-request, echo-reply }} accept
    # Read by the agent when it may look for ways out; the kernel takes no notice of it.
    ip6 saddr fe80::/10 icmpv6 type nd-router-advert accept
    # A machine without a system, and a computer that somebody plugs in (provision.py): addresses, boot files, the API.
    udp dport {{ 67, 547 }} accept
    ip6 saddr {{ fe80::/10, :: }} icmpv6 type nd-router-solicit accept
    ip6 saddr fd6b:6d00::/32 icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, echo-request }} accept
    ip saddr 198.19.0.0/16 icmp type echo-request accept
    ip saddr 198.19.0.0/16 ip daddr 198.19.0.0/16 udp dport 69 accept
    ip saddr 198.19.0.0/16 ip daddr 198.19.0.0/16 tcp dport {provide} accept
    ip6 saddr fd6b:6d00::/32 ip6 daddr fd6b:6d00::/32 udp dport 69 accept
    ip6 saddr {{ fe80::/10, fd6b:6d00::/32 }} ip6 daddr {{ fe80::/10, fd6b:6d00::/32 }} tcp dport {provide} accept
    ip6 saddr fd6b:6d00::/32 ip6 daddr {api} tcp dport 6443 accept
    ip6 saddr :: icmpv6 type nd-neighbor-solicit accept
    ip6 saddr fe80::/10 udp dport {{ {babel}, {hello} }} accept
    ip6 saddr fe80::/10 ip6 daddr fe80::/10 tcp dport {relay} accept
    drop
  }}
  chain outside {{
    ct state established,related accept
    meta l4proto {{ icmp, icmpv6 }} accept
    udp dport {{ 68, 546 }} accept
    drop
  }}
  chain forward {{
    iifname @ports iifname != @trusted ip6 saddr fd6b:6d00::/32 ip6 daddr {api} tcp dport 6443 accept
    iifname @ports iifname != @trusted drop
    oifname @ports oifname != @trusted ip6 saddr {api} ct state established accept
    oifname @ports oifname != @trusted drop
    iifname @gateways ct state established,related accept
    iifname @gateways drop
  }}
  chain postrouting {{
    oifname @gateways ct state new masquerade
    # The mesh knows no way back to a plain computer.
    ip6 saddr fd6b:6d00::/32 ip6 daddr {api} snat to {node}
  }}
}}
"""


def ruleset(ports: Iterable[str], gateways: Iterable[str], api: str, node: str) -> str:
    """Return the script that sets the rules and which ports they are about; trusted ports stay as they are.

    `api` is the cluster's API address, `node` this node's own.
    """
    numbers = {"babel": BABEL_PORT, "hello": hello.PORT, "relay": relay.PORT, "provide": boot_image.PORT}
    declared = RULES.format(table=TABLE, api=api, node=node, **numbers)
    # Chains that are jumped to exist from the second run on: emptied, they are not filled twice.
    head = "".join(f"add chain {TABLE} {name}\nflush chain {TABLE} {name}\n" for name in ("stranger", "outside"))
    return f"add table {TABLE}\n{head}{declared}{_fill('ports', ports)}{_fill('gateways', gateways)}"


def trust(ports: Iterable[str]) -> str:
    """Return the script that makes exactly these ports trusted."""
    return _fill("trusted", ports)


async def apply(script: str) -> None:
    """Run an nft script as one transaction."""
    await run_async(["nft", "-f", "-"], input=script)


async def trusted() -> frozenset[str]:
    """Return the ports that are trusted now."""
    _, text = await run_async(["nft", "--json", "list", "set", *TABLE.split(), "trusted"], check=False)
    try:
        sets = [item["set"] for item in json.loads(text)["nftables"] if "set" in item]
    except (ValueError, KeyError):
        return frozenset()
    return frozenset(name for one in sets for name in one.get("elem", []))


def _fill(name: str, ports: Iterable[str]) -> str:
    elements = ", ".join(f'"{port}"' for port in sorted(ports))
    return f"flush set {TABLE} {name}\n" + (f"add element {TABLE} {name} {{ {elements} }}\n" if elements else "")
