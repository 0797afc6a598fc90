"""The fixed part of the table: sets, chains and rules, as data. README.md beside this file says why each is where it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from .. import nft
from ..dataplane import Key
from ..model import PROTOCOLS, Backend, NodeInfo, is_v6, packed
from ..nft.expr import R0, Expr

TABLE_NAME = "podwire"
DSTNAT, SRCNAT = -100, 100
IPS_DST_NAT = 1 << 5  # conntrack status: this flow's destination was translated
LOCAL_SLOTS = 1 << 15  # where the slots of the local set start, so that both sets share one map
MAX_BACKENDS = LOCAL_SLOTS


@dataclass(frozen=True, slots=True)
class Layout:
    """Names, types and header offsets of one IP family's table `podwire`."""

    family: Literal["ip", "ip6"]

    @property
    def table(self) -> nft.Table:
        return nft.Table(self.family, TABLE_NAME)

    @property
    def address(self) -> str:
        return "ipv4_addr" if self.family == "ip" else "ipv6_addr"

    @property
    def width(self) -> int:
        return 4 if self.family == "ip" else 16

    @property
    def frontend_type(self) -> tuple[str, ...]:
        return (self.address, "inet_proto", "inet_service")

    def sets(self) -> dict[str, nft.Set]:
        a, f, t = self.address, self.frontend_type, self.table
        return {s.name: s for s in (
            nft.Set(t, "services", f, ("verdict",)), nft.Set(t, "outside", f, ("verdict",)),
            nft.Set(t, "endpoints", (*f, "mark"), (a, "inet_service")),
            nft.Set(t, "masquerade-always", f), nft.Set(t, "masquerade-node", f),
            nft.Set(t, "cluster-ips", (a,)), nft.Set(t, "hairpin", (a, a)),
            nft.Set(t, "pods", (a,), interval=True), nft.Set(t, "service-cidrs", (a,), interval=True))}

    def ours(self, ip: str) -> bool:
        return is_v6(ip) == (self.family == "ip6")

    def key(self, key: Key) -> bytes:
        """Element key of a frontend."""
        number = PROTOCOLS[key.protocol]
        return packed(key.ip) + bytes((number, 0, 0, 0)) + key.port.to_bytes(2, "big") + b"\0\0"

    @staticmethod
    def backend(backend: Backend) -> bytes:
        return packed(backend.ip) + backend.port.to_bytes(2, "big") + b"\0\0"

    # Expressions

    def saddr(self, dreg: int = R0) -> nft.Payload:
        return nft.Payload("network", 12 if self.family == "ip" else 8, self.width, dreg)

    def daddr(self, dreg: int = R0) -> nft.Payload:
        return nft.Payload("network", 16 if self.family == "ip" else 24, self.width, dreg)

    @property
    def words(self) -> int:
        """32-bit registers of one address."""
        return self.width // 4

    def frontend(self) -> tuple[Expr, ...]:
        """daddr . l4proto . dport into consecutive registers."""
        after = R0 + self.words
        return self.daddr(), nft.Meta("l4proto", after), nft.Payload("transport", 2, 2, after + 1)

    def original(self) -> tuple[Expr, ...]:
        """What the client dialled, before translation: ct original daddr . l4proto . ct original proto-dst."""
        after = R0 + self.words
        return self.original_daddr(), nft.Meta("l4proto", after), nft.Ct("proto-dst", after + 1, original=True)

    def original_daddr(self) -> nft.Ct:
        return nft.Ct("ip daddr" if self.family == "ip" else "ip6 daddr", original=True)

    def balance(self, count: int, offset: int) -> tuple[Expr, ...]:
        """One endpoint out of `count`: the slot is drawn straight into the lookup key."""
        slot = R0 + self.words + 2
        target = 12 if self.family == "ip" else 16
        return (*self.frontend(), nft.Numgen(count, offset, slot), nft.Lookup("endpoints", dreg=target),
                nft.Dnat(self.family, target, target + self.words))


@dataclass(frozen=True, slots=True)
class Skeleton:
    """All that does not depend on Services."""

    sets: dict[str, nft.Set]
    chains: dict[str, nft.Chain]
    rules: dict[str, tuple[nft.Rule, ...]]
    elements: dict[str, dict[bytes, nft.Value]]


def _rules(chain: nft.Chain, rules: Iterable[tuple[str, Iterable[Expr]]]) -> tuple[nft.Rule, ...]:
    """The comment ends in a digest of the expressions, by which a rule that was read back is known to be the same."""
    made = []
    for words, exprs in rules:
        expressions = tuple(exprs)
        digest = hashlib.sha256(b"".join(e.encode() for e in expressions)).hexdigest()[:8]
        made.append(nft.Rule(chain, expressions, f"{words} #{digest}"))
    return tuple(made)


def skeleton(layout: Layout, node: NodeInfo) -> Skeleton:
    t = layout.table
    pre = nft.Chain(t, "prerouting", "prerouting", "nat", DSTNAT)
    out = nft.Chain(t, "output", "output", "nat", DSTNAT)
    post = nft.Chain(t, "postrouting", "postrouting", "nat", SRCNAT)
    services, reject, none_here = (nft.Chain(t, name) for name in ("service-frontends", "reject", "no-local-endpoint"))
    pods = [cidr for cidr in node.pod_cidrs if layout.ours(cidr)]
    rules = {
        "reject": _rules(reject, [
            ("refused at once", [
                nft.Meta("l4proto"), nft.Cmp(b"\6"), nft.Counter(), nft.Reject(layout.family, tcp_reset=True)]),
            ("port unreachable", [nft.Counter(), nft.Reject(layout.family)])]),
        "no-local-endpoint": _rules(none_here, [
            ("a Local traffic policy, endpoints only elsewhere", [nft.Counter(), nft.drop()])]),
        "service-frontends": _rules(services, [
            ("Service frontends", [*layout.frontend(), nft.Lookup("services", dreg=0)]),
            ("other ports of a Service address", [layout.daddr(), nft.Lookup("cluster-ips"), nft.goto("reject")]),
            ("unallocated Service addresses", [
                layout.daddr(), nft.Lookup("service-cidrs"), nft.FibType("daddr"), nft.Cmp(nft.host32(2), "!="),
                nft.Counter(), nft.drop()])]),
        "prerouting": _rules(pre, [
            ("externalTrafficPolicy Local, from outside", [
                *((layout.saddr(), nft.Lookup("pods", invert=True)) if pods else ()),
                *layout.frontend(), nft.Lookup("outside", dreg=0)]),
            ("all the others", [nft.jump("service-frontends")])]),
        "output": _rules(out, [("from this node", [nft.jump("service-frontends")])]),
        "postrouting": _rules(post, _masquerading(layout, node, bool(pods)))}
    return Skeleton(
        layout.sets(), {chain.name: chain for chain in (reject, none_here, services, pre, out, post)}, rules,
        {"pods": nft.intervals(pods),
         "service-cidrs": nft.intervals(cidr for cidr in node.service_cidrs if layout.ours(cidr))})


def _masquerading(layout: Layout, node: NodeInfo, pods: bool) -> Iterator[tuple[str, list[Expr]]]:
    yield "not translated", [nft.Ct("status"), nft.Bitwise(nft.host32(IPS_DST_NAT), nft.host32(0)),
                             nft.Cmp(nft.host32(0)), nft.ret()]
    yield "hairpin", [layout.saddr(), layout.daddr(R0 + layout.words), nft.Lookup("hairpin"), nft.Masquerade()]
    yield "external frontends", [*layout.original(), nft.Lookup("masquerade-always"), nft.Masquerade()]
    to_cluster_ip: list[Expr] = [layout.original_daddr(), nft.Lookup("cluster-ips"), nft.Masquerade()]
    if node.masquerade_all:
        yield "every ClusterIP", to_cluster_ip
    if pods:
        yield "pods keep their address", [layout.saddr(), nft.Lookup("pods"), nft.ret()]
        yield "from off the cluster to a ClusterIP", to_cluster_ip
    yield "this node to externalTrafficPolicy Local", [
        nft.FibType("saddr"), nft.Cmp(nft.host32(2)), *layout.original(), nft.Lookup("masquerade-node"),
        nft.Masquerade()]


@lru_cache(maxsize=1 << 12)
def balancer(layout: Layout, count: int, local: bool) -> tuple[nft.Chain, tuple[nft.Rule, ...]]:
    """The chain that spreads over `count` backends of the cluster set or the local set."""
    chain = nft.Chain(layout.table, f"{'local' if local else 'lb'}{count}")
    return chain, _rules(chain, [
        (f"one of {count}", layout.balance(count, LOCAL_SLOTS if local else 0)),
        # A frontend without its slot must never leak to the default route or look refused: the client tries again.
        ("slot missing", [nft.Counter(), nft.drop()])])
