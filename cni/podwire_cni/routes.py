"""Routes to the pods of other nodes, from the Node objects: podCIDR via the node's InternalIP ("host-gw").

No tunnel, so nodes have to share a link. A Node that lacks a podCIDR or an address has no route yet; one whose podCIDR lies
over another's is left out and named, for its packets would be stolen ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from podwire_controlplane.api.meta import Object

from .types import IPAddress, IPNetwork

PROTOCOL = 143  # rtm_protocol of the routes that are ours; no daemon of /etc/iproute2/rt_protos has it


def pod_cidrs(node: Mapping[str, Any]) -> list[IPNetwork]:
    """spec.podCIDRs, or spec.podCIDR. Raises ValueError that names the Node and the field."""
    spec = node.get("spec") or {}
    raw = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    try:
        return [ip_network(cidr) for cidr in raw]
    except ValueError as err:
        name = (node.get("metadata") or {}).get("name")
        raise ValueError(f"Node {name}: spec.podCIDRs: {err}") from None


def internal_ips(node: Mapping[str, Any]) -> list[IPAddress]:
    """The addresses of type InternalIP; text that is no address is left out."""
    found = []
    for entry in (node.get("status") or {}).get("addresses") or []:
        if entry.get("type") == "InternalIP":
            try:
                found.append(ip_address(entry.get("address") or ""))
            except ValueError:
                continue
    return found


@dataclass(frozen=True, slots=True)
class Cluster:
    """What this node needs to know of the others. `problems` are for the log."""

    routes: Mapping[IPNetwork, IPAddress] = field(default_factory=dict)
    node_ips: frozenset[IPAddress] = frozenset()
    problems: tuple[str, ...] = ()


def view(nodes: Mapping[str, Object], me: str) -> Cluster:
    """nodes: by name. Of two Nodes with one podCIDR the first by name has it, but this node always has its own."""
    routes: dict[IPNetwork, IPAddress] = {}
    taken: list[tuple[IPNetwork, str]] = []
    ips: set[IPAddress] = set()
    problems = []
    for name in sorted(nodes, key=lambda n: (n != me, n)):
        addresses = internal_ips(nodes[name])
        ips.update(addresses)
        try:
            cidrs = pod_cidrs(nodes[name])
        except ValueError as err:
            problems.append(str(err))
            continue
        for cidr in cidrs:
            rival = next((other for net, other in taken if net.version == cidr.version and net.overlaps(cidr)), None)
            if rival:
                problems.append(f"Node {name}: podCIDR {cidr} lies over that of Node {rival}, no route to it")
                continue
            taken.append((cidr, name))
            gateway = next((a for a in addresses if a.version == cidr.version), None)
            if name != me and gateway:
                routes[cidr] = gateway
    return Cluster(routes, frozenset(ips), tuple(problems))


def changes(desired: Mapping[IPNetwork, IPAddress], present: Mapping[IPNetwork, IPAddress],
            ) -> tuple[dict[IPNetwork, IPAddress], dict[IPNetwork, IPAddress]]:
    """(routes to add or replace, routes to delete): the difference and nothing more."""
    put = {dst: via for dst, via in desired.items() if present.get(dst) != via}
    return put, {dst: via for dst, via in present.items() if dst not in desired}
