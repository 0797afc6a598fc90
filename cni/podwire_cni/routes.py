"""Reads the podCIDRs and addresses of the other nodes from their Node objects.

A Node without a podCIDR or an address cannot be reached yet. If a podCIDR overlaps the podCIDR of an earlier Node, it
is left out and reported, because otherwise its Node would receive packets for the earlier Node's pods.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from podwire_base.kube.meta import Object
from podwire_base.kube.nodeaddresses import usable

from .types import IPAddress, IPNetwork

PROTOCOL = 143  # rtm_protocol of our routes; no daemon of /etc/iproute2/rt_protos uses it


def pod_cidrs(node: Mapping[str, Any]) -> list[IPNetwork]:
    """Returns spec.podCIDRs, or else spec.podCIDR as a list. Raises ValueError; its text names the Node
    and the field.
    """
    spec = node.get("spec") or {}
    raw = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    try:
        found = [ip_network(cidr) for cidr in raw]
        if small := next((cidr for cidr in found if cidr.num_addresses < 4), None):
            raise ValueError(f"{small} has no room for a gateway and pods")
        return found
    except ValueError as err:
        name = (node.get("metadata") or {}).get("name")
        raise ValueError(f"Node {name}: spec.podCIDRs: {err}") from None


def facts(node: Mapping[str, Any]) -> tuple[object, ...]:
    """Returns the fields of a Node that this package reads. Other fields, such as conditions, change often and do not
    affect routes.
    """
    spec = node.get("spec") or {}
    return spec.get("podCIDRs") or spec.get("podCIDR"), usable(node)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node. cidrs: its podCIDRs; addresses: its usable addresses (podwire_base.kube.nodeaddresses)."""

    name: str
    cidrs: tuple[IPNetwork, ...]
    addresses: tuple[IPAddress, ...]


@dataclass(frozen=True, slots=True)
class Cluster:
    """All nodes as this node sees them. peers: the other nodes with podCIDRs. members: all other nodes with an address,
    because a node without a podCIDR may send to pods too. own: this node's usable addresses
    (podwire_base.kube.nodeaddresses). node_ips: those of all nodes. problems: lines for the log.
    """

    peers: tuple[Peer, ...] = ()
    own: tuple[IPAddress, ...] = ()
    node_ips: frozenset[IPAddress] = frozenset()
    problems: tuple[str, ...] = ()
    members: tuple[Peer, ...] = ()


def view(nodes: Mapping[str, Object], me: str) -> Cluster:
    """Returns the Cluster as the node `me` sees it. nodes: name -> Node. If two Nodes have the same podCIDR, the first
    Node by name gets it. But this node always keeps its own podCIDR.
    """
    members: list[Peer] = []
    own: tuple[IPAddress, ...] = ()
    taken: list[tuple[IPNetwork, str]] = []
    ips: set[IPAddress] = set()
    problems = []
    for name in sorted(nodes, key=lambda n: (n != me, n)):
        addresses = usable(nodes[name])
        ips.update(addresses)
        try:
            cidrs = pod_cidrs(nodes[name])
        except ValueError as err:
            problems.append(str(err))
            continue
        if cidrs and not addresses:
            problems.append(f"Node {name}: status.addresses has neither InternalIP nor ExternalIP; no routes")
        clear = []
        for cidr in cidrs:
            rival = next((other for net, other in taken if net.version == cidr.version and net.overlaps(cidr)), None)
            if rival:
                problems.append(f"Node {name}: podCIDR {cidr} overlaps that of Node {rival}; no route to it")
                continue
            taken.append((cidr, name))
            clear.append(cidr)
        if name == me:
            own = addresses
        elif addresses:
            members.append(Peer(name, tuple(clear), addresses))
    peers = tuple(member for member in members if member.cidrs)
    return Cluster(peers, own, frozenset(ips), tuple(problems), tuple(members))


def native(cluster: Cluster, cluster_cidrs: Iterable[str], far: Container[IPAddress] = ()) -> frozenset[str]:
    """Returns the destinations to which pods send with their own source addresses: the cluster's CIDRs, the nodes'
    addresses, and podCIDRs outside the cluster's CIDRs. far: addresses of nodes behind a router that knows no pods. It
    may drop what has a pod's address as source, so they are no such destinations.
    """
    wide = [ip_network(cidr) for cidr in cluster_cidrs]
    unwanted = [
        cidr
        for peer in cluster.peers
        for cidr in peer.cidrs
        if not any(
            net.version == cidr.version and cidr.subnet_of(net)  # type: ignore[arg-type]  # one version
            for net in wide
        )
    ]
    return frozenset(
        {
            *map(str, wide),
            *map(str, unwanted),
            *(f"{ip}/{ip.max_prefixlen}" for ip in cluster.node_ips if ip not in far),
        }
    )
