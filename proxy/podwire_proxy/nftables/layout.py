"""Defines the table's sets, chains and rules as data. README.md beside this file gives the reasons for their places."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from podwire_base.kernel import nflog
from podwire_base.kernel.ip import Family, packed
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.eval import IPS_DST_NAT
from podwire_base.kernel.nft.expr import R0, RTN_LOCAL, Expr
from podwire_base.kernel.reasons import Reason, carrying

from ..dataplane import Key
from ..model import LOCALHOST, PROTOCOLS, Destination, NodeInfo, is_v6

TABLE_NAME = "podwire"
LAYOUT = 1  # of this table: raised by a change that an older proxy would misread
RAW, DSTNAT, SRCNAT = -300, -100, 100
CT_INVALID = 1  # conntrack state: the packet belongs to no flow or is outside of the window
LOCAL_SLOTS = 1 << 15  # the first slot of the local set, so that both sets share one map
MAX_BACKENDS = LOCAL_SLOTS
# for all Services with session affinity; further clients are balanced without affinity
MAX_CLIENTS = 1 << 20
AFFINITY = ("affinity", "affinity-local")  # the dynamic maps, by Sticky.local
LOOPBACK = "loopback"  # every packet passes only this chain, which exists only with NodePorts on 127.0.0.1
LO = b"lo".ljust(16, b"\0")
REFUSAL = {Reason.NO_ENDPOINTS: "reject", Reason.WRONG_PORT: "wrong-port"}  # reason -> the chain that refuses
NO_LOCAL = "no-local-endpoint"
LOGGED = 100  # refused packets of one chain that are logged each second, and at once
OWN_CHAINS = ("sticky-", "remember-", "sources-")  # chains that are added and removed with Services
_BALANCER = re.compile(r"(lb|local)\d+")


@dataclass(frozen=True, slots=True)
class Layout:
    """The names, types and header offsets of the table `podwire` of one IP family."""

    family: Family

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
        return {
            s.name: s
            for s in (
                nft.Set(t, "services", f, ("verdict",)),
                nft.Set(t, "outside", f, ("verdict",)),
                nft.Set(t, "endpoints", (*f, "mark"), (a, "inet_service")),
                nft.Set(t, "masquerade-always", f),
                nft.Set(t, "masquerade-node", f),
                nft.Set(t, "cluster-ips", (a,)),
                nft.Set(t, "hairpin", (a, a)),
                nft.Set(t, "resets", f),
                nft.Set(t, "guarded", f, ("verdict",)),
                nft.Set(t, "remember", f, ("verdict",)),
                nft.Set(t, "affinity", (*f, a), (a, "inet_service"), dynamic=MAX_CLIENTS),
                nft.Set(t, "affinity-local", (*f, a), (a, "inet_service"), dynamic=MAX_CLIENTS),
                nft.Set(t, "pods", (a,), interval=True),
                nft.Set(t, "service-cidrs", (a,), interval=True),
            )
        }

    def ours(self, ip: str) -> bool:
        return is_v6(ip) == (self.family == "ip6")

    def key(self, key: Key) -> bytes:
        """Returns the element key of a frontend."""
        number = PROTOCOLS[key.protocol]
        return packed(key.ip) + bytes((number, 0, 0, 0)) + key.port.to_bytes(2, "big") + b"\0\0"

    @staticmethod
    def destination(destination: Destination) -> bytes:
        return packed(destination.ip) + destination.port.to_bytes(2, "big") + b"\0\0"

    # Expressions

    def saddr(self, dreg: int = R0) -> nft.Payload:
        return nft.Payload("network", 12 if self.family == "ip" else 8, self.width, dreg)

    def daddr(self, dreg: int = R0) -> nft.Payload:
        return nft.Payload("network", 16 if self.family == "ip" else 24, self.width, dreg)

    @property
    def words(self) -> int:
        """Returns the number of 32-bit registers of one address."""
        return self.width // 4

    def frontend(self) -> tuple[Expr, ...]:
        """Loads daddr . l4proto . dport into consecutive registers."""
        after = R0 + self.words
        return self.daddr(), nft.Meta("l4proto", after), nft.Payload("transport", 2, 2, after + 1)

    def original(self) -> tuple[Expr, ...]:
        """Loads the destination that the client dialled, before translation.

        The registers get ct original daddr . l4proto . ct original proto-dst.
        """
        after = R0 + self.words
        return self.original_daddr(), nft.Meta("l4proto", after), nft.Ct("proto-dst", after + 1, original=True)

    def original_daddr(self) -> nft.Ct:
        return nft.Ct("ip daddr" if self.family == "ip" else "ip6 daddr", original=True)

    def balance(self, count: int, offset: int) -> tuple[Expr, ...]:
        """Draws one of `count` endpoints. The random slot goes directly into the lookup key."""
        slot = R0 + self.words + 2
        target = 12 if self.family == "ip" else 16
        return (
            *self.frontend(),
            nft.Numgen(count, offset, slot),
            nft.Lookup("endpoints", dreg=target),
            nft.Dnat(self.family, target, target + self.words),
        )


@dataclass(frozen=True, slots=True)
class StaticRules:
    """The sets, chains and rules that do not depend on Services."""

    sets: dict[str, nft.Set]
    chains: dict[str, nft.Chain]
    rules: dict[str, tuple[nft.Rule, ...]]
    elements: dict[str, dict[bytes, nft.Value]]


def as_rules(chain: nft.Chain, rules: Iterable[tuple[str, Iterable[Expr]]]) -> tuple[nft.Rule, ...]:
    """Builds rules. Each comment ends in a digest of the expressions, which identifies the rule in a read-back."""
    made = []
    for words, exprs in rules:
        expressions = tuple(exprs)
        digest = hashlib.sha256(b"".join(e.encode() for e in expressions)).hexdigest()[:8]
        made.append(nft.Rule(chain, expressions, f"{words} #{digest}"))
    return tuple(made)


def mark(layout: Layout) -> nft.Chain:
    """Returns the empty chain whose name tells the layout of the table."""
    return nft.Chain(layout.table, f"layout-{LAYOUT}")


def layout_of(chain: nft.Chain) -> int:
    """Returns the layout that a chain tells; 0 for any other chain."""
    found = re.fullmatch(r"layout-(\d{1,9})", chain.name)
    return int(found[1]) if found and chain.table.name == TABLE_NAME else 0


def comes_with_services(name: str) -> bool:
    """Whether Services add and remove a chain of this name."""
    return name.startswith(OWN_CHAINS) or _BALANCER.fullmatch(name) is not None


def _service_frontends(layout: Layout, wrong_port: str, logs: bool) -> tuple[nft.Rule, ...]:
    """Returns the rules of `service-frontends`. wrong_port: the chain for other ports of a Service address."""
    unallocated: list[Expr] = [
        layout.daddr(),
        nft.Lookup("service-cidrs"),
        nft.FibType("daddr"),
        nft.Cmp(nft.host32(RTN_LOCAL), "!="),
    ]
    return as_rules(
        nft.Chain(layout.table, "service-frontends"),
        [
            ("Service frontends", [*layout.frontend(), nft.Lookup("services", dreg=0)]),
            ("other ports of a Service address", [layout.daddr(), nft.Lookup("cluster-ips"), nft.goto(wrong_port)]),
            *((words, [*unallocated, *exprs]) for words, exprs in _logging(Reason.UNALLOCATED_ADDRESS, logs)),
            (
                carrying("unallocated Service addresses", Reason.UNALLOCATED_ADDRESS),
                [*unallocated, nft.Counter(), nft.drop()],
            ),
        ],
    )


def downgrade(layout: Layout, chains: Iterable[nft.Chain]) -> tuple[nft.Transaction, list[nft.Chain]]:
    """Returns the transaction that removes the chains that version 0.2 does not know, and these chains. chains: the
    chains of the table. Packets meet the same verdicts before and after.
    """
    names = {chain.name: chain for chain in chains}
    gone = [names[name] for name in (REFUSAL[Reason.WRONG_PORT],) if name in names]
    tx = nft.Transaction()
    if gone and "service-frontends" in names:
        tx.flush(names["service-frontends"]).add(*_service_frontends(layout, REFUSAL[Reason.NO_ENDPOINTS], False))
    gone += [chain for chain in names.values() if layout_of(chain)]
    return tx.flush(*gone).delete(*gone), gone


def static_rules(layout: Layout, node: NodeInfo, *, logs: bool = True) -> StaticRules:
    """logs: refused packets are logged, for the role `observe`."""
    t = layout.table
    pre = nft.Chain(t, "prerouting", "prerouting", "nat", DSTNAT)
    out = nft.Chain(t, "output", "output", "nat", DSTNAT)
    post = nft.Chain(t, "postrouting", "postrouting", "nat", SRCNAT)
    services, none_here = nft.Chain(t, "service-frontends"), nft.Chain(t, NO_LOCAL)
    refusing = {reason: nft.Chain(t, name) for reason, name in REFUSAL.items()}
    inp = nft.Chain(t, "input", "input", "nat", SRCNAT)
    pods = [cidr for cidr in node.pod_cidrs if layout.ours(cidr)]
    guard = "source ranges of load balancers", [*layout.frontend(), nft.Lookup("guarded", dreg=0)]
    # A TCP segment that belongs to no flow and starts no flow. Conntrack would treat this segment as the start of a
    # new flow.
    lost = (
        carrying("of a flow whose endpoint is gone", Reason.ENDPOINT_GONE),
        [
            nft.Meta("l4proto"),
            nft.Cmp(b"\6"),
            nft.Payload("transport", 13, 1),
            nft.Bitwise(b"\2", b"\0"),
            nft.Cmp(b"\0"),
            *layout.frontend(),
            nft.Lookup("resets"),
            nft.Counter(),
            nft.Reject("ip", tcp_reset=True),
        ],
    )
    rules = {
        **{chain.name: _refusing(layout, chain, reason, logs) for reason, chain in refusing.items()},
        NO_LOCAL: as_rules(
            none_here,
            [
                *_logging(Reason.NO_LOCAL_ENDPOINTS, logs),
                (
                    carrying("a Local traffic policy, endpoints only elsewhere", Reason.NO_LOCAL_ENDPOINTS),
                    [nft.Counter(), nft.drop()],
                ),
            ],
        ),
        "service-frontends": _service_frontends(layout, REFUSAL[Reason.WRONG_PORT], logs),
        "prerouting": as_rules(
            pre,
            [
                guard,
                lost,
                (
                    "externalTrafficPolicy Local, from outside",
                    [*is_pod(layout, node, invert=True), *layout.frontend(), nft.Lookup("outside", dreg=0)],
                ),
                ("all the others", [nft.jump("service-frontends")]),
            ],
        ),
        "output": as_rules(out, [guard, lost, ("from this node", [nft.jump("service-frontends")])]),
        "postrouting": as_rules(post, [*_remembering(layout), *_masquerading(layout, node)]),
        "input": as_rules(inp, _remembering(layout)),
    }
    chains = [mark(layout), *refusing.values(), none_here, services, pre, out, post, inp]
    if node.drop_invalid:
        chains.append(forward := nft.Chain(t, "forward", "forward", "filter"))
        rules["forward"] = as_rules(
            forward,
            [
                (
                    carrying("invalid for conntrack, would pass untranslated", Reason.INVALID_STATE),
                    [
                        nft.Ct("state"),
                        nft.Bitwise(nft.host32(CT_INVALID), nft.host32(0)),
                        nft.Cmp(nft.host32(0), "!="),
                        nft.Counter(),
                        nft.drop(),
                    ],
                )
            ],
        )
    if layout.family == "ip" and node.localhost:
        chains.append(wire := nft.Chain(t, LOOPBACK, "prerouting", "filter", RAW))
        rules[LOOPBACK] = as_rules(
            wire,
            [
                (
                    carrying(f"a loopback {words} from the wire", Reason.LOOPBACK_MARTIAN),
                    [
                        nft.Meta("iifname"),
                        nft.Cmp(LO, "!="),
                        address,
                        nft.Bitwise(b"\xff\0\0\0", bytes(4)),
                        nft.Cmp(b"\x7f\0\0\0"),
                        nft.Counter(),
                        nft.drop(),
                    ],
                )
                for words, address in (("destination", layout.daddr()), ("source", layout.saddr()))
            ],
        )
    return StaticRules(
        layout.sets(),
        {chain.name: chain for chain in chains},
        rules,
        {
            "pods": nft.intervals(pods),
            "service-cidrs": nft.intervals(cidr for cidr in node.service_cidrs if layout.ours(cidr)),
        },
    )


def _refusing(layout: Layout, chain: nft.Chain, reason: Reason, logs: bool) -> tuple[nft.Rule, ...]:
    tcp = [nft.Meta("l4proto"), nft.Cmp(b"\6"), nft.Counter(), nft.Reject("ip", tcp_reset=True)]
    return as_rules(
        chain,
        [
            *_logging(reason, logs),
            (carrying("refused at once", reason), tcp),
            (carrying("port unreachable", reason), [nft.Counter(), nft.Reject(layout.family)]),
        ],
    )


def _logging(reason: Reason, logs: bool) -> list[tuple[str, list[Expr]]]:
    """Returns the rule that logs a packet that the next rule refuses or drops. It is a rule of its own, because its
    limit would end the rule that refuses.
    """
    log = nft.Log(nflog.GROUP, nflog.prefix(reason), nflog.LENGTH)
    return [(f"logged: {reason}", [nft.Limit(LOGGED, LOGGED), log])] if logs else []


def is_pod(layout: Layout, node: NodeInfo, *, invert: bool = False) -> tuple[Expr, ...]:
    """Matches packets of pods (`invert`: all other packets). Returns () if no source counts as a pod."""
    if node.pod_interface:
        wanted = node.pod_interface.encode()
        data = wanted[:-1] if wanted.endswith(b"*") else wanted.ljust(16, b"\0")
        return nft.Meta("iifname"), nft.Cmp(data, "!=" if invert else "==")
    if any(layout.ours(cidr) for cidr in node.pod_cidrs):
        return layout.saddr(), nft.Lookup("pods", invert=invert)
    return ()


def _remembering(layout: Layout) -> Iterator[tuple[str, list[Expr]]]:
    yield (
        "not translated",
        [nft.Ct("status"), nft.Bitwise(nft.host32(IPS_DST_NAT), nft.host32(0)), nft.Cmp(nft.host32(0)), nft.ret()],
    )
    yield "session affinity", [*layout.original(), nft.Lookup("remember", dreg=0)]


def _masquerading(layout: Layout, node: NodeInfo) -> Iterator[tuple[str, list[Expr]]]:
    if layout.family == "ip" and node.localhost:  # like the rule below, with a counter
        for masquerade in ("masquerade-always", "masquerade-node"):
            yield (
                carrying(f"NodePorts on 127.0.0.1: {masquerade}", Reason.LOCALHOST_NODE_PORT),
                [
                    layout.original_daddr(),
                    nft.Cmp(packed(LOCALHOST)),
                    *layout.original(),
                    nft.Lookup(masquerade),
                    nft.Counter(),
                    nft.Masquerade(),
                ],
            )
    yield "hairpin", [layout.saddr(), layout.daddr(R0 + layout.words), nft.Lookup("hairpin"), nft.Masquerade()]
    yield "external frontends", [*layout.original(), nft.Lookup("masquerade-always"), nft.Masquerade()]
    to_cluster_ip: list[Expr] = [layout.original_daddr(), nft.Lookup("cluster-ips"), nft.Masquerade()]
    if node.masquerade_all:
        yield "every ClusterIP", to_cluster_ip
    if pod := is_pod(layout, node):
        yield "pods keep their address", [*pod, nft.ret()]
        yield "from off the cluster to a ClusterIP", to_cluster_ip
    yield (
        "this node to externalTrafficPolicy Local",
        [
            nft.FibType("saddr"),
            nft.Cmp(nft.host32(RTN_LOCAL)),
            *layout.original(),
            nft.Lookup("masquerade-node"),
            nft.Masquerade(),
        ],
    )
