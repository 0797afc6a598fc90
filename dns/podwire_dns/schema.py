"""Objects -> RRsets, after the Kubernetes DNS specification 1.1.0 (kubernetes/dns, docs/specification.md).

    Service with ClusterIP(s)   A/AAAA svc.ns.svc.zone; SRV _port._proto.svc... per named port; PTR of each ClusterIP
    headless Service            A/AAAA svc... of all ready endpoints; A/AAAA hostname.svc...; SRV ready endpoint x named
                                port; PTR of each endpoint. No ready endpoint: no name at all (NXDOMAIN, spec 2.4.1)
    ExternalName                CNAME svc... -> spec.externalName
    the schema itself           TXT dns-version.zone "1.1.0"; NS of each zone; A/AAAA of ns.dns.zone

Where the specification is silent this does as CoreDNS: an SRV question at the Service's own name lists all its ports, and
an endpoint without a hostname is named by its address with dashes. An endpoint is ready if its `ready` condition is true
or absent, or if the Service has publishNotReadyAddresses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from podwire_controlplane.api import meta

from . import names
from .zone import AAAA, CNAME, NS, PTR, SRV, TXT, A, Key, Rdata, RRset, Srv

SCHEMA_VERSION = "1.1.0"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
SRV_WEIGHT_SUM = 100


class BadObject(ValueError):
    """An object that cannot become records; the text names the field and what it must hold."""


@dataclass(frozen=True, slots=True)
class Schema:
    """zone: the cluster domain as text ("cluster.local."). ttl: seconds, 0 to 3600. reverse: apexes of reverse zones.

    addresses: where this DNS is reached (glue of ns.dns.zone).
    """

    zone: str
    ttl: int = 5
    reverse: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    pods: bool = True  # pod.zone exists (names of pods are answered from the name itself, not from records)

    @property
    def origins(self) -> frozenset[str]:
        return frozenset((self.zone, *self.reverse))


class _Records:
    """Collects data by (name, type); duplicates melt together."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.data: dict[Key, set[Rdata]] = {}

    def add(self, name: str, rtype: int, item: Rdata) -> None:
        if len(name) >= names.MAX_WIRE:
            raise names.BadName(f"{name} is longer than a DNS name may be (253 characters)")
        self.data.setdefault((name, rtype), set()).add(item)

    def address(self, name: str, address: str) -> None:
        self.add(name, AAAA if ":" in address else A, address)

    def srv(self, name: str, targets: Iterable[tuple[int, str]]) -> None:
        """SRV data with the weight shared out evenly, as (port, target) pairs."""
        pairs = sorted(set(targets))
        for port, target in pairs:
            self.add(name, SRV, Srv(0, max(1, SRV_WEIGHT_SUM // len(pairs)), port, target))

    def rrsets(self) -> list[RRset]:
        return [RRset(name, rtype, self.schema.ttl, tuple(sorted(items, key=_order)))
                for (name, rtype), items in self.data.items()]


def _order(item: Rdata) -> tuple[Any, ...]:
    return tuple(item) if isinstance(item, Srv) else (item,)


def schema_rrsets(schema: Schema) -> tuple[list[RRset], list[str]]:
    """What exists in an empty cluster: (RRsets, names without data)."""
    out = _Records(schema)
    out.add(f"dns-version.{schema.zone}", TXT, SCHEMA_VERSION)
    server = f"ns.dns.{schema.zone}"
    for origin in schema.origins:
        out.add(origin, NS, server)
    for address in schema.addresses:
        out.address(server, address)
    bare = [f"svc.{schema.zone}", *([f"pod.{schema.zone}"] if schema.pods else [])]
    return out.rrsets(), bare


def namespace_names(schema: Schema, name: str) -> list[str]:
    """Names that exist, without data, because the namespace exists."""
    text = names.label(name, "namespace")
    return [f"{text}.svc.{schema.zone}", *([f"{text}.pod.{schema.zone}"] if schema.pods else [])]


def service_rrsets(schema: Schema, service: Mapping[str, Any], slices: Iterable[Slice]) -> list[RRset]:
    """All records of one Service. `slices`: its EndpointSlices (looked at only where it is headless). Raises BadObject."""
    spec = service.get("spec") or {}
    try:
        base = (f"{names.label(meta.name(service), 'metadata.name')}."
                f"{names.label(meta.namespace(service), 'metadata.namespace')}.svc.{schema.zone}")
        out = _Records(schema)
        if spec.get("type") == "ExternalName":
            _external(out, base, str(spec.get("externalName") or ""))
        else:
            addresses = [str(a) for a in spec.get("clusterIPs") or [spec.get("clusterIP")] if a]
            if addresses and addresses[0] == "None":
                _headless(out, base, slices, all_ready=bool(spec.get("publishNotReadyAddresses")))
            elif addresses:
                _cluster_ip(out, base, addresses, spec.get("ports") or [])
        return out.rrsets()
    except names.BadName as err:
        raise BadObject(str(err)) from err


def _external(out: _Records, base: str, target: str) -> None:
    if not target:
        raise BadObject("spec.externalName is empty; a Service of type ExternalName needs a DNS name there")
    if _is_ip(target):
        raise BadObject(f"spec.externalName {target!r} is an IP address, and a CNAME needs a name; "
                        "use a Service without selector and an EndpointSlice for addresses")
    out.add(base, CNAME, names.fqdn(target))


def _cluster_ip(out: _Records, base: str, addresses: list[str], ports: Iterable[Mapping[str, Any]]) -> None:
    for given in addresses:
        address = _address(given, "spec.clusterIPs")
        out.address(base, address)
        out.add(names.reverse_name(address), PTR, base)
    listed = [(str(p.get("name") or ""), _protocol(p), _port(p.get("port"), "spec.ports[].port")) for p in ports]
    for name, protocol, number in listed:
        if name:
            out.srv(f"_{names.label(name, 'spec.ports[].name')}._{protocol}.{base}", [(number, base)])
    out.srv(base, [(number, base) for _, _, number in listed])


@dataclass(frozen=True, slots=True)
class Endpoint:
    """hostname: "" where the object has none. addresses: canonical text. ready: the condition (absent counts as true)."""

    hostname: str
    addresses: tuple[str, ...]
    ready: bool


@dataclass(frozen=True, slots=True)
class Slice:
    """What DNS needs of an EndpointSlice. ports: (label or "", protocol label, number)."""

    ports: tuple[tuple[str, str, int], ...]
    endpoints: tuple[Endpoint, ...]


def parse_slice(piece: Mapping[str, Any]) -> tuple[Slice, list[str]]:
    """The slice, and what was wrong with it: a bad port or endpoint is left out, the rest of the slice serves."""
    if piece.get("addressType") == "FQDN":
        return Slice((), ()), []
    errors: list[str] = []
    ports, endpoints = [], []
    for index, port in enumerate(piece.get("ports") or []):
        try:
            if port.get("port") is not None:
                name = str(port.get("name") or "")
                ports.append((names.label(name, f"ports[{index}].name") if name else "", _protocol(port),
                              _port(port["port"], f"ports[{index}].port")))
        except (ValueError, AttributeError) as err:
            errors.append(str(err))
    for index, endpoint in enumerate(piece.get("endpoints") or []):
        where = f"endpoints[{index}]"
        try:
            hostname = str(endpoint.get("hostname") or "")
            endpoints.append(Endpoint(
                names.label(hostname, f"{where}.hostname") if hostname else "",
                tuple(_address(str(a), f"{where}.addresses") for a in endpoint.get("addresses") or []),
                (endpoint.get("conditions") or {}).get("ready") is not False))
        except (ValueError, AttributeError) as err:
            errors.append(str(err))
    return Slice(tuple(ports), tuple(endpoints)), errors


def _headless(out: _Records, base: str, slices: Iterable[Slice], *, all_ready: bool) -> None:
    by_port: dict[str, set[tuple[int, str]]] = {}
    every: set[tuple[int, str]] = set()
    for piece in slices:
        owners = []
        for endpoint in piece.endpoints:
            if not (endpoint.ready or all_ready):
                continue
            for address in endpoint.addresses:
                owner = f"{endpoint.hostname or names.dashed(address)}.{base}"
                owners.append(owner)
                out.address(base, address)
                out.address(owner, address)
                out.add(names.reverse_name(address), PTR, owner)
        for name, protocol, number in piece.ports:
            targets = {(number, owner) for owner in owners}
            every |= targets
            if name:
                by_port.setdefault(f"_{name}._{protocol}.{base}", set()).update(targets)
    for name, targets in by_port.items():
        out.srv(name, targets)
    out.srv(base, every)


def _protocol(port: Mapping[str, Any]) -> str:
    return names.label(str(port.get("protocol") or "TCP"), "protocol")


def _port(value: Any, what: str) -> int:
    if not isinstance(value, int) or not 0 < value < 65536:
        raise BadObject(f"{what} is {value!r}; it must be a number from 1 to 65535")
    return value


def _address(text: str, what: str) -> str:
    """The canonical text of an address, so that one address has one name however it was written."""
    try:
        return names.canonical(text)
    except names.BadName as err:
        raise BadObject(f"{what}: {err}") from err


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def service_of_slice(piece: Mapping[str, Any]) -> str:
    """"namespace/service" of an EndpointSlice, "" where it names none."""
    name = meta.labels(piece).get(SERVICE_NAME_LABEL)
    return f"{meta.namespace(piece)}/{name}" if name else ""
