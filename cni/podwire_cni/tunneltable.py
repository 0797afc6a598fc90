"""The nft tables `podwire-tunnel`: which packets may enter a tunnel of overlay.py, and which may leave it. Pure.

VXLAN (RFC 7348) has no authentication: without these rules, whoever sends a UDP datagram to the tunnel's port sends a
frame from any MAC and any address into the cluster. A peer is another Node of the cluster; tunnel_mac names it inside
the tunnel.

    input       a datagram of our VNI comes from the address of a peer, and the frame in it from the MAC of this peer;
                never from a pod, and never out of a tunnel
    forward     neither pods nor machines behind this node send such a datagram to a node. With the node's own address,
                which the packet may get by masquerading, the other node would accept it.
    prerouting  a packet that leaves the tunnel has a source in the podCIDRs of the peer that its MAC names, or an
                address of this peer (its host-network answers to a pod come by the tunnel)

Only our VNI is looked at, because other software may use the same port with another VNI. A table of its own follows the
Nodes, so that the elements of pods (nodetable.py) are not written anew for each Node.

The masked source address is looked up together with the MAC, once for each prefix length that the podCIDRs have. So the
number of rules does not depend on the number of nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from podwire_base.kernel.ip import FAMILIES, Family, family_of, mac_bytes
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.reasons import Reason, carrying

from .overlay import PORT, TUNNELS, VNI, tunnel_mac
from .routes import Peer
from .tablesets import DADDR_AT, R0, RAW, SADDR_AT, SIZE, TYPE, cidr_family, link_name
from .types import BRIDGE, IPNetwork

TABLE = "podwire-tunnel"
Sources = Literal["cluster", "any"]
_BITS = {"ip": 32, "ip6": 128}
_UDP, _DPORT, _VNI, _SENDER = 17, 2, 12, 22  # offsets in the outer datagram: UDP 8, VXLAN 8, Ethernet destination 6
_REFUSED = "a frame for the tunnel"


@dataclass(frozen=True, slots=True)
class TunnelRules:
    """peers: the other nodes. reach: the addresses of pods, to which pods may send what they like. bridges: those of
    pods. sources "any": packets that leave the tunnel are checked for their node alone, because settings keep sources
    of other machines across nodes.
    """

    peers: tuple[Peer, ...] = ()
    reach: tuple[str, ...] = ()
    bridges: tuple[str, ...] = (BRIDGE,)
    sources: Sources = "cluster"
    links: tuple[str, ...] = field(default=tuple(TUNNELS.values()))


def tables() -> tuple[nft.Table, ...]:
    return tuple(nft.Table(family, TABLE) for family in FAMILIES)


def plan(rules: TunnelRules) -> nft.Transaction:
    """Returns the transaction that replaces the present tables by complete new ones."""
    tx = nft.Transaction()
    for family in FAMILIES:
        table = nft.Table(family, TABLE)
        tx.remake(table).add(*_outer(table, family, rules), *_inner(table, family, rules))
    return tx


def _ours() -> tuple[nft.Expr, ...]:
    """Returns the match of a datagram for a tunnel."""
    return (
        nft.Meta("l4proto"),
        nft.Cmp(bytes((_UDP,))),
        nft.Payload("transport", _DPORT, 2),
        nft.Cmp(PORT.to_bytes(2, "big")),
        nft.Payload("transport", _VNI, 3),
        nft.Cmp(VNI.to_bytes(3, "big")),
    )


def _refuse(words: str) -> tuple[tuple[nft.Expr, ...], str]:
    return (nft.Counter(), nft.drop()), carrying(words, Reason.SPOOFED)


def _links(table: nft.Table, name: str, links: Iterable[str]) -> Iterator[nft.Set | nft.Elements]:
    found = nft.Set(table, name, ("ifname",))
    yield from (found, nft.Elements(found, {link_name(link): None for link in links}))


def _outer(
    table: nft.Table, family: Family, rules: TunnelRules
) -> Iterator[nft.Chain | nft.Rule | nft.Set | nft.Elements]:
    size, kind = SIZE[family], TYPE[family]
    peers, nodes = nft.Set(table, "peers", (kind, "ether_addr")), nft.Set(table, "nodes", (kind,))
    reach = nft.Set(table, "reach", (kind,), interval=True)
    addresses = [(a, p.name) for p in rules.peers for a in p.addresses if family_of(a) == family]
    yield from (peers, nodes, reach)
    yield nft.Elements(peers, {nft.key(a.packed, mac_bytes(tunnel_mac(name))): None for a, name in addresses})
    yield nft.Elements(nodes, {a.packed: None for a, _ in addresses})
    yield nft.Elements(reach, nft.intervals(sorted({c for c in rules.reach if cidr_family(c) == family})))
    yield from _links(table, "inside", (*rules.bridges, *rules.links))
    yield from _links(table, "bridges", rules.bridges)
    to = nft.Payload("network", DADDR_AT[family], size)
    known = (
        *_ours(),
        nft.Payload("network", SADDR_AT[family], size),
        nft.Payload("transport", _SENDER, 6, dreg=R0 + size // 4),
        nft.Lookup(peers.name),
        nft.accept(),
    )
    came_by = nft.Meta("iifname")
    into, by = nft.Chain(table, "input", hook="input", priority=RAW), nft.Chain(table, "forward", hook="forward")
    for chain, exprs, words in (
        (into, (*_ours(), came_by, nft.Lookup("inside")), f"{_REFUSED} from a pod"),
        (into, known, ""),
        (into, _ours(), f"{_REFUSED} from no node, or with another node's MAC"),
        (
            by,
            (*_ours(), came_by, nft.Lookup("bridges"), to, nft.Lookup("reach", invert=True)),
            f"{_REFUSED} from a pod",
        ),
        (by, known, ""),
        (by, (*_ours(), to, nft.Lookup("nodes")), f"{_REFUSED} from behind this node"),
    ):
        yield chain
        last, comment = _refuse(words) if words else ((), "from a node")
        yield nft.Rule(chain, (*exprs, *last), comment=comment)


def _sources(peers: Iterable[Peer], family: Family) -> dict[int, dict[bytes, nft.Value]]:
    """Returns prefix length -> (MAC, masked source address) of each peer: its podCIDRs, and its addresses."""
    found: dict[int, dict[bytes, nft.Value]] = {}
    for peer in peers:
        mac = mac_bytes(tunnel_mac(peer.name))
        own = [(a.packed, a.max_prefixlen) for a in peer.addresses if family_of(a) == family]
        nets = [(c.network_address.packed, c.prefixlen) for c in peer.cidrs if family_of_net(c) == family]
        for address, length in (*own, *nets):
            found.setdefault(length, {})[nft.key(mac, address)] = None
    return found


def family_of_net(cidr: IPNetwork) -> Family:
    return "ip" if cidr.version == 4 else "ip6"


def _inner(
    table: nft.Table, family: Family, rules: TunnelRules
) -> Iterator[nft.Chain | nft.Rule | nft.Set | nft.Elements]:
    size, kind, address_at = SIZE[family], TYPE[family], R0 + 2  # the MAC has two registers
    chain = nft.Chain(table, "prerouting", hook="prerouting", priority=RAW)
    yield chain
    strange = tuple(nft.Cmp(link_name(link), "!=") for link in rules.links)
    yield nft.Rule(chain, (nft.Meta("iifname"), *strange, nft.accept()), comment="not from a tunnel")
    if rules.sources == "any":
        macs = nft.Set(table, "macs", ("ifname", "ether_addr"))
        known = [mac_bytes(tunnel_mac(peer.name)) for peer in rules.peers]
        yield from (macs, nft.Elements(macs, {nft.key(link_name(x), m): None for x in rules.links for m in known}))
        behind = nft.Payload("link", 6, 6, dreg=R0 + 4)  # behind the link's name
        yield nft.Rule(
            chain, (nft.Meta("iifname"), behind, nft.Lookup(macs.name), nft.accept()), comment="from any address"
        )
    else:
        for length, items in sorted(_sources(rules.peers, family).items()):
            found = nft.Set(table, f"sources-{length}", ("ether_addr", kind))
            bits = _BITS[family]
            mask = (((1 << length) - 1) << (bits - length)).to_bytes(size, "big")
            source = nft.Payload("network", SADDR_AT[family], size, dreg=address_at)
            masked = () if length == bits else (nft.Bitwise(mask, bytes(size), sreg=address_at, dreg=address_at),)
            yield from (found, nft.Elements(found, items))
            yield nft.Rule(
                chain,
                (nft.Payload("link", 6, 6), source, *masked, nft.Lookup(found.name), nft.accept()),
                comment=f"from a /{length} of its node",
            )
    last, comment = _refuse("a packet leaves the tunnel with a source that is not its node's")
    yield nft.Rule(chain, last, comment=comment)
