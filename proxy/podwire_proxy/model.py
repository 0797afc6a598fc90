"""The proxy's data of Services and EndpointSlices. Everything is immutable and comparable."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

Protocol = Literal["TCP", "UDP", "SCTP"]
PROTOCOLS: dict[str, int] = {"TCP": 6, "UDP": 17, "SCTP": 132}
Policy = Literal["Cluster", "Local"]


class PortName(NamedTuple):
    """The key that connects a Service's port and its endpoints: the port's name ("" without a name) and protocol."""

    name: str
    protocol: Protocol


class Destination(NamedTuple):
    """The destination of a packet: one endpoint's address and port."""

    ip: str
    port: int


class Endpoint(NamedTuple):
    """One address of an EndpointSlice for one port; conditions have the API's defaults.

    node: the endpoint's nodeName; "" if unknown. zone_hints, node_hints: from `hints.forZones` and `hints.forNodes`.
    """

    ip: str
    port: int
    node: str = ""
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()

    @property
    def destination(self) -> Destination:
        return Destination(self.ip, self.port)


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of one Service, with all data that determines its frontends and their balancing.

    service: "namespace/name". created, uid: creationTimestamp and uid, which decide between two Services that claim an
    address and port.
    affinity_seconds: the timeout of sessionAffinity ClientIP; 0: no affinity. source_ranges: loadBalancerSourceRanges.
    health_check_port: healthCheckNodePort; 0: no port. reset: annotation
    podwire.io/reset-on-endpoint-removal.
    """

    service: str
    name: str
    protocol: Protocol
    port: int
    cluster_ips: tuple[str, ...] = ()
    node_port: int = 0
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    internal_policy: Policy = "Cluster"
    external_policy: Policy = "Cluster"
    affinity_seconds: int = 0
    source_ranges: tuple[str, ...] = ()
    health_check_port: int = 0
    created: str = ""
    reset: bool = False
    uid: str = ""

    @property
    def external(self) -> bool:
        """Whether the port has frontends besides the ClusterIP."""
        return bool(self.node_port or self.external_ips or self.load_balancer_ips)

    @property
    def port_name(self) -> PortName:
        return PortName(self.name, self.protocol)


@dataclass(frozen=True, slots=True)
class Claimable:
    """The rules of externalips.py for this cluster.

    nodes: the addresses of all Nodes. node_cidrs: the nodes' network. pod_cidrs: the Nodes' podCIDRs. ports: (first,
    last) of the ports that are never served on a node's address. taken: further such ports. api: the API server's
    endpoints. serve: whether a Service may have a node's address at all. known: whether all Nodes are known; until then
    no externalIP is served.
    """

    nodes: frozenset[str] = frozenset()
    node_cidrs: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    taken: frozenset[int] = frozenset()
    api: frozenset[Destination] = frozenset()
    serve: bool = True
    known: bool = True


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """The node this proxy runs on, and the cluster's address plan.

    addresses: the node's primary addresses (one per family: InternalIP, else ExternalIP). node_ports: the addresses
    with NodePorts; None: the primary addresses. zone: label topology.kubernetes.io/zone. The local-traffic detector
    recognises a pod by its source address (pod_cidrs), or by the interface on which its packets arrive (pod_interface:
    a name, or a prefix that ends in "*"); with neither, no source counts as a pod. service_cidrs: unallocated addresses
    inside are dropped. reserved: CIDRs of pods and Services, where no Service may claim an externalIP (CVE-2020-8554).
    localhost: NodePorts are served on 127.0.0.1 too, for this machine's own clients; packets from the wire that claim a
    loopback address are dropped then (CVE-2020-8558). drop_invalid: packets that are invalid for conntrack are not
    forwarded (False if the administrator made conntrack liberal). claimable: further rules for externalIPs; the rules
    in the kernel depend on it only through the frontends, so it does not count when two nodes are compared.
    """

    name: str
    addresses: tuple[str, ...] = ()
    zone: str = ""
    pod_cidrs: tuple[str, ...] = ()
    service_cidrs: tuple[str, ...] = ()
    masquerade_all: bool = False
    node_ports: tuple[str, ...] | None = None
    pod_interface: str = ""
    reserved: tuple[str, ...] = ()
    localhost: bool = False
    drop_invalid: bool = True
    claimable: Claimable = field(default=Claimable(), compare=False)

    def owned(self, ip: str) -> bool:
        """Whether the address is that of a node."""
        return ip in self.claimable.nodes or ip in self.addresses

    @property
    def node_port_ips(self) -> tuple[str, ...]:
        """Returns the addresses at which clients outside this machine reach NodePorts."""
        return self.addresses if self.node_ports is None else self.node_ports


LOCALHOST = "127.0.0.1"
# Canonical IPv4 text. The expression takes a tenth of the time of `ipaddress`, which matters for full loads.
_IPV4 = re.compile(r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(?:\.(?!\Z)|\Z)){4}").fullmatch


def normal_ip(text: str) -> str:
    """Returns the canonical text of an address. IPv4 octets with leading zeros are decimal, as in Kubernetes.

    Raises ValueError if the text is not an address.
    """
    if _IPV4(text):
        return text
    text = text.strip()
    if "%" in text:
        raise ValueError(f"{text!r} has a zone, which means nothing on another machine")
    if ":" not in text and any(len(part) > 1 and part[0] == "0" and part.isdecimal() for part in text.split(".")):
        text = ".".join(str(int(part)) if part.isdecimal() else part for part in text.split("."))
    return str(ipaddress.ip_address(text))


def is_v6(ip: str) -> bool:
    return ":" in ip


@lru_cache(maxsize=1 << 12)
def _network(cidr: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(cidr, strict=False)


def covers(cidrs: Iterable[str], ip: str) -> bool:
    """Whether the address is inside one of the CIDRs. A CIDR of the other family never contains it."""
    address = ipaddress.ip_address(ip)
    return any(address in _network(cidr) for cidr in cidrs)


def normal_cidr(text: str) -> str:
    """Returns the canonical text of "address/length" without host bits, or of an address. Raises ValueError."""
    ip, slash, size = text.strip().partition("/")
    return str(ipaddress.ip_network(normal_ip(ip) + slash + size, strict=False))
