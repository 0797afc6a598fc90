"""The node's nft tables `podwire-cni`. They contain everything that the packet filter does for pods, except Services.

The rules are fixed. A pod consists only of elements of sets and maps, so an ADD or DEL changes no rule. A table is
replaced in one commit; meanwhile conntrack still translates established connections.

    bridge       spoofing     a pod sends from its own MAC and addresses, and on a routed bridge to the node alone
                 forward      the same for broadcast and multicast
                 reserved     a pod does not send to the reserved group addresses of 802.1D
    ip, ip6      ports        what comes in by a pod's port and not by its bridge is dropped
    ip           loopback     before conntrack: pods do not reach the node's 127.0.0.0/8
    ip, ip6      hostports    prerouting and output: a port of the node leads to a pod
                 postrouting  pods to the world outside leave with the node's address; inside the cluster they keep
                 theirs
    all          layout-N-X   empty; N is the layout, and X a digest of the table's rules

Tables of their own, `podwire-leases` (ip, ip6), make addresses without a lease unreachable: `forward`, `output` and
`postrouting`.

The bridge table checks for spoofing, because only the bridge knows the ingress port of a frame, and because a frame to
the MAC of a neighbour passes no hook of IP. The port flags `locked` and `isolated` would be cheaper. But with
br_netfilter, a Service's packet to a pod of the same node goes from port to port, and `isolated` drops such a packet.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from podwire_base.kernel.ip import FAMILIES, Family, family_of, mac_bytes
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.reasons import Reason, carrying

from . import antispoofing
from .tablesets import (
    BRIDGE_TABLE,
    DADDR_AT,
    LEASED,
    LEASES,
    MACS,
    PORTS,
    R0,
    RAW,
    SADDR_AT,
    SENDERS,
    SIZE,
    SUBNET_PORTS,
    TABLE,
    TYPE,
    cidr_family,
    link_name,
    named,
    sets_of,
)
from .template import Template, cut
from .types import BRIDGE, IPAddress, PortMapping

LAYOUT = 1  # of these tables: raised by a change that an agent of the version before would misread
SRCNAT = 100
# After the table of the Services (-100): if a NodePort and a hostPort have the same number, the NodePort takes
# precedence, because it is cluster-wide.
DSTNAT = -95
_MULTICAST = {"ip": "224.0.0.0/4", "ip6": "ff00::/8"}
_LAST_UNICAST = {"ip": b"\xdf", "ip6": b"\xfd"}  # the first byte; above it are multicast and link-local addresses
_NUMBER = {"tcp": 6, "udp": 17, "sctp": 132}


@dataclass(frozen=True, slots=True)
class OtherNet:
    """A further bridge. native None: no masquerading. mac: the MAC of the bridge if its pods send only to the node,
    else "".
    """

    bridge: str
    cidrs: tuple[str, ...]
    native: frozenset[str] | None = None
    mac: str = ""


@dataclass(frozen=True, slots=True)
class NodeRules:
    """The node's part of the tables. pod_cidrs: the podCIDRs of this node. native: the destinations to which pods send
    with their own source address (CIDRs of the cluster, /32s of nodes); None: no masquerading. kept: further addresses
    that may have a pod, because their leases are unreadable.
    """

    pod_cidrs: tuple[str, ...]
    native: frozenset[str] | None
    bridge: str = BRIDGE
    anti_spoofing: bool = True
    others: tuple[OtherNet, ...] = ()
    mac: str = ""
    kept: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class PodRules:
    """One pod's part of the tables. port: the node's end of the pod's veth. routed: the pod sends frames only to the
    node, and not to other pods on the bridge.
    """

    port: str
    mac: str
    addresses: tuple[IPAddress, ...]
    ports: tuple[PortMapping, ...] = ()
    bridge: str = BRIDGE
    routed: bool = True


def tables() -> tuple[nft.Table, ...]:
    return (BRIDGE_TABLE, *(nft.Table(family, TABLE) for family in FAMILIES))


def elements(pod: PodRules) -> Iterator[nft.Elements]:
    """Yields the elements of one pod in the tables."""
    port, mac = link_name(pod.port), _mac(pod)
    yield nft.Elements(PORTS, {port: None})
    if not pod.routed:
        yield nft.Elements(SUBNET_PORTS, {port: None})
    yield nft.Elements(MACS, {nft.key(port, mac): None})
    homes: dict[Family, IPAddress] = {}
    for address in pod.addresses:
        homes.setdefault(family_of(address), address)
        yield nft.Elements(SENDERS[family_of(address)], {nft.key(port, address.packed): None})
        yield nft.Elements(LEASED[family_of(address)], {address.packed: None})
    for family, address in homes.items():
        sets, anywhere, somewhere = sets_of(family), dict[bytes, nft.Value](), dict[bytes, nft.Value]()
        for asked in pod.ports:
            if asked.host_ip is not None and family_of(asked.host_ip) != family:
                continue
            dialled = (bytes((_NUMBER[asked.protocol],)), asked.host_port.to_bytes(2, "big"))
            target = nft.key(address.packed, asked.container_port.to_bytes(2, "big"))
            if asked.host_ip is None or asked.host_ip.is_unspecified:
                anywhere[nft.key(*dialled)] = target
            else:
                somewhere[nft.key(asked.host_ip.packed, *dialled)] = target
        if anywhere or somewhere:
            yield nft.Elements(sets.hairpin, {nft.key(address.packed, address.packed): None})
        yield from (
            e for e in (nft.Elements(sets.hostports, anywhere), nft.Elements(sets.hostports_on, somewhere)) if e.items
        )


def change(pod: PodRules, *, remove: bool = False) -> nft.Transaction:
    """Returns a transaction that adds or removes the `elements` of a pod. A removal adds the elements before it deletes
    them. So a missing element is not an error. An element with another value belongs to another pod, so the kernel
    refuses the transaction.
    """
    parts = list(elements(pod))
    made = nft.Transaction().add(*parts)
    return made.delete(*parts) if remove else made


def encoded(pod: PodRules, *, remove: bool = False) -> bytes | None:
    """Returns the `change` of a pod without hostPorts as an encoded batch of messages, made from a template. Returns
    None for other pods.
    """
    template = (
        None
        if pod.ports or not pod.routed
        else _template(tuple(family_of(address) for address in pod.addresses), remove)
    )
    return None if template is None else template.fill(_marks(pod))


def _marks(pod: PodRules) -> list[bytes]:
    return [pod.port.encode(), _mac(pod), *(address.packed for address in pod.addresses)]


def _mac(pod: PodRules) -> bytes:
    return mac_bytes(pod.mac)


@functools.cache
def _template(families: tuple[Family, ...], remove: bool) -> Template | None:
    def example(letter: str, number: int) -> PodRules:
        addresses = (ip_address(bytes((number + n,)) * SIZE[family]) for n, family in enumerate(families))
        return PodRules(letter * 15, ":".join([f"{number - 1:02x}"] * 6), tuple(addresses))

    def make(pod: PodRules) -> bytes:
        return b"".join(nft.encode(change(pod, remove=remove))[0])

    return cut(make, _marks, example("q", 0xA1), example("j", 0xC1))


def plan(node: NodeRules, pods: Iterable[PodRules]) -> nft.Transaction:
    """Returns the transaction that replaces the present tables by complete new ones."""
    tx = nft.Transaction().remake(BRIDGE_TABLE).add(PORTS, MACS, SUBNET_PORTS, *SENDERS.values())
    macs = [mac for mac in (node.mac, *(net.mac for net in node.others)) if mac]
    tx.add(*antispoofing.reserved(), *(antispoofing.spoofing(macs) if node.anti_spoofing else ()))
    for family in FAMILIES:
        table, sets = nft.Table(family, TABLE), sets_of(family)
        tx.remake(table).add(sets.hostports, sets.hostports_on, sets.hairpin)
        tx.add(*antispoofing.ports(table), *_loopback(table, node), *_hostports(table), *_postrouting(table, node))
        tx.remake(LEASES[family]).add(LEASED[family])
        tx.add(nft.Elements(LEASED[family], {a.packed: None for a in node.kept if family_of(a) == family}))
    tx.add(*_marks_of(tx))
    return tx.add(*(part for pod in pods for part in elements(pod)))


def whole(node: NodeRules, pods: Iterable[PodRules]) -> nft.Transaction:
    """Returns `plan` and the rules of the tables `podwire-leases`, which carry no mark: an agent compares all rules."""
    bridges = [node.bridge, *(net.bridge for net in node.others if net.mac or node.anti_spoofing)]
    return plan(node, pods).add(*(part for family in FAMILIES for part in _unleased(family, bridges)))


def _marks_of(tx: nft.Transaction) -> list[nft.Chain]:
    """Returns an empty chain for each table. Its name carries the layout's number and a digest of the table's rules, so
    that an agent notices rules of another version also where their comments are the same.
    """
    rules = [op.thing for op in tx if isinstance(op.thing, nft.Rule)]
    found = []
    for table in tables():
        told = [
            (rule.chain.name, b"".join(e.encode() for e in rule.exprs)) for rule in rules if rule.chain.table == table
        ]
        digest = hashlib.sha256(repr(told).encode()).hexdigest()[:8]
        found.append(nft.Chain(table, f"layout-{LAYOUT}-{digest}"))
    return found


def layout_of(chain: nft.Chain) -> int:
    """Returns the layout that a chain of `plan` names, 0 for any other chain."""
    found = re.fullmatch(r"layout-(\d+)(-.*)?", chain.name)
    return int(found[1]) if found and chain.table in tables() else 0


def _loopback(table: nft.Table, node: NodeRules) -> Iterator[nft.Chain | nft.Rule]:
    """Yields the rule that keeps pods from the node's 127.0.0.0/8. If a hostPort serves 127.0.0.1, route_localnet is
    enabled, and without this rule pods could reach the node's own 127.0.0.1.
    """
    if table.family == "ip":
        chain = nft.Chain(table, "loopback", hook="prerouting", priority=RAW)
        yield chain
        for bridge in (node.bridge, *(net.bridge for net in node.others)):
            yield nft.Rule(
                chain,
                (
                    *named("iifname", bridge),
                    nft.Payload("network", 16, 1),
                    nft.Cmp(b"\x7f"),
                    nft.Counter(),
                    nft.drop(),
                ),
                comment=carrying("a pod sends to the node's 127.0.0.0/8", Reason.LOOPBACK_MARTIAN),
            )


def _hostports(table: nft.Table) -> Iterator[nft.Chain | nft.Rule]:
    family: Family = "ip" if table.family == "ip" else "ip6"
    words = SIZE[family] // 4
    target = nft.Chain(table, "hostports")
    yield target
    dialled = (nft.Meta("l4proto", dreg=R0 + words), nft.Payload("transport", 2, 2, dreg=R0 + words + 1))
    to = nft.Dnat(family, R0, R0 + words)
    yield nft.Rule(
        target,
        (nft.Payload("network", DADDR_AT[family], SIZE[family]), *dialled, nft.Lookup("hostports-on", dreg=R0), to),
        comment="hostPorts of one address",
    )
    yield nft.Rule(
        target,
        (nft.Meta("l4proto"), nft.Payload("transport", 2, 2, dreg=R0 + 1), nft.Lookup("hostports", dreg=R0), to),
        comment="hostPorts of every address",
    )
    local = (nft.FibType("daddr"), nft.Cmp(nft.host32(2)))
    into = nft.Chain(table, "prerouting", hook="prerouting", type="nat", priority=DSTNAT)
    own = nft.Chain(table, "output", hook="output", type="nat", priority=DSTNAT)
    # IPv6 has no route_localnet, so packets to ::1 are not translated to a pod. A refused connection is better than one
    # without an answer.
    not_lo = () if family == "ip" else (nft.Payload("network", 24, 16), nft.Cmp(bytes(15) + b"\1", "!="))
    yield into
    yield nft.Rule(into, (*local, nft.jump("hostports")), comment="to an address of this node")
    yield own
    yield nft.Rule(own, (*not_lo, *local, nft.jump("hostports")), comment="from this node to itself")


def _unleased(family: Family, bridges: Iterable[str]) -> Iterator[nft.Chain | nft.Rule]:
    """Yields the rules by which an address without a lease is unreachable. The node has a route to all addresses of a
    podCIDR on its bridge. Without these rules, each packet to an unused one starts a resolution, and the table of
    neighbours, which all network namespaces of a machine share, fills with entries that never complete (RFC 6583).

    The node's own packets are answered in `output`, but those that a Service translated have their way only behind it.
    Multicast and link-local destinations are no addresses of leases.
    """
    table = LEASES[family]
    at, size, last = DADDR_AT[family], SIZE[family], _LAST_UNICAST[family]
    unreachable = (nft.Counter(), nft.Reject(family, host=True))
    for name, hook, local, end in (
        ("forward", "forward", (), unreachable),
        ("output", "output", (), unreachable),
        ("postrouting", "postrouting", (nft.Meta("iif"), nft.Cmp(nft.host32(0))), (nft.Counter(), nft.drop())),
    ):
        chain = nft.Chain(table, name, hook=hook)  # type: ignore[arg-type]  # mypy takes the names of hooks for str
        yield chain
        for bridge in bridges:
            yield nft.Rule(
                chain,
                (
                    *local,
                    *named("oifname", bridge),
                    nft.Payload("network", at, 1),
                    nft.Cmp(last, "<="),
                    nft.Payload("network", at, size),
                    nft.Lookup(LEASED[family].name, invert=True),
                    *end,
                ),
                comment=carrying("no pod has this address", Reason.UNLEASED),
            )


def _postrouting(table: nft.Table, node: NodeRules) -> Iterator[nft.Chain | nft.Rule | nft.Set | nft.Elements]:
    family: Family = "ip" if table.family == "ip" else "ip6"
    size, kind = SIZE[family], TYPE[family]
    source, to = nft.Payload("network", SADDR_AT[family], size), nft.Payload("network", DADDR_AT[family], size)
    chain = nft.Chain(table, "postrouting", hook="postrouting", type="nat", priority=SRCNAT)
    yield chain
    for bridge in (node.bridge, *(net.bridge for net in node.others)):
        there = named("oifname", bridge)
        if family == "ip":
            yield nft.Rule(
                chain,
                (*there, nft.Payload("network", 12, 1), nft.Cmp(b"\x7f"), nft.Masquerade()),
                comment="from 127.0.0.1 to a hostPort",
            )
        second = nft.Payload("network", DADDR_AT[family], size, dreg=R0 + size // 4)
        yield nft.Rule(
            chain,
            (*there, source, second, nft.Lookup("hairpin"), nft.Masquerade()),
            comment="a pod to its own hostPort",
        )
    for suffix, net in (
        ("", OtherNet(node.bridge, node.pod_cidrs, node.native)),
        *((f"-{n.bridge}", n) for n in node.others),
    ):
        mine = [c for c in net.cidrs if cidr_family(c) == family]
        if not mine or net.native is None:
            continue
        pods, local = (nft.Set(table, f"{name}{suffix}", (kind,), interval=True) for name in ("pods", "native"))
        reach = [*sorted(c for c in net.native if cidr_family(c) == family), *mine, _MULTICAST[family]]
        yield from (pods, nft.Elements(pods, nft.intervals(mine)), local, nft.Elements(local, nft.intervals(reach)))
        yield nft.Rule(
            chain,
            (source, nft.Lookup(pods.name), to, nft.Lookup(local.name, invert=True), nft.Masquerade()),
            comment="pods to the world outside the cluster",
        )
