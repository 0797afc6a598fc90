"""Computes the RRsets of objects, by the Kubernetes DNS specification 1.1.0 (kubernetes/dns, docs/specification.md).

    Service with ClusterIP(s)   A/AAAA svc.ns.svc.zone; SRV _port._proto.svc... per named port; PTR of each ClusterIP
    its endpoints               as CoreDNS: A/AAAA hostname.svc... and PTR, made on demand (places.py) without hostname
    headless Service            A/AAAA svc... of all ready endpoints; A/AAAA hostname.svc...; SRV ready endpoint x named
                                port; PTR of each endpoint. Without a ready endpoint: NXDOMAIN (spec 2.4.1)
    ExternalName                CNAME svc... -> spec.externalName
    the schema itself           TXT dns-version.zone "1.1.0"; NS of each zone; A/AAAA of ns.dns.zone

Where the specification is silent, this module follows CoreDNS. The SRV records at a Service's name list all its ports.
The label of an endpoint without a hostname is its address, written with dashes. An endpoint is ready if its `ready`
condition is true or absent, or if its Service has publishNotReadyAddresses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from podwire_base.kube import meta
from podwire_base.kube.shape import ANY, misshapen
from podwire_base.kube.times import parse_time

from . import names
from .pack import A_IN, CNAME_IN, PTR_IN, SRV_IN, Packer, question
from .rtypes import CNAME, NS, TXT

SCHEMA_VERSION = "1.1.0"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
TRIGGER_ANNOTATION = "endpoints.kubernetes.io/last-change-trigger-time"
SPEC_FIELDS = ("type", "externalName", "clusterIP", "clusterIPs", "publishNotReadyAddresses")
PORT_FIELDS = ("name", "protocol", "port")
# This module reads these fields without a type check. kube/shape.py describes the handling of malformed objects.
SERVICE_SHAPE = {"spec": {"clusterIPs": [ANY], "ports": [{"protocol": str}]}}
SLICE_SHAPE = {
    "metadata": {"labels": dict},
    "ports": [{"protocol": str}],
    "endpoints": [{"addresses": [ANY], "conditions": dict}],
}
POD_SHAPE = {"status": {"podIPs": [dict]}}
_encode = msgspec.msgpack.Encoder().encode


class BadObject(ValueError):
    """An object cannot become records. The text names the field and its valid values."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The settings that shape the zone.

    zone: the cluster domain as text ("cluster.local."). ttl, denial_ttl: 0 to 3600 seconds, of answers and of negative
    answers. reverse: apexes of the reverse zones. addresses: of this DNS server (the glue of ns.dns.zone). pods:
    whether pod.zone exists; the server computes its names from the question.
    """

    zone: str
    ttl: int = 5
    reverse: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    pods: bool = True
    denial_ttl: int = 5

    @property
    def origins(self) -> frozenset[str]:
        return frozenset((self.zone, *self.reverse))


def pack_service(service: Mapping[str, Any]) -> bytes:
    """Packs the fields of a Service that the DNS needs.

    The feeder keeps up to 10,000 Services in this form. Most writes to a Service change none of these fields.
    """
    spec = service.get("spec")
    if not isinstance(spec, Mapping):
        return _encode({"metadata": {"name": meta.name(service), "namespace": meta.namespace(service)}, "spec": spec})
    ports = spec.get("ports")
    if isinstance(ports, list) and all(isinstance(port, Mapping) for port in ports):
        ports = [{field: port[field] for field in PORT_FIELDS if field in port} for port in ports]
    kept = {field: spec[field] for field in SPEC_FIELDS if field in spec}
    return _encode(
        {
            "metadata": {"name": meta.name(service), "namespace": meta.namespace(service)},
            "spec": {**kept, "ports": ports},
        }
    )


def unpack_service(packed: bytes) -> dict[str, Any]:
    """Unpacks the result of `pack_service`: a Service that has only the fields that the DNS needs."""
    found: dict[str, Any] = msgspec.msgpack.decode(packed)
    return found


@dataclass(slots=True)
class Records:
    """The DNS records of one object.

    answers: question key -> value; no other object has these answers. pointers: question key of a reverse name -> the
    names that its PTR records point to; several objects may have pointers at one reverse name. bare: names (wire form)
    that exist without data. parent: the name whose existence this object implies; b"" if the object implies no name.
    places: packed addresses of the endpoints whose names and reverse names are made on demand, below `base`
    (places.py).
    """

    answers: dict[bytes, bytes] = field(default_factory=dict)
    pointers: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    bare: set[bytes] = field(default_factory=set)
    parent: bytes = b""
    base: bytes = b""
    places: frozenset[bytes] = frozenset()

    def point(self, address: bytes, target: bytes) -> None:
        key = names.reverse_wire(address) + PTR_IN
        known = self.pointers.get(key, ())
        if target not in known:
            self.pointers[key] = (*known, target)


def schema_records(schema: Schema) -> Records:
    """The records of an empty cluster."""
    pack, out = Packer(schema.ttl), Records()
    version, server = f"dns-version.{schema.zone}", f"ns.dns.{schema.zone}"
    out.answers[question(version, TXT)] = pack.text(SCHEMA_VERSION)
    for origin in schema.origins:
        out.answers[question(origin, NS)] = pack.named(NS, names.to_wire(server))
    for kind, value in pack.addresses(names.packed(address) for address in schema.addresses).items():
        out.answers[names.to_wire(server) + kind] = value
    bare = [*schema.origins, version, f"dns.{schema.zone}", f"svc.{schema.zone}"]
    if schema.pods:
        bare.append(f"pod.{schema.zone}")
    out.bare.update(map(names.to_wire, bare))
    return out


def namespace_names(schema: Schema, name: str) -> list[str]:
    """Returns the names that exist without data because the namespace exists."""
    text = names.label(name, "namespace")
    return [f"{text}.svc.{schema.zone}", *([f"{text}.pod.{schema.zone}"] if schema.pods else [])]


def pod_answers(zone: str, pack: Packer, pod: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Returns the answers for the name a-b-c-d.namespace.pod.zone of each pod address.

    The result is empty for a pod that succeeded or failed. Raises BadObject.
    """
    status = pod.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed"):
        return {}
    try:
        parent = names.to_wire(f"{names.label(meta.namespace(pod), 'metadata.namespace')}.pod.{zone}")
    except names.BadName as err:
        raise BadObject(str(err)) from err
    found = {}
    for item in status.get("podIPs") or [{"ip": status.get("podIP")}]:
        if item.get("ip"):
            packed = _packed(str(item["ip"]), "status.podIPs")
            owner = names.prefixed(names.dashed(names.canonical(str(item["ip"]))), parent)
            found.update({owner + kind: value for kind, value in pack.addresses([packed]).items()})
    return found


def service_records(zone: str, pack: Packer, service: Mapping[str, Any], slices: Iterable[bytes]) -> Records:
    """Returns all records of one Service. Raises BadObject.

    slices: the EndpointSlices of the Service, packed by `parse_slice`.
    """
    spec = service.get("spec") or {}
    out = Records()
    try:
        parent = names.to_wire(f"{names.label(meta.namespace(service), 'metadata.namespace')}.svc.{zone}")
        base = names.prefixed(names.label(meta.name(service), "metadata.name"), parent)
        if spec.get("type") == "ExternalName":
            out.answers[base + CNAME_IN] = pack.named(CNAME, _external(str(spec.get("externalName") or "")))
        else:
            addresses = [str(a) for a in spec.get("clusterIPs") or [spec.get("clusterIP")] if a]
            if addresses and addresses[0] == "None":
                _headless(out, pack, base, slices, all_ready=bool(spec.get("publishNotReadyAddresses")))
            elif addresses:
                _cluster_ip(out, pack, base, addresses, spec.get("ports") or [])
                _endpoints(out, pack, base, slices, all_ready=bool(spec.get("publishNotReadyAddresses")))
    except names.BadName as err:
        raise BadObject(str(err)) from err
    if out.answers:
        out.parent = parent
    return out


def _external(target: str) -> bytes:
    if not target:
        raise BadObject("spec.externalName is empty; a Service of type ExternalName needs a DNS name there")
    if _is_ip(target):
        raise BadObject(
            f"spec.externalName {target!r} is an IP address, and a CNAME needs a name; "
            "use a Service without selector and an EndpointSlice for addresses"
        )
    return names.to_wire(names.fqdn(target))


def _cluster_ip(out: Records, pack: Packer, base: bytes, given: list[str], ports: Iterable[Mapping[str, Any]]) -> None:
    packed = [_packed(address, "spec.clusterIPs") for address in given]
    for kind, value in pack.addresses(packed).items():
        out.answers[base + kind] = value
    for address in packed:
        out.point(address, base)
    every, by_name = set(), {}
    for port in ports:
        number, protocol, name = (
            _port(port.get("port"), "spec.ports[].port"),
            _protocol(port),
            str(port.get("name") or ""),
        )
        every.add((number, base))
        if name:
            by_name[names.label(name, "spec.ports[].name"), protocol] = {(number, base)}
    _srv(out, pack, base, every, by_name, {base: sorted(set(packed), key=lambda item: (len(item), item))})


def _srv(
    out: Records,
    pack: Packer,
    base: bytes,
    every: set[tuple[int, bytes]],
    by_name: Mapping[tuple[str, str], set[tuple[int, bytes]]],
    glue: Mapping[bytes, list[bytes]],
) -> None:
    """Adds the SRV records: all ports at the Service's name, and each named port at _port._protocol.svc..."""
    whole = pack.targets(every, glue) if every else None
    if whole is not None:
        out.answers[base + SRV_IN] = pack.srv(base, whole)
    for (name, protocol), targets in by_name.items():
        if targets:
            above = names.prefixed(f"_{protocol}", base)
            owner = names.prefixed(f"_{name}", above)
            out.bare.add(above)
            if len(targets) == 1:
                ((port, target),) = targets
                out.answers[owner + SRV_IN] = pack.srv_one(owner, port, target, glue[target])
            else:
                mine = whole if whole is not None and targets == every else pack.targets(targets, glue)
                out.answers[owner + SRV_IN] = pack.srv(owner, mine)


Port = tuple[str, str, int]  # label or "", protocol label, number
Endpoint = tuple[str, list[bytes], bool]  # host label or "", packed addresses, ready
_decode = msgspec.msgpack.Decoder(tuple[list[Port], list[Endpoint]]).decode
LONGEST_DASHED = 40  # bytes of the label of an IPv6 address, in wire form
EMPTY_SLICE = _encode(([], []))
LENGTHS = [bytes((number,)) for number in range(256)]


def parse_slice(piece: Mapping[str, Any]) -> tuple[bytes, list[str]]:
    """Returns the packed fields of an EndpointSlice that the DNS needs, and the problems of the slice.

    The packed form is small, because the feeder never reads most slices again. The function skips an invalid port or
    endpoint and uses the rest of the slice. An absent "ready" condition counts as true.
    """
    if piece.get("addressType") == "FQDN":
        return EMPTY_SLICE, []
    errors: list[str] = []
    ports: list[Port] = []
    endpoints: list[Endpoint] = []
    for index, port in enumerate(piece.get("ports") or []):
        try:
            if port.get("port") is not None:
                name = str(port.get("name") or "")
                ports.append(
                    (
                        names.label(name, f"ports[{index}].name") if name else "",
                        _protocol(port),
                        _port(port["port"], f"ports[{index}].port"),
                    )
                )
        except ValueError as err:
            errors.append(str(err))
        except Exception:
            if not (why := misshapen(piece, SLICE_SHAPE)):
                raise  # a bug of ours
            errors.append(why)
    for index, endpoint in enumerate(piece.get("endpoints") or []):
        try:
            hostname = str(endpoint.get("hostname") or "")
            endpoints.append(
                (
                    names.label(hostname, f"endpoints[{index}].hostname") if hostname else "",
                    [_packed(str(a), f"endpoints[{index}].addresses") for a in endpoint.get("addresses") or []],
                    (endpoint.get("conditions") or {}).get("ready") is not False,
                )
            )
        except ValueError as err:
            errors.append(str(err))
        except Exception:
            if not (why := misshapen(piece, SLICE_SHAPE)):
                raise  # a bug of ours
            errors.append(why)
    return _encode((ports, endpoints)), errors


def endpoint_count(piece: bytes) -> int:
    """Returns the number of endpoints, ready or not, in a slice that `parse_slice` packed."""
    return len(_decode(piece)[1])


def _headless(out: Records, pack: Packer, base: bytes, slices: Iterable[bytes], *, all_ready: bool) -> None:
    by_port: dict[tuple[str, str], set[tuple[int, bytes]]] = {}
    every: set[tuple[int, bytes]] = set()
    hosts: dict[bytes, list[bytes]] = {}
    for piece in slices:
        ports, endpoints = _decode(piece)
        owners = _hosts(out, base, [(host, found) for host, found, ready in endpoints if ready or all_ready], hosts)
        for name, protocol, number in ports:
            targets = {(number, owner) for owner in owners}
            every |= targets
            if name:
                by_port.setdefault((name, protocol), set()).update(targets)
    answers, one_a = out.answers, pack.one_a
    whole: list[bytes] = []
    for owner, addresses in hosts.items():
        whole += addresses
        if len(addresses) == 1 and len(addresses[0]) == 4:
            answers[owner + A_IN] = one_a + addresses[0]
        else:
            addresses.sort(key=lambda item: (len(item), item))
            for kind, value in pack.addresses(addresses).items():
                answers[owner + kind] = value
    for kind, value in pack.addresses(whole).items():
        answers[base + kind] = value
    _srv(out, pack, base, every, by_port, hosts)


def _endpoints(out: Records, pack: Packer, base: bytes, slices: Iterable[bytes], *, all_ready: bool) -> None:
    """Adds the endpoints of a Service with ClusterIP. Only endpoints with a hostname, which are few, have answers."""
    places: set[bytes] = set()
    named: list[tuple[str, list[bytes]]] = []
    for piece in slices:
        for host, found, ready in _decode(piece)[1]:
            if ready or all_ready:
                if host:
                    named.append((host, found))
                else:
                    places.update(found)
    if len(base) + LONGEST_DASHED < names.MAX_WIRE:
        out.base, out.places = base, frozenset(places)
    if named:
        hosts: dict[bytes, list[bytes]] = {}
        _hosts(out, base, named, hosts)
        for owner, addresses in hosts.items():
            for kind, value in pack.addresses(addresses).items():
                out.answers[owner + kind] = value


def _hosts(
    out: Records, base: bytes, endpoints: Iterable[tuple[str, list[bytes]]], hosts: dict[bytes, list[bytes]]
) -> list[bytes]:
    """Returns the owner name of each endpoint address, with repeats. Adds the addresses to `hosts` and the pointers."""
    owners, pointers, dashed, reverse = [], out.pointers, names.dashed_label, names.reverse_wire
    room = names.MAX_WIRE - len(base) - 1
    for hostname, addresses in endpoints:
        for packed in addresses:
            label = hostname.encode() if hostname else dashed(packed)
            if len(label) > room:
                raise BadObject(
                    f"the name of endpoint {label.decode()} is longer than a DNS name may be (253 characters)"
                )
            owner = LENGTHS[len(label)] + label + base
            owners.append(owner)
            known = hosts.get(owner)
            if known is None:
                hosts[owner] = [packed]
            elif packed not in known:
                known.append(packed)
            key = reverse(packed) + PTR_IN
            if key not in pointers:
                pointers[key] = (owner,)
            elif owner not in pointers[key]:
                pointers[key] += (owner,)
    return owners


def _protocol(port: Mapping[str, Any]) -> str:
    return names.label(str(port.get("protocol") or "TCP"), "protocol")


def _port(value: Any, what: str) -> int:
    if not isinstance(value, int) or not 0 < value < 65536:
        raise BadObject(f"{what} is {value!r}; it must be a number from 1 to 65535")
    return value


def _packed(text: str, what: str) -> bytes:
    try:
        return names.packed(text if names.is_canonical_ipv4(text) else names.canonical(text))
    except names.BadName as err:
        raise BadObject(f"{what}: {err}") from err


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def service_of_slice(piece: Mapping[str, Any]) -> str:
    """Returns the "namespace/service" of an EndpointSlice; "" if the slice has no Service label."""
    name = meta.labels(piece).get(SERVICE_NAME_LABEL)
    return f"{meta.namespace(piece)}/{name}" if name else ""


def trigger_time(piece: Mapping[str, Any]) -> float | None:
    """Returns the time of the change that caused an EndpointSlice's update, in seconds since the epoch.

    The source is an annotation (RFC 3339). Returns None if the annotation is absent or invalid.
    """
    text = ((piece.get("metadata") or {}).get("annotations") or {}).get(TRIGGER_ANNOTATION)
    try:
        return parse_time(text).timestamp() if text else None
    except (ValueError, TypeError):
        return None


def is_headless(packed: bytes | None) -> bool:
    """Whether a Service, packed by `pack_service`, is headless."""
    return packed is not None and (unpack_service(packed).get("spec") or {}).get("clusterIP") == "None"
