"""Reads the podCIDRs and InternalIPs of the other nodes from their Node objects.

A Node without a podCIDR or an address cannot be reached yet. A Node whose podCIDR overlaps another's is left out and
reported, because it would receive packets for the other's pods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from podwire_base.kube.meta import Object

from .types import IPAddress, IPNetwork

PROTOCOL = 143  # rtm_protocol of our routes; no daemon of /etc/iproute2/rt_protos uses it


def pod_cidrs(node: Mapping[str, Any]) -> list[IPNetwork]:
    """spec.podCIDRs, or spec.podCIDR. Raises ValueError that names the Node and the field."""
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


def internal_ips(node: Mapping[str, Any]) -> list[IPAddress]:
    """The addresses of type InternalIP; text that is no address is skipped."""
    found = []
    for entry in (node.get("status") or {}).get("addresses") or []:
        if entry.get("type") == "InternalIP":
            try:
                found.append(ip_address(entry.get("address") or ""))
            except ValueError:
                continue
    return found


def facts(node: Mapping[str, Any]) -> tuple[object, ...]:
    """The fields of a Node that this package reads. Other fields, such as conditions, change often and do not affect
    routes.
    """
    spec = node.get("spec") or {}
    return spec.get("podCIDRs") or spec.get("podCIDR"), internal_ips(node)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node. cidrs: its podCIDRs; addresses: its InternalIPs, in the Node's order."""

    name: str
    cidrs: tuple[IPNetwork, ...]
    addresses: tuple[IPAddress, ...]


@dataclass(frozen=True, slots=True)
class Cluster:
    """own: this node's InternalIPs. node_ips: every node's. `problems` are for the log."""

    peers: tuple[Peer, ...] = ()
    own: tuple[IPAddress, ...] = ()
    node_ips: frozenset[IPAddress] = frozenset()
    problems: tuple[str, ...] = ()


def view(nodes: Mapping[str, Object], me: str) -> Cluster:
    """nodes: by name. If two Nodes have the same podCIDR, the first by name gets it, except that this node always keeps
    its own.
    """
    peers: list[Peer] = []
    own: tuple[IPAddress, ...] = ()
    taken: list[tuple[IPNetwork, str]] = []
    ips: set[IPAddress] = set()
    problems = []
    for name in sorted(nodes, key=lambda n: (n != me, n)):
        addresses = tuple(internal_ips(nodes[name]))
        ips.update(addresses)
        try:
            cidrs = pod_cidrs(nodes[name])
        except ValueError as err:
            problems.append(str(err))
            continue
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
        elif clear and addresses:
            peers.append(Peer(name, tuple(clear), addresses))
    return Cluster(tuple(peers), own, frozenset(ips), tuple(problems))


def native(cluster: Cluster, cluster_cidrs: Iterable[str]) -> frozenset[str]:
    """Destinations that pods reach with their own addresses: the cluster's CIDRs, nodes, and podCIDRs outside those
    CIDRs.
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
    return frozenset({*map(str, wide), *map(str, unwanted), *(f"{ip}/{ip.max_prefixlen}" for ip in cluster.node_ips)})
