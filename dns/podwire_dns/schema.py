"""Objects -> RRsets, after the Kubernetes DNS specification 1.1.0 (kubernetes/dns, docs/specification.md).

    Service with ClusterIP(s)   A/AAAA svc.ns.svc.zone; SRV _port._proto.svc... per named port; PTR of each ClusterIP
    headless Service            A/AAAA svc... of all ready endpoints; A/AAAA hostname.svc...; SRV ready endpoint x named
                                port; PTR of each endpoint. No ready endpoint: no name at all (NXDOMAIN, spec 2.4.1)
    ExternalName                CNAME svc... -> spec.externalName
    the schema itself           TXT dns-version.zone "1.1.0"; NS of each zone; A/AAAA of ns.dns.zone

Where the specification is silent, this follows CoreDNS: an SRV question at the Service's own name lists all its ports,
and an endpoint without a hostname is named by its address with dashes. An endpoint is ready if its `ready` condition is
true or absent, or if the Service has publishNotReadyAddresses.
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
# The fields that are read below without a type check; kube/shape.py describes how malformed objects are handled.
SERVICE_SHAPE = {"spec": {"clusterIPs": [ANY], "ports": [{"protocol": str}]}}
SLICE_SHAPE = {
    "metadata": {"labels": dict},
    "ports": [{"protocol": str}],
    "endpoints": [{"addresses": [ANY], "conditions": dict}],
}
POD_SHAPE = {"status": {"podIPs": [dict]}}
_encode = msgspec.msgpack.Encoder().encode


class BadObject(ValueError):
    """An object that cannot become records; the text names the field and its valid values."""


@dataclass(frozen=True, slots=True)
class Schema:
    """zone: the cluster domain as text ("cluster.local."). ttl: seconds, 0 to 3600. reverse: apexes of reverse zones.

    addresses: the addresses of this DNS (glue of ns.dns.zone). pods: pod.zone exists (its names are computed from the
    question, not from records).
    """

    zone: str
    ttl: int = 5
    reverse: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    pods: bool = True

    @property
    def origins(self) -> frozenset[str]:
        return frozenset((self.zone, *self.reverse))


def pack_service(service: Mapping[str, Any]) -> bytes:
    """The fields of a Service that the DNS needs, packed: 10,000 of them are kept, and most writes do not change
    them.
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
    """The Service from its packed form, without the fields that DNS does not need."""
    found: dict[str, Any] = msgspec.msgpack.decode(packed)
    return found


@dataclass(slots=True)
class Records:
    """The DNS records of one object. answers: question key -> value; all but the pointers belong to this object alone.

    pointers: question key of a reverse name -> names it points to (several objects may add some). bare: names (wire
    form) that exist without data. parent: the name whose existence this object implies, b"" for none.
    """

    answers: dict[bytes, bytes] = field(default_factory=dict)
    pointers: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    bare: set[bytes] = field(default_factory=set)
    parent: bytes = b""

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
    """Names that exist, without data, because the namespace exists."""
    text = names.label(name, "namespace")
    return [f"{text}.svc.{schema.zone}", *([f"{text}.pod.{schema.zone}"] if schema.pods else [])]


def pod_answers(zone: str, pack: Packer, pod: Mapping[str, Any]) -> dict[bytes, bytes]:
    """a-b-c-d.namespace.pod.zone of each address of a running pod; empty for an ended one. Raises BadObject."""
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
    """All records of one Service. `slices`: its EndpointSlices as `parse_slice` keeps them (used only if it is
    headless). Raises BadObject.
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
    """The SRV records of all ports at the Service's own name, of named ports at _port._protocol.svc..."""
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
EMPTY_SLICE = _encode(([], []))
LENGTHS = [bytes((number,)) for number in range(256)]


def parse_slice(piece: Mapping[str, Any]) -> tuple[bytes, list[str]]:
    """The fields of an EndpointSlice that DNS needs, packed small because most are never read again; and the problems
    in it.

    A bad port or endpoint is skipped, and the rest of the slice is used. An absent "ready" condition counts as true.
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
    """Endpoints, ready or not, of a slice that `parse_slice` packed."""
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


def _hosts(
    out: Records, base: bytes, endpoints: Iterable[tuple[str, list[bytes]]], hosts: dict[bytes, list[bytes]]
) -> list[bytes]:
    """The owner name of each endpoint, with repeats; their addresses go into `hosts` and into the pointers."""
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
    """ "namespace/service" of an EndpointSlice, "" if it names none."""
    name = meta.labels(piece).get(SERVICE_NAME_LABEL)
    return f"{meta.namespace(piece)}/{name}" if name else ""


def trigger_time(piece: Mapping[str, Any]) -> float | None:
    """When the change behind an EndpointSlice happened (its annotation, RFC 3339), in seconds since the epoch."""
    text = ((piece.get("metadata") or {}).get("annotations") or {}).get(TRIGGER_ANNOTATION)
    try:
        return parse_time(text).timestamp() if text else None
    except (ValueError, TypeError):
        return None


def is_headless(packed: bytes | None) -> bool:
    """Whether a Service, packed by `pack_service`, is headless."""
    return packed is not None and (unpack_service(packed).get("spec") or {}).get("clusterIP") == "None"
