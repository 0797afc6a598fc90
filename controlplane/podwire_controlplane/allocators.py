"""Allocation of ClusterIPs, NodePorts and podCIDRs. This module does no I/O.

The allocator records the addresses and ports of all Services in memory: the existing Services at start, then every
write. It draws ClusterIPs at random from the upper part of the range. The lower part is for addresses that users choose
(KEP-3070).
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from podwire_base.kube.errors import Cause
from podwire_base.kube.meta import Object, key

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


@dataclass(slots=True)
class ServiceAllocator:
    """cidr: the Service range, of the default IP family. second: the range of the other family, None: single-stack.
    addresses: ClusterIP -> key of its Service. ports: NodePort -> key of its Service. draw(n): returns a number from 0
    to n - 1.
    """

    cidr: Network
    node_ports: range = range(30000, 32768)
    second: Network | None = None
    addresses: dict[str, str] = field(default_factory=dict)
    ports: dict[int, str] = field(default_factory=dict)
    draw: Callable[[int], int] = random.randrange

    def observe(self, before: Object | None, after: Object | None) -> None:
        """Release the values of the Service `before` a write and record the values `after` the write. `before` is None
        for a creation; `after` is None for a deletion.
        """
        if before is not None:
            for address in _addresses(before):
                if self.addresses.get(address) == key(before):
                    del self.addresses[address]
            for port in _ports(before):
                if self.ports.get(port) == key(before):
                    del self.ports[port]
        if after is not None:
            self.addresses |= dict.fromkeys(_addresses(after), key(after))
            self.ports |= dict.fromkeys(_ports(after), key(after))

    @property
    def families(self) -> tuple[str, ...]:
        """The IP families of the cluster's Services, the default one first."""
        return tuple(f"IPv{network.version}" for network in self.ranges)

    @property
    def ranges(self) -> tuple[Network, ...]:
        return (self.cidr,) if self.second is None else (self.cidr, self.second)

    def _range(self, family: str) -> Network:
        return next(network for network in self.ranges if family == f"IPv{network.version}")

    def prepare(self, service: Object, before: Object | None) -> list[Cause]:
        """Set the fields of addresses and families that follow from others, and return the errors in those."""
        ipfamilies.normalize(service, before)
        causes = list(cluster_fields(service))
        return causes or ipfamilies.fill(service, before, self.families)

    def check(self, service: Object) -> list[Cause]:
        """Return the errors in the addresses and ports that `service` requests explicitly."""
        causes = []
        for address in _addresses(service):
            where = "spec.clusterIPs"
            cidr = self._range(ipfamilies.family_of(address))
            if ipaddress.ip_address(address) not in cidr:
                causes.append(
                    Cause(
                        where,
                        f"{address} is outside the Service range {cidr}; leave the field empty "
                        "to get a free address, or choose one inside the range",
                    )
                )
            elif ipaddress.ip_address(address) in unusable(cidr):
                causes.append(Cause(where, f"{address} is the network or broadcast address of {cidr}; choose another"))
            elif (holder := self.addresses.get(address)) not in (None, key(service)):
                causes.append(
                    Cause(
                        where,
                        f"{address} is taken by Service {holder}; choose another or leave it empty",
                    )
                )
        for n, port in enumerate(service["spec"].get("ports") or []):
            if wanted := port.get("nodePort") or 0:
                causes += self._check_port(service, wanted, f"spec.ports[{n}].nodePort")
        return causes

    def _check_port(self, service: Object, wanted: int, where: str) -> list[Cause]:
        """A NodePort belongs to one Service, whatever the protocol. A Service may use it for several protocols."""
        if wanted not in self.node_ports:
            span = f"{self.node_ports.start}-{self.node_ports.stop - 1}"
            return [Cause(where, f"{wanted} is outside the NodePort range {span}; leave it empty to get a free port")]
        holder = self.ports.get(wanted)
        if holder not in (None, key(service)):
            return [Cause(where, f"{wanted} is taken by Service {holder}; choose another or leave it empty")]
        return []

    def fill(self, service: Object) -> None:
        """Write free values into the empty fields of `service`. Raises Exhausted."""
        spec = service["spec"]
        if spec.get("type") != "ExternalName" and (spec.get("clusterIPs") or [""])[0] != "None":
            held = list(spec.get("clusterIPs") or [])
            held += [self._free_address(self._range(family)) for family in spec["ipFamilies"][len(held) :]]
            spec["clusterIP"], spec["clusterIPs"] = held[0], held
        if spec.get("type") not in ("NodePort", "LoadBalancer"):
            return
        here = set(_ports(service))
        if spec["type"] == "NodePort" or spec.get("allocateLoadBalancerNodePorts") is not False:
            self._fill_ports(spec.get("ports") or [], here)
        if spec["type"] == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local":
            wanted = spec.get("healthCheckNodePort")
            if wanted and self._check_port(service, wanted, ""):
                raise Exhausted(
                    f"failed to allocate requested HealthCheck NodePort {wanted}: it is taken or out of range"
                )
            spec["healthCheckNodePort"] = wanted or self._free_port(here)

    def _fill_ports(self, ports: list[Object], here: set[int]) -> None:
        """Ports of one number and several protocols get one NodePort."""
        same = {port["port"]: port["nodePort"] for port in ports if port.get("nodePort")}
        for port in ports:
            if not port.get("nodePort"):
                port["nodePort"] = same.get(port["port"]) or self._free_port(here)
                same[port["port"]] = port["nodePort"]
                here.add(port["nodePort"])

    def _free_address(self, cidr: Network) -> str:
        first, size = int(cidr.network_address), cidr.num_addresses
        band = _static_band(cidr) if size > 32 else 1
        upper = range(band, size - 1)
        start = self.draw(upper.stop - upper.start) if upper else 0  # len() fails above 2^63
        for order in (range(upper.start + start, upper.stop), range(upper.start, upper.start + start), range(1, band)):
            for offset in order:
                address = str(type(cidr.network_address)(first + offset))
                if address not in self.addresses:
                    return address
        raise Exhausted(f"no free address in the Service range {cidr}")

    def _free_port(self, here: set[int]) -> int:
        start = self.draw(len(self.node_ports))
        for n in range(len(self.node_ports)):
            port = self.node_ports[(start + n) % len(self.node_ports)]
            if port not in self.ports and port not in here:
                return port
        raise Exhausted(f"no free NodePort in {self.node_ports.start}-{self.node_ports.stop - 1}")


def unusable(network: Network) -> tuple[Any, ...]:
    """Return the first and, of IPv4, the last address of a range: no Service gets them."""
    return (network.network_address, network.broadcast_address)


def _addresses(service: Object) -> list[str]:
    spec = service.get("spec") or {}
    if spec.get("type") == "ExternalName":
        return []
    found = spec.get("clusterIPs") or [spec.get("clusterIP")]
    return [a for a in found if a and a != "None"]


def _ports(service: Object) -> list[int]:
    """Return the NodePorts of a Service, and the port of its health check, which is one of them."""
    spec = service.get("spec") or {}
    found = {p["nodePort"] for p in spec.get("ports") or [] if p.get("nodePort")}
    if health := spec.get("healthCheckNodePort"):
        found.add(health)
    return sorted(found)


def free_pod_cidr(cluster: Network, size: int, used: Iterable[str]) -> str:
    """Return the lowest free subnet of prefix length `size` in `cluster`. Raises Exhausted."""
    taken = {ipaddress.ip_network(u) for u in used}
    for subnet in cluster.subnets(new_prefix=size):
        if not any(subnet.overlaps(other) for other in taken if other.version == subnet.version):
            return str(subnet)
    raise Exhausted(f"no free /{size} in the pod range {cluster}")
