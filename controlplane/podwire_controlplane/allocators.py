"""What Services and Nodes may get: ClusterIPs, node ports, podCIDRs. Pure; claims.py keeps what is given out.

ClusterIPs and node ports are drawn at random. The lower part of a range of addresses comes last: it is for addresses
that users choose (KEP-3070).
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from podwire_base.kube.errors import Cause
from podwire_base.kube.meta import Object

from . import ipfamilies
from .rules.services import cluster_fields

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Exhausted(Exception):
    """No address, port or subnet is free. The message names the range."""


def service_ranges(text: str) -> tuple[Network, ...]:
    """Parse --service-cidr: one range, or one of each IP family after a comma; the first one's family is the default
    one. Raises ValueError.
    """
    ranges = tuple(ipaddress.ip_network(part.strip()) for part in text.split(","))
    if len(ranges) > 2 or len({network.version for network in ranges}) < len(ranges):
        raise ValueError(f"{text!r}: give one range of Service addresses, or one IPv4 and one IPv6 range after a comma")
    return ranges


def _static_band(network: Network) -> int:
    """Return the number of addresses at the bottom of the range that are allocated last: min(max(16, size / 16), 256)
    (KEP-3070).
    """
    return min(max(16, network.num_addresses // 16), 256)


@dataclass(frozen=True, slots=True)
class ServiceAllocator:
    """The ranges of a cluster. cidr: the Service range, of the default IP family. second: the range of the other
    family, None: single-stack. draw(n): returns a number from 0 to n - 1. more: further ranges, from which Services
    get addresses when the first ones are full; the server changes this list (serviceranges.py).
    """

    cidr: Network
    node_ports: range = range(30000, 32768)
    second: Network | None = None
    draw: Callable[[int], int] = random.randrange
    more: list[Network] = field(default_factory=list, compare=False)

    @property
    def families(self) -> tuple[str, ...]:
        """The IP families of the cluster's Services, the default one first."""
        return tuple(f"IPv{network.version}" for network in self.ranges)

    @property
    def ranges(self) -> tuple[Network, ...]:
        return (self.cidr,) if self.second is None else (self.cidr, self.second)

    def _ranges(self, family: str) -> list[Network]:
        return [network for network in (*self.ranges, *self.more) if family == f"IPv{network.version}"]

    def prepare(self, service: Object, before: Object | None) -> list[Cause]:
        """Set the fields of addresses and families that follow from others, and return the errors in those."""
        ipfamilies.normalize(service, before)
        causes = list(cluster_fields(service))
        return causes or ipfamilies.fill(service, before, self.families)

    def outside(self, value: str | int) -> str:
        """Return why no Service may have an address or a node port, "" if one may."""
        if isinstance(value, int):
            if value in self.node_ports:
                return ""
            return f"{value} is outside the NodePort range {self._span}; leave it empty to get a free port"
        family, address = ipfamilies.family_of(value), ipaddress.ip_address(value)
        within = [cidr for cidr in self._ranges(family) if address in cidr]
        if not within:
            return (
                f"{value} is outside the {self._said(family)}; leave the field empty to get a free address, or choose "
                "one inside the range"
            )
        if all(address in unusable(cidr) for cidr in within):
            return f"{value} is the network or broadcast address of {within[0]}; choose another"
        return ""

    def _said(self, family: str) -> str:
        ranges = [str(cidr) for cidr in self._ranges(family)]
        return f"Service range{'s' * (len(ranges) > 1)} {' and '.join(ranges)}"

    @property
    def _span(self) -> str:
        return f"{self.node_ports.start}-{self.node_ports.stop - 1}"

    def candidates(self, family: str) -> Iterator[str | int]:
        """Yield every address of an IP family, or every node port (""), from a random one on."""
        if not family:
            start = self.draw(len(self.node_ports))
            for n in range(len(self.node_ports)):
                yield self.node_ports[(start + n) % len(self.node_ports)]
            return
        for cidr in self._ranges(family):
            yield from self._addresses(cidr)

    def _addresses(self, cidr: Network) -> Iterator[str]:
        first, size = int(cidr.network_address), cidr.num_addresses
        band = _static_band(cidr) if size > 32 else 1
        upper = range(band, size - 1)
        start = self.draw(upper.stop - upper.start) if upper else 0  # len() fails above 2^63
        for order in (range(upper.start + start, upper.stop), range(upper.start, upper.start + start), range(1, band)):
            for offset in order:
                yield str(type(cidr.network_address)(first + offset))

    def exhausted(self, family: str) -> str:
        if not family:
            return f"no free NodePort in {self._span}"
        return f"no free address in the {self._said(family)}"


def unusable(network: Network) -> tuple[Any, ...]:
    """Return the first and, of IPv4, the last address of a range: no Service gets them."""
    return (network.network_address, network.broadcast_address)


def addresses_of(service: Object) -> list[str]:
    """Return the ClusterIPs of a Service, each in its one spelling."""
    spec = service.get("spec") or {}
    if spec.get("type") == "ExternalName":
        return []
    found = spec.get("clusterIPs") or [spec.get("clusterIP")]
    return [_canonical(a) for a in found if a and a != "None"]


def _canonical(address: str) -> str:
    """Return the one spelling of an address (RFC 5952)."""
    return str(ipaddress.ip_address(address)) if ":" in address else address


def ports_of(service: Object) -> list[int]:
    """Return the NodePorts of a Service, and the port of its health check, which is one of them."""
    spec = service.get("spec") or {}
    found = {p["nodePort"] for p in spec.get("ports") or [] if p.get("nodePort")}
    if health := spec.get("healthCheckNodePort"):
        found.add(health)
    return sorted(found)


def pod_cidrs_of(node: Object) -> list[str]:
    spec = node.get("spec") or {}
    return [cidr for cidr in spec.get("podCIDRs") or [spec.get("podCIDR")] if cidr]


def free_pod_cidr(cluster: Network, size: int, used: Iterable[str]) -> str:
    """Return the lowest free subnet of prefix length `size` in `cluster`. Raises Exhausted."""
    taken = {ipaddress.ip_network(u) for u in used}
    for subnet in cluster.subnets(new_prefix=size):
        if not any(subnet.overlaps(other) for other in taken if other.version == subnet.version):
            return str(subnet)
    raise Exhausted(f"no free /{size} in the pod range {cluster}")
