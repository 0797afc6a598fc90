"""Lets pods' packets pass a chain FORWARD of iptables whose policy is drop. Pure.

Docker sets this policy when it is the first to turn forwarding on, and administrators set it by hand. No table of
podwire's own can overrule it, because every base chain of a hook has a say. So, as flannel does, the agent appends
rules to the chain itself: what every rule before them left undecided, and what has a pod's address as source or
destination, is accepted. With policy accept there is no such rule.

Only the chains in nf_tables are changed (those of iptables-nft). Docker's documentation, "Docker on a router", tells of
the policy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

from podwire_base.kernel.ip import FAMILIES, Family
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.expr import accept
from podwire_base.kernel.reasons import PODS_FORWARDED

from .tablesets import DADDR_AT, SADDR_AT, SIZE, cidr_family

CHAINS = tuple(nft.Chain(nft.Table(family, "filter"), "FORWARD") for family in FAMILIES)


def drops(chain: nft.Chain | None) -> bool:
    """Whether the chain, as it was read, drops what no rule decides."""
    return chain is not None and chain.hook == "forward" and chain.policy == "drop"


def rules(chain: nft.Chain, cidrs: Iterable[str]) -> list[nft.Rule]:
    """Returns the rules for the addresses of pods of the chain's family."""
    family: Family = "ip" if chain.table.family == "ip" else "ip6"
    mine = [ip_network(cidr) for cidr in cidrs if cidr_family(cidr) == family]
    made = []
    for net in collapse_addresses(mine):  # type: ignore[type-var]  # one family
        for side, at in (("from", SADDR_AT[family]), ("to", DADDR_AT[family])):
            exprs = (*_inside(net, at, SIZE[family]), nft.Counter(), accept())
            digest = hashlib.sha256(b"".join(expr.encode() for expr in exprs)).hexdigest()[:8]
            made.append(nft.Rule(chain, exprs, f"{PODS_FORWARDED}, {side} {net} #{digest}"))
    return made


def _inside(net: IPv4Network | IPv6Network, at: int, size: int) -> tuple[nft.Payload, nft.Bitwise, nft.Cmp]:
    return (
        nft.Payload("network", at, size),
        nft.Bitwise(net.netmask.packed, bytes(size)),
        nft.Cmp(net.network_address.packed),
    )


def ours(present: Iterable[nft.Rule]) -> list[nft.Rule]:
    """Returns those of a chain's rules that are podwire's."""
    return [rule for rule in present if rule.comment.startswith(PODS_FORWARDED)]


def plan(chain: nft.Chain | None, present: Sequence[nft.Rule], cidrs: Iterable[str]) -> nft.Transaction:
    """Returns the transaction that makes podwire's rules in the chain right; empty if they are. chain: as it was read.
    present: its rules. cidrs: the addresses of pods.
    """
    mine = ours(present)
    wanted = rules(chain, cidrs) if chain is not None and drops(chain) else []
    if [rule.comment for rule in mine] == [rule.comment for rule in wanted]:
        return nft.Transaction()
    return nft.Transaction().delete(*mine).add(*wanted)
