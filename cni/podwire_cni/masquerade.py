"""The node's nft table: packets of its pods to the world outside leave with the node's address.

Everything inside keeps its source: pods of the whole cluster and the nodes themselves are in the set `native`. One rule
for all pods, so that an ADD or DEL touches no rule; the table is replaced in one commit, and connections that are already
translated go on as conntrack knows them.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Literal

from podwire_proxy import nft

TABLE = "podwire-cni"
_SADDR = {"ip": nft.Payload("network", 12, 4), "ip6": nft.Payload("network", 8, 16)}
_DADDR = {"ip": nft.Payload("network", 16, 4), "ip6": nft.Payload("network", 24, 16)}
_TYPE = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}
_MULTICAST = {"ip": "224.0.0.0/4", "ip6": "ff00::/8"}
SRCNAT_PRIORITY = 100


def _family(cidr: str) -> Literal["ip", "ip6"]:
    return "ip" if ip_network(cidr, strict=False).version == 4 else "ip6"


def tables(pod_cidrs: Iterable[str]) -> list[nft.Table]:
    """The tables that a node with these podCIDRs has: one an IP family."""
    return [nft.Table(family, TABLE) for family in dict.fromkeys(_family(cidr) for cidr in pod_cidrs)]


def plan(pod_cidrs: Iterable[str], native: Iterable[str]) -> nft.Transaction:
    """pod_cidrs: of this node. native: what pods reach with their own address (CIDRs of the cluster, /32s of nodes)."""
    ours, inside = list(pod_cidrs), sorted(native)
    tx = nft.Transaction()
    for table in tables(ours):
        family = table.family
        pods = nft.Set(table, "pods", (_TYPE[family],), interval=True)
        local = nft.Set(table, "native", (_TYPE[family],), interval=True)
        mine = [c for c in ours if _family(c) == family]
        reach = [c for c in (*inside, *mine) if _family(c) == family]
        chain = nft.Chain(table, "postrouting", hook="postrouting", type="nat", priority=SRCNAT_PRIORITY)
        tx.remake(table).add(
            pods, nft.Elements(pods, nft.intervals(mine)),
            local, nft.Elements(local, nft.intervals([*reach, _MULTICAST[family]])), chain,
            nft.Rule(chain, (_SADDR[family], nft.Lookup("pods"), _DADDR[family], nft.Lookup("native", invert=True),
                             nft.Masquerade()), comment="pods to the world outside the cluster"))
    return tx
