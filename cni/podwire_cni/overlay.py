"""Decides how packets reach the pods of each other node. If the other node is on the same link, its address is the
gateway ("host-gw"). If a router without routes to pods is between the nodes, packets pass a VXLAN tunnel (RFC 7348).

A tunnel is one interface for all peers. For each peer there are a route, a neighbour entry and a forwarding entry. The
route has the peer's gateway address as next hop on the tunnel. The neighbour entry maps this address to the peer's MAC
in the tunnel. The forwarding entry maps the MAC to the node's address. All three are permanent and are computed from
the Node objects, so nothing is flooded or learned. The MAC is a hash of the Node's name. So every node can compute it,
and it does not change if the node gets another address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from .routes import Cluster, Peer
from .types import IPAddress, IPNetwork

VNI, PORT = 7077, 4789  # the port that IANA assigned
TUNNELS = {4: "podwire-vxlan", 6: "podwire-vxlan6"}  # by IP version of the packets between nodes
OVERHEAD = {4: 50, 6: 70}  # inner Ethernet 14, VXLAN 8, UDP 8, IP 20 or 40
Encapsulation = Literal["auto", "always", "never"]
K = TypeVar("K")
V = TypeVar("V")


def tunnel_mac(node: str) -> str:
    """Returns the MAC of a node's tunnel interfaces: locally administered, unicast, with 46 bits of the name's hash."""
    digest = bytearray(hashlib.sha256(node.encode()).digest()[:6])
    digest[0] = digest[0] & 0xFC | 0x02
    return ":".join(f"{byte:02x}" for byte in digest)


@dataclass(frozen=True, slots=True)
class NextHop:
    """The next hop for packets to a podCIDR. link "": the kernel finds the link from `via`."""

    via: IPAddress
    link: str = ""

    def __str__(self) -> str:
        return f"{self.via} in {self.link}" if self.link else str(self.via)


@dataclass(frozen=True, slots=True)
class Tunnel:
    """This node's interface of one tunnel. local None: the kernel chooses the outer source address. gateways: the
    node's addresses inside the tunnel.
    """

    link: str
    mac: str
    mtu: int
    local: IPAddress | None = None
    gateways: tuple[IPAddress, ...] = ()
    vni: int = VNI
    port: int = PORT


@dataclass(frozen=True, slots=True)
class PeerRoutes:
    """The kernel state through which this node reaches the pods of other nodes.

    neighbours: (tunnel, next hop) -> MAC. forwarding: (tunnel, MAC) -> address of the node. problems: one line for each
    peer that cannot be reached.
    """

    routes: Mapping[IPNetwork, NextHop] = field(default_factory=dict)
    neighbours: Mapping[tuple[str, IPAddress], str] = field(default_factory=dict)
    forwarding: Mapping[tuple[str, str], IPAddress] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def versions(self) -> frozenset[int]:
        """Returns the IP versions of the tunnels in use."""
        links = {hop.link for hop in self.routes.values()}
        return frozenset(version for version, link in TUNNELS.items() if link in links)

    @property
    def overhead(self) -> int:
        """Returns the number of bytes that the largest tunnel header in use adds to a packet."""
        return max((OVERHEAD[version] for version in self.versions), default=0)


def _hop(
    peer: Peer, cidr: IPNetwork, own: Sequence[IPAddress], near: Collection[IPAddress], mode: Encapsulation
) -> tuple[NextHop, IPAddress | None] | str:
    """Returns (next hop, address of the peer as the tunnel's destination, None without a tunnel), or a text: the reason
    why the peer cannot be reached.
    """
    same = [a for a in peer.addresses if a.version == cidr.version]
    direct = next((a for a in same if a in near), None)
    if direct is not None and mode != "always":
        return NextHop(direct), None
    if mode == "never":
        if not same:
            return f"it has no address of IPv{cidr.version}"
        return NextHop(same[0]), None  # the kernel will refuse this route and name the error
    # Both nodes must choose the same tunnel: the IPv4 tunnel if both nodes have an IPv4 address.
    for version in (4, 6):
        remote = next((a for a in peer.addresses if a.version == version), None)
        if remote is not None and any(a.version == version for a in own):
            return NextHop(cidr[1], TUNNELS[version]), remote
    return "this node and it have no addresses of one IP version"


def plan(cluster: Cluster, near: Collection[IPAddress], mode: Encapsulation = "auto") -> PeerRoutes:
    """Returns the kernel state for all peers. near: the addresses of peers that this node reaches
    without a router.
    """
    routes, neighbours, forwarding = (
        dict[IPNetwork, NextHop](),
        dict[tuple[str, IPAddress], str](),
        dict[tuple[str, str], IPAddress](),
    )
    problems = []
    for peer in cluster.peers:
        for cidr in peer.cidrs:
            found = _hop(peer, cidr, cluster.own, near, mode)
            if isinstance(found, str):
                problems.append(f"Node {peer.name}: no way to its pods {cidr}: {found}")
                continue
            hop, remote = found
            routes[cidr] = hop
            if remote is not None:
                mac = tunnel_mac(peer.name)
                neighbours[hop.link, hop.via] = mac
                forwarding[hop.link, mac] = remote
    return PeerRoutes(routes, neighbours, forwarding, tuple(problems))


def changes(desired: Mapping[K, V], present: Mapping[K, V]) -> tuple[dict[K, V], dict[K, V]]:
    """Returns the difference: (entries to add or replace, entries to delete)."""
    put = {key: value for key, value in desired.items() if present.get(key) != value}
    return put, {key: value for key, value in present.items() if key not in desired}


def tunnels(
    wires: PeerRoutes,
    node: str,
    uplink_mtu: int,
    own: Sequence[IPAddress],
    here: Collection[IPAddress],
    gateways: tuple[IPAddress, ...],
) -> tuple[Tunnel, ...]:
    """Returns the tunnel interfaces that this node needs. here: all addresses of this machine. They are needed because
    an address of the Node may be that of a NAT device in front of the machine.
    """
    made = []
    for version in sorted(wires.versions):
        local = next((a for a in own if a.version == version and a in here), None)
        made.append(Tunnel(TUNNELS[version], tunnel_mac(node), uplink_mtu - OVERHEAD[version], local, gateways))
    return tuple(made)
