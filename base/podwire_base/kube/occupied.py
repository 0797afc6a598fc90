"""Finds the addresses of load balancer pools that somebody has already: Nodes, pods, gateways, the API server. Pure.

The controller gives none of them, and the nodes answer for none of them: two machines would claim one address, and the
traffic of a node, or of the whole cluster's way out, would go to a Service.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import meta, nodeaddresses
from .loadbalancer import Pools, Range

SHOWN = 8  # addresses in one text
Parts = tuple[tuple[str, ...], tuple[Range, ...]]  # (addresses, podCIDRs) of a Node


@dataclass(frozen=True, slots=True)
class Occupied:
    """addresses: address -> the words for its owner, as "Node n1". ranges: podCIDRs, with the words for their owner."""

    addresses: Mapping[str, str] = field(default_factory=dict)
    ranges: tuple[tuple[Range, str], ...] = ()

    def owner(self, ip: str) -> str:
        """Returns the words for the owner of an address in canonical form; "" if nobody has it."""
        if (found := self.addresses.get(ip)) or not self.ranges:
            return found or ""
        address = ipaddress.ip_address(ip)
        version, number = address.version, int(address)
        return next((owner for one, owner in self.ranges if one.version == version and one.covers(number)), "")

    def within(self, pools: Pools) -> Occupied:
        """Returns the part that concerns the pools."""
        return Occupied(
            {ip: owner for ip, owner in self.addresses.items() if ip in pools},
            tuple(one for one in self.ranges if pools.meets(one[0])),
        )

    def overlaps(self, pools: Pools) -> list[str]:
        """Returns what the pools and the owners share, as "192.0.2.11 (Node n1)"; [] for pools of free addresses."""
        found = sorted(
            (ipaddress.ip_address(ip).version, int(ipaddress.ip_address(ip)), f"{ip} ({owner})")
            for ip, owner in self.addresses.items()
            if ip in pools
        )
        texts = [text for _, _, text in found]
        texts += [f"{taken.text} ({owner})" for taken, owner in self.ranges if pools.meets(taken)]
        return texts[:SHOWN] + ([f"and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else [])


def of_node(node: Mapping[str, Any]) -> Parts:
    """Returns (all addresses, podCIDRs) of a Node. Invalid values are skipped."""
    spec = node.get("spec") or {}
    ranges = []
    for text in filter(None, spec.get("podCIDRs") or [spec.get("podCIDR")]):
        try:
            net = ipaddress.ip_network(str(text), strict=False)
        except ValueError:
            continue
        ranges.append(Range(str(net), net.version, int(net[0]), int(net[-1])))
    found = (str(ip) for kind in nodeaddresses.KINDS for ip in nodeaddresses.listed(node, kind))
    return tuple(dict.fromkeys(found)), tuple(ranges)


def of_pod(pod: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the addresses of a pod of its own; () for a pod of the host's network, and for one that has ended."""
    status = pod.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed"):
        return ()
    host = {status.get("hostIP"), *(item.get("ip") for item in status.get("hostIPs") or [])}
    found = [item.get("ip") for item in status.get("podIPs") or []] or [status.get("podIP")]
    return tuple(dict.fromkeys(str(ip) for ip in found if ip and ip not in host))


def of_slice(slice_: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the addresses of an EndpointSlice."""
    found = (str(ip) for endpoint in slice_.get("endpoints") or [] for ip in endpoint.get("addresses") or [])
    return tuple(dict.fromkeys(found))


def occupied(
    nodes: Mapping[str, Parts],
    pods: Iterable[meta.Object] = (),
    api: Iterable[str] = (),
    gateways: Iterable[str] = (),
) -> Occupied:
    """nodes: by name. api: addresses of the API server. gateways: those of default routes. An address that a Node has
    counts as the Node's, whatever else it is.
    """
    addresses = {ip: f"Pod {meta.key(pod)}" for pod in pods for ip in of_pod(pod)}
    addresses.update((ip, "a default gateway") for ip in gateways)
    addresses.update((ip, "the API server") for ip in api)
    addresses.update((ip, f"Node {name}") for name, (ips, _) in nodes.items() for ip in ips)
    ranges = tuple((cidr, f"podCIDR of Node {name}") for name, (_, cidrs) in nodes.items() for cidr in cidrs)
    return Occupied(addresses, ranges)


def kept_of_pod(pod: meta.Object) -> meta.Object:
    """Returns the part of a Pod that this module reads, so that a watch of all pods remembers little."""
    names = ("name", "namespace", "resourceVersion", "uid")
    status = pod.get("status") or {}
    return {
        "metadata": {name: pod["metadata"][name] for name in names if name in pod["metadata"]},
        "status": {name: status[name] for name in ("phase", "podIP", "podIPs", "hostIP", "hostIPs") if name in status},
    }
