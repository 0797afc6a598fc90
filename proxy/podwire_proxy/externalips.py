"""Decides where a Service may have an externalIP. Pure.

kube-proxy serves every externalIP, also a node's own address: on bare metal this is the usual way to ports 80 and 443.
But an externalIP takes its traffic from everyone (CVE-2020-8554). So podwire refuses an externalIP

- that is not an ordinary address (loopback, link-local, multicast, unspecified),
- in the ranges of pods and Services, and in --node-cidr where no Node has the address,
- at the address and port of the API server's endpoints,
- at a node's address, on a port that nodes need themselves (RESERVED and what is in use, see Facts); with
  externalIPsOnNodes Refuse, on every port.

A node's address is an InternalIP or ExternalIP of any Node, so that all nodes decide alike.

A Service without endpoints does not refuse packets to a node's address: without the Service, the address is the node's
own. What listens there answers (for example a host-network endpoint of another Service), or else the node's kernel
refuses.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .model import Destination, Endpoint, NodeInfo, PortName, ServicePort, covers

if TYPE_CHECKING:
    from podwire_base.kernel.listening import Listener

    from .dataplane import Frontend

SERVE, REFUSE = "Serve", "Refuse"
CHOICES = (SERVE, REFUSE)
# ssh, DNS, the tunnel of podwire's wiring, the API server, podwire's DNS metrics, Kubernetes' components, NodePorts
RESERVED = ("22", "53", "4789", "6443", "9153", "10248-10259", "30000-32767")
API_SERVICE = "default/kubernetes"


def port_range(text: object) -> tuple[int, int]:
    """Parses "22" or "30000-32767" to (first, last). Raises ValueError."""
    first, dash, last = str(text).strip().partition("-")
    found = int(first), int(last if dash else first)
    if not 0 < found[0] <= found[1] < 65536:
        raise ValueError(f"{text!r} is not a port or a range of ports")
    return found


def why_refused(ip: str, number: int, node: NodeInfo) -> str:
    """Returns why no Service may have this address and port; "" if a Service may."""
    rules, address = node.claimable, ipaddress.ip_address(ip)
    if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
        return "is a loopback, link-local, multicast or unspecified address"
    if covers(node.reserved, ip) or covers(rules.pod_cidrs, ip):
        return "is inside the range of pods or Services"
    if Destination(ip, number) in rules.api:
        return f"port {number} is the API server's"
    if not node.owned(ip):
        return "is inside the range of nodes, and no Node has it" if covers(rules.node_cidrs, ip) else ""
    if not rules.serve:
        return "is a node's address, and externalIPsOnNodes is Refuse"
    if number in rules.taken or any(first <= number <= last for first, last in rules.ports):
        return f"port {number} of a node's address is reserved (externalIPsReservedPorts, NodePorts and health checks)"
    return ""


def refusals(ports: Iterable[ServicePort], node: NodeInfo) -> list[str]:
    """Returns a line for each refused externalIP of one Service. An address that no port may have gets one line."""
    found: dict[str, None] = {}
    for port in ports if node.claimable.known else ():
        for ip in port.external_ips:
            if why := why_refused(ip, port.port, node):
                found[f"spec.externalIPs: {ip} {why}; refused"] = None
    return list(found)


def served(port: ServicePort, node: NodeInfo) -> tuple[str, ...]:
    """Returns the externalIPs at which this port is served."""
    if not node.claimable.known:
        return ()
    return tuple(ip for ip in port.external_ips if not why_refused(ip, port.port, node))


def hidden(
    frontends: Iterable[Frontend], local: Collection[str], listening: Collection[Listener]
) -> dict[str, list[str]]:
    """Returns Service -> a line for each process whose clients reach the Service instead. local: the addresses of this
    machine. A listener that is the Service's own endpoint is not hidden.
    """
    found: dict[str, list[str]] = {}
    for frontend in frontends:
        ip, protocol, port = frontend.key
        if ip not in local or not frontend.destinations or (ip, port) in frontend.destinations:
            continue
        if any(one.hears(protocol, ip, port) for one in listening):
            found.setdefault(frontend.service, []).append(
                f"spec.externalIPs: a process of this node listens on {ip} port {port}/{protocol}; the Service hides it"
            )
    return found


@dataclass(slots=True)
class Facts:
    """What nodes need themselves, learned from all Services and slices. changed: since the last `added`.

    Nodes need the NodePorts and healthCheckNodePorts in use, whatever the range, and the port of the API server's
    endpoints on nodes.
    """

    changed: bool = True
    _in_use: Counter[int] = field(default_factory=Counter)
    _api: dict[str, frozenset[Destination]] = field(default_factory=dict)  # slice -> endpoints

    def service(self, old: Iterable[ServicePort], new: Iterable[ServicePort]) -> None:
        """Replaces the ports of one Service."""
        gone, come = _node_ports(old), _node_ports(new)
        if gone != come:  # most Services have none
            self.changed = True
            self._in_use.update(come)
            self._in_use.subtract(gone)

    def slice(self, key: str, service: str, endpoints: Mapping[PortName, Iterable[Endpoint]]) -> None:
        """Replaces one slice."""
        found = frozenset(e.destination for one in endpoints.values() for e in one) if service == API_SERVICE else None
        if self._api.get(key) != found:
            self.changed = True
            self._api.pop(key, None)
            if found is not None:
                self._api[key] = found

    def added(self, node: NodeInfo) -> NodeInfo:
        """Returns the node with the facts in its rules."""
        self.changed = False
        api = frozenset[Destination]().union(*self._api.values())
        taken = {number for number, count in self._in_use.items() if count}
        taken.update(endpoint.port for endpoint in api if node.owned(endpoint.ip))
        return replace(node, claimable=replace(node.claimable, api=api, taken=frozenset(taken)))


def _node_ports(ports: Iterable[ServicePort]) -> list[int]:
    return [number for port in ports for number in {port.node_port, port.health_check_port} if number]
