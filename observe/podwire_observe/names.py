"""Which pod, Service or node has an address, and when it had it. Pure: the role gives it objects and moments.

Pods of the node come from its pod wiring (with the moments when they came and went, for an address that another pod
gets), pods of Services from EndpointSlices, and the rest is named by the reader.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from podwire_base.kernel.conntrack.counted import Counted
from podwire_base.kernel.ip import unpacked
from podwire_base.kube.meta import Object, name, namespace

from .record import PROTOCOLS, End, Ends, Service

LINES = "lines"
KEPT = 4  # earlier holders of an address
MOST_GONE = 4096  # addresses that nobody has any more
_NUMBERS = {word.upper(): number for number, word in PROTOCOLS.items()}

text = lru_cache(maxsize=1 << 14)(unpacked)


@dataclass(slots=True)
class Held:
    end: End
    since: float
    until: float | None = None


@dataclass(slots=True)
class Holders:
    """Who had which address when. Moments are seconds since 1970."""

    found: dict[str, list[Held]] = field(default_factory=dict)

    def now(self, current: Mapping[str, End], at: float) -> None:
        """Takes who has which address at a moment."""
        for ip, rows in self.found.items():
            if rows[-1].until is None and current.get(ip) != rows[-1].end:
                rows[-1].until = at
        for ip, end in current.items():
            rows = self.found.setdefault(ip, [])
            if not rows or rows[-1].until is not None:
                rows.append(Held(end, at))
                del rows[:-KEPT]
        if len(self.found) > len(current) + MOST_GONE:
            gone = sorted((rows[-1].until or 0.0, ip) for ip, rows in self.found.items() if ip not in current)
            for _, ip in gone[: len(gone) - MOST_GONE // 2]:
                del self.found[ip]

    def at(self, ip: str, when: float) -> End | None:
        """Returns who had an address at a moment. A pod's first packets may be earlier than the moment at which its
        address was told.
        """
        rows = self.found.get(ip)
        if not rows:
            return None
        for row in rows:
            if row.until is None or row.until >= when:
                return row.end
        return None


class Names:
    """What a node knows. node: its name. cidrs: the cluster's pod addresses."""

    def __init__(self, node: str, cidrs: Iterable[str] = (), service_cidrs: Iterable[str] = ()) -> None:
        self.node = node
        self.pods = Holders()
        self.local: frozenset[str] = frozenset()  # the node's own addresses
        self.own_cidrs: tuple[str, ...] = ()
        self.cidrs, self.service_cidrs = tuple(cidrs), tuple(service_cidrs)
        self.nodes: dict[str, str] = {}  # address -> node
        self._nodes: dict[str, tuple[str, ...]] = {}
        self._services: dict[str, list[tuple[tuple[str, int, int], Service]]] = {}
        self._by_address: dict[tuple[str, int, int], Service] = {}
        self._node_ports: dict[tuple[int, int], Service] = {}
        self._by_ip: dict[str, dict[str, tuple[str, str]]] = {}  # address -> key of a Service -> (namespace, name)
        self._slices: dict[str, str] = {}  # key of a slice -> its lines
        self._endpoints: dict[str, str | tuple[str, ...]] = {}  # address -> the slices that have it, mostly one
        self._cache: dict[tuple[bytes, bytes, int, int, bytes], Ends | None] = {}

    def forget(self) -> None:
        """What was named stays named; what comes is looked up again."""
        self._cache.clear()

    # Objects

    def node_object(self, key: str, obj: Object | None) -> None:
        self._nodes.pop(key, None)
        if obj is not None:
            found = (obj.get("status") or {}).get("addresses") or []
            self._nodes[key] = tuple(str(row.get("address")) for row in found if "IP" in str(row.get("type")))
            if key == self.node:
                spec = obj.get("spec") or {}
                self.own_cidrs = tuple(spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else []))
        self.nodes = {ip: node for node, ips in self._nodes.items() for ip in ips}
        self.forget()

    def services(self) -> set[tuple[str, str]]:
        """Returns namespace and name of every Service that there is."""
        return {(namespace, name) for namespace, _, name in (key.partition("/") for key in self._services)}

    def service(self, key: str, obj: Object | None) -> None:
        for address, _ in self._services.pop(key, ()):
            (self._by_address.pop(address, None) if address[0] else self._node_ports.pop(address[1:], None))
            self._by_ip.get(address[0], {}).pop(key, None)
            if not self._by_ip.get(address[0], True):
                del self._by_ip[address[0]]
        if obj is not None:
            self._services[key] = list(_addresses(obj))
            for address, service in self._services[key]:
                if address[0]:
                    self._by_address[address] = service
                    self._by_ip.setdefault(address[0], {})[key] = service[:2]
                else:
                    self._node_ports[address[1:]] = service
        self.forget()

    def slice(self, key: str, obj: Object | None) -> None:
        for ip in {line.partition(" ")[0] for line in self._slices.pop(key, "").splitlines()}:
            left = tuple(other for other in _several(self._endpoints.pop(ip)) if other != key)
            if left:
                self._endpoints[ip] = left if len(left) > 1 else left[0]
        if obj is not None:
            self._slices[key] = lines = compact(obj)[LINES]
            for ip in {line.partition(" ")[0] for line in lines.splitlines()}:
                others = self._endpoints.get(ip)
                self._endpoints[ip] = key if others is None else (*_several(others), key)
        self.forget()

    def pods_are(self, current: Mapping[str, End], at: float) -> None:
        """Takes which of the node's pods have which addresses at a moment."""
        self.pods.now(current, at)
        self.forget()

    # Looking up

    def end(self, ip: str, when: float) -> End:
        """Returns who has an address."""
        if ip in self.local:
            return End("node", "", self.node, self.node)
        held = self.pods.at(ip, when)
        if held is not None:
            return held
        if ip in self.nodes:
            return End("node", "", self.nodes[ip], self.nodes[ip])
        found = self._endpoints.get(ip)
        if found:
            return _target(self._slices[_several(found)[0]], ip)
        return End() if _within(ip, self.cidrs) or _within(ip, self.service_cidrs) else End("outside", "", ip)

    def dialled(self, ip: str, port: int, protocol: int) -> Service:
        found = self._by_address.get((ip, port, protocol))
        if found is None and (ip in self.local or ip in self.nodes):
            found = self._node_ports.get((port, protocol))
        # A port that the Service does not have. At other addresses than its ClusterIPs that may be another server's.
        if found is None and ip in self._by_ip and _within(ip, self.service_cidrs):
            return Service(*next(iter(self._by_ip[ip].values())), str(port))
        return found or Service()

    def ends(self, seen: Counted, when: float) -> Ends | None:
        """Returns both ends, None if another node tells of this connection or nobody needs to hear of it (loopback,
        multicast).
        """
        key = (seen.source, seen.destination, seen.port, seen.protocol, seen.endpoint)
        try:
            return self._cache[key]
        except KeyError:
            pass
        found = self.named(
            text(seen.source), text(seen.destination), seen.port, seen.protocol, text(seen.endpoint), when
        )
        if len(self._cache) > 1 << 14:
            self._cache.clear()
        self._cache[key] = found
        return found

    def named(self, source: str, destination: str, port: int, protocol: int, endpoint: str, when: float) -> Ends | None:
        if _unheard(source) or _unheard(destination):
            return None
        if not self.reports(source):
            return None
        client, service = self.end(source, when), self.dialled(destination, port, protocol)
        target = self.end(endpoint, when)
        if service.name and endpoint == destination and target.kind in ("", "outside"):
            target = End("service", service.namespace, service.name)  # refused before an endpoint was chosen
        own = self.pods.at(endpoint, when) is not None or _within(endpoint, self.own_cidrs)
        probe = source in self.local and endpoint == destination and own and endpoint not in self.local
        return Ends(client, target, service, probe)

    def reports(self, source: str) -> bool:
        """Whether this node tells of connections from an address: its own, its pods', and those from outside."""
        if source in self.local or self.pods.at(source, float("inf")) is not None or _within(source, self.own_cidrs):
            return True
        return source not in self.nodes and not _within(source, self.cidrs)


def _unheard(ip: str) -> bool:
    found = _address(ip)
    return found.is_loopback or found.is_multicast or found.is_unspecified or ip == "255.255.255.255"


@lru_cache(maxsize=1 << 12)
def _address(ip: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(ip)


@lru_cache(maxsize=1 << 12)
def _within(ip: str, cidrs: tuple[str, ...]) -> bool:
    return any(_address(ip) in ipaddress.ip_network(cidr) for cidr in cidrs)


def _addresses(obj: Mapping[str, Any]) -> Iterable[tuple[tuple[str, int, int], Service]]:
    """((address, port, protocol), Service) of each address of a Service; the address "" stands for any node's."""
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    ips = [ip for ip in spec.get("clusterIPs") or [spec.get("clusterIP")] if ip and ip != "None"]
    ips += spec.get("externalIPs") or []
    ips += [row["ip"] for row in (status.get("loadBalancer") or {}).get("ingress") or [] if row.get("ip")]
    for port in spec.get("ports") or []:
        number, protocol = int(port.get("port") or 0), _NUMBERS.get(str(port.get("protocol") or "TCP"), 6)
        service = Service(namespace(obj), name(obj), str(port.get("name") or number))
        for ip in ips:
            yield (str(ip), number, protocol), service
        if port.get("nodePort"):
            yield ("", int(port["nodePort"]), protocol), service


def compact(obj: Object) -> Object:
    """Returns an EndpointSlice with its pods as lines "ADDRESS NAMESPACE NAME NODE" in place of the endpoints: they
    take a twentieth of the memory, and few of them are ever looked up. An object that is compact already stays so.
    """
    return obj if LINES in obj else {"metadata": obj["metadata"], LINES: "\n".join(_lines(obj))}


def _lines(obj: Object) -> Iterable[str]:
    for row in obj.get("endpoints") or []:
        ref = row.get("targetRef") or {}
        if ref.get("kind") == "Pod":
            for ip in row.get("addresses") or []:
                yield f"{ip} {ref.get('namespace') or namespace(obj)} {ref.get('name')} {row.get('nodeName') or ''}"


def _target(lines: str, ip: str) -> End:
    found = next(line for line in lines.splitlines() if line.startswith(f"{ip} "))
    return End("pod", *found.split(" ")[1:4])


def _several(found: str | tuple[str, ...]) -> tuple[str, ...]:
    return (found,) if isinstance(found, str) else found
