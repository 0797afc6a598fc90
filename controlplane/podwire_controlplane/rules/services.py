"""Validation of Services, Endpoints and EndpointSlices (pkg/apis/core/validation, pkg/apis/discovery/validation)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from podwire_base.kube.meta import Object

from ..ipfamilies import BOTH, PREFER, REQUIRE, SINGLE, family_of
from . import fields, meta
from .containers import PROTOCOLS, port_or_name
from .fields import (
    Causes,
    all_invalid,
    duplicate,
    forbidden,
    invalid,
    not_supported,
    one_of,
    required,
    too_many,
)

TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
DISTRIBUTIONS = ("PreferClose", "PreferSameNode", "PreferSameZone")
_DAY = 86400
_MAX_ADDRESSES, _MAX_ENDPOINTS, _MAX_PORTS, _MAX_HINTS = 100, 1000, 20000, 8


def cluster_fields(service: Object) -> Causes:
    """The addresses, families and policy that a client gives (ValidateServiceClusterIPsRelatedFields)."""
    spec = service["spec"]
    ips, families, policy = spec.get("clusterIPs") or [], spec.get("ipFamilies") or [], spec.get("ipFamilyPolicy")
    if spec.get("type") == "ExternalName":
        for name, value in (("clusterIPs", ips), ("ipFamilies", families)):
            if value:
                yield forbidden(f"spec.{name}", "may not be set for ExternalName services")
        if policy is not None:
            yield forbidden("spec.ipFamilyPolicy", "may not be set for ExternalName services")
        return
    for n, family in enumerate(families):
        if family not in BOTH:
            yield not_supported(f"spec.ipFamilies[{n}]", family, BOTH)
        if family in families[:n]:
            yield duplicate(f"spec.ipFamilies[{n}]", family)
    if policy is not None:
        yield from one_of("spec.ipFamilyPolicy", policy, (PREFER, REQUIRE, SINGLE))
    yield from _cluster_ips(spec, ips, families)


def _cluster_ips(spec: Object, ips: list[str], families: list[str]) -> Causes:
    one = spec.get("clusterIP") or ""
    if ips and not one:
        yield required("spec.clusterIP", "must be set when `clusterIPs` is set")
    elif ips and ips[0] != one:
        yield invalid("spec.clusterIPs", ips, "first value must match `clusterIP`")
    if "None" in ips and len(ips) > 1:
        yield invalid("spec.clusterIPs", ips, "'None' must be the first and only value")
    bad = False
    for n, text in enumerate(ips):
        if text != "None" and text:
            problems = fields.ip(text)
            bad = bad or bool(problems)
            yield from all_invalid(f"spec.clusterIPs[{n}]", text, problems)
    if bad or not ips or ips[0] == "None":
        return
    if len(ips) > 2:
        yield invalid("spec.clusterIPs", ips, "may only hold up to 2 values")
    elif len(ips) == 2 and family_of(ips[0]) == family_of(ips[1]):
        yield invalid("spec.clusterIPs", ips, "may specify no more than one IP for each IP family")
    for n, (text, family) in enumerate(zip(ips, families, strict=False)):
        if family in BOTH and family_of(text) != family:
            yield invalid(
                f"spec.clusterIPs[{n}]", text, f"expected an {family} value as indicated by `ipFamilies[{n}]`"
            )


def _ports(spec: Object) -> Causes:
    found, headless = spec.get("ports") or [], (spec.get("clusterIP") == "None")
    if not found and not headless and spec.get("type") != "ExternalName":
        yield required("spec.ports")
    names: set[str] = set()
    for n, port in enumerate(found):
        yield from _port(f"spec.ports[{n}]", port, len(found) > 1, names)
    pairs: set[tuple[Any, Any]] = set()
    for n, port in enumerate(found):
        pair = (port.get("protocol"), port.get("port"))
        if pair in pairs:
            yield duplicate(f"spec.ports[{n}]", pair)
        pairs.add(pair)
    used: set[tuple[Any, Any]] = set()
    for n, port in enumerate(found):
        if not port.get("nodePort"):
            continue
        if spec.get("type") not in ("NodePort", "LoadBalancer"):
            yield forbidden(f"spec.ports[{n}].nodePort", f"may not be used when `type` is '{spec.get('type')}'")
            continue
        pair = (port.get("protocol"), port["nodePort"])
        if pair in used:
            yield duplicate(f"spec.ports[{n}].nodePort", port["nodePort"])
        used.add(pair)


def _port(path: str, port: Object, named: bool, names: set[str]) -> Causes:
    own = port.get("name") or ""
    if named and not own:
        yield required(f"{path}.name")
    elif own:
        yield from all_invalid(f"{path}.name", own, fields.label(own))
        if own in names:
            yield duplicate(f"{path}.name", own)
        names.add(own)
    yield from all_invalid(f"{path}.port", port.get("port"), fields.port_number(port.get("port") or 0))
    yield from one_of(f"{path}.protocol", port.get("protocol") or "", PROTOCOLS)
    yield from port_or_name(f"{path}.targetPort", port.get("targetPort"))
    if port.get("appProtocol") is not None:
        yield from all_invalid(f"{path}.appProtocol", port["appProtocol"], fields.qualified(port["appProtocol"]))


def _affinity(spec: Object) -> Causes:
    kind, config = spec.get("sessionAffinity") or "", spec.get("sessionAffinityConfig")
    if not kind:
        yield required("spec.sessionAffinity")
    else:
        yield from one_of("spec.sessionAffinity", kind, ("ClientIP", "None"))
    if kind == "ClientIP":
        seconds = ((config or {}).get("clientIP") or {}).get("timeoutSeconds")
        if seconds is None:
            yield required("spec.sessionAffinityConfig.clientIP.timeoutSeconds")
        elif not 0 < seconds <= _DAY:
            where = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
            yield invalid(where, seconds, f"must be greater than 0 and less than {_DAY}")
    elif kind == "None" and config is not None:
        yield forbidden("spec.sessionAffinityConfig", "must not be set when session affinity is None")


def public_address(path: str, text: str) -> Causes:
    """An address that traffic can be sent to from elsewhere (ValidateEndpointIP)."""
    address = fields.parsed_ip(text)
    if address is None:
        yield from all_invalid(path, text, fields.ip(text))
        return
    for bad, why in (
        (address.is_unspecified, "may not be unspecified"),
        (address.is_loopback, "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        (address.is_link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        (address.is_multicast and ((address.version == 4 and text.startswith("224.0.0."))
                                   or text.lower().startswith("ff02")),
         "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
    ):  # fmt: skip
        if bad:
            yield invalid(path, text, why)


def _outside(spec: Object) -> Causes:
    kind = spec.get("type")
    for n, text in enumerate(spec.get("externalIPs") or []):
        yield from public_address(f"spec.externalIPs[{n}]", text)
    policy = spec.get("externalTrafficPolicy")
    if kind in ("NodePort", "LoadBalancer") or (kind == "ClusterIP" and spec.get("externalIPs")):
        if policy not in (None, ""):
            yield from one_of("spec.externalTrafficPolicy", policy, ("Cluster", "Local"))
        elif kind != "ExternalName":
            yield required("spec.externalTrafficPolicy", "must be set for services that are reached from outside")
    elif policy:
        yield invalid("spec.externalTrafficPolicy", policy, "may only be set for externally-accessible services")
    internal = spec.get("internalTrafficPolicy")
    if internal is not None:
        yield from one_of("spec.internalTrafficPolicy", internal, ("Cluster", "Local"))
    elif kind in ("NodePort", "LoadBalancer", "ClusterIP"):
        yield required("spec.internalTrafficPolicy")
    health = spec.get("healthCheckNodePort") or 0
    if health and not (kind == "LoadBalancer" and policy == "Local"):
        why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
        yield invalid("spec.healthCheckNodePort", health, why)
    if spec.get("trafficDistribution") is not None:
        yield from one_of("spec.trafficDistribution", spec["trafficDistribution"], DISTRIBUTIONS)


def _load_balancer(service: Object) -> Causes:
    spec = service["spec"]
    balanced, kind = spec.get("type") == "LoadBalancer", spec.get("type")
    ranges = spec.get("loadBalancerSourceRanges") or []
    if ranges and not balanced:
        yield forbidden("spec.LoadBalancerSourceRanges", "may only be used when `type` is 'LoadBalancer'")
    elif ranges:
        for n, text in enumerate(ranges):
            yield from all_invalid(f"spec.LoadBalancerSourceRanges[{n}]", text, fields.cidr(text.strip()))
    if balanced and spec.get("allocateLoadBalancerNodePorts") is None:
        yield required("spec.allocateLoadBalancerNodePorts")
    if not balanced and spec.get("allocateLoadBalancerNodePorts") is not None:
        yield forbidden("spec.allocateLoadBalancerNodePorts", "may only be used when `type` is 'LoadBalancer'")
    name = spec.get("loadBalancerClass")
    if name is not None:
        if not balanced:
            yield forbidden("spec.loadBalancerClass", f"may only be used when `type` is 'LoadBalancer', not '{kind}'")
        else:
            yield from all_invalid("spec.loadBalancerClass", name, fields.qualified(name))


def service(obj: Object) -> Causes:
    spec, kind = obj["spec"], obj["spec"].get("type")
    if kind == "LoadBalancer":
        for n, port in enumerate(spec.get("ports") or []):
            if port.get("port") == 10250:  # that of the kubelet
                yield invalid(
                    f"spec.ports[{n}]", 10250, "may not expose port 10250 externally since it is used by kubelet"
                )
    if kind in ("NodePort", "LoadBalancer") and spec.get("clusterIP") == "None":
        yield invalid("spec.clusterIPs[0]", "None", f"may not be set to 'None' for {kind} services")
    if kind == "ExternalName":
        target = (spec.get("externalName") or "").removesuffix(".")
        if target:
            yield from all_invalid("spec.externalName", spec["externalName"], fields.subdomain(target))
        else:
            yield required("spec.externalName")
    yield from _ports(spec)
    yield from meta.check_labels("spec.selector", spec.get("selector"))
    yield from _affinity(spec)
    if not kind:
        yield required("spec.type")
    else:
        yield from one_of("spec.type", kind, TYPES)
    yield from cluster_fields(obj)
    yield from _outside(spec)
    yield from _load_balancer(obj)


def service_update(obj: Object, before: Object) -> Causes:
    """What an update may not change. With a type ExternalName on either side, it may change all addresses."""
    new, old = obj["spec"], before["spec"]
    if "ExternalName" not in (new.get("type"), old.get("type")):
        yield from _kept_addresses(new, old)
    if old.get("type") == new.get("type") == "LoadBalancer" and old.get("loadBalancerClass") != new.get(
        "loadBalancerClass"
    ):
        yield meta.immutable("spec.loadBalancerClass", new.get("loadBalancerClass"))


def _kept_addresses(new: Object, old: Object) -> Causes:
    """Addresses and families stay; a second one may come and go (validateUpgradeDowngradeClusterIPs). Families of a
    headless Service may change.
    """
    were, ours = (spec.get("clusterIPs") or [] for spec in (old, new))
    headless = [found[:1] == ["None"] for found in (were, ours)]
    if headless == [True, True]:
        return
    why = "may not change once set: delete the Service and create it again (field is immutable)"
    yield from _same_start("spec.clusterIPs", ours, were, why)
    if not any(headless):
        yield from _same_start(
            "spec.ipFamilies", new.get("ipFamilies") or [], old.get("ipFamilies") or [], "may not change once set"
        )


def _same_start(path: str, ours: list[str], were: list[str], why: str) -> Causes:
    """Two lists of one length are equal. Where the lengths differ, the first values are."""
    if were and not ours:
        yield invalid(f"{path}[0]", ours, "the first value can not be unset")
    for n, (now, was) in enumerate(zip(ours, were, strict=False)):
        if now != was and (n == 0 or len(ours) == len(were)):
            yield invalid(f"{path}[{n}]", ours, why)


def load_balancer_status(path: str, status: Object, spec: Object | None) -> Causes:
    """spec: of a Service, None for an Ingress."""
    found = (status or {}).get("ingress") or []
    if found and spec is not None and spec.get("type") != "LoadBalancer":
        yield forbidden(f"{path}.ingress", 'may only be used when `spec.type` is "LoadBalancer"')
        return
    for n, one in enumerate(found):
        where = f"{path}.ingress[{n}]"
        if one.get("ip"):
            yield from all_invalid(f"{where}.ip", one["ip"], fields.ip(one["ip"]))
        if spec is not None:
            mode = one.get("ipMode")
            if one.get("ip") and mode is None:
                yield required(f"{where}.ipMode", "must be specified when `ip` is set")
            elif mode is not None and not one.get("ip"):
                yield forbidden(f"{where}.ipMode", "may not be specified when `ip` is not set")
            elif mode is not None:
                yield from one_of(f"{where}.ipMode", mode, ("Proxy", "VIP"))
        if name := one.get("hostname"):
            yield from all_invalid(f"{where}.hostname", name, fields.subdomain(name))
            if fields.parsed_ip(name) is not None:
                yield invalid(f"{where}.hostname", name, "must be a DNS name, not an IP address")


def service_status(obj: Object, _before: Object) -> Causes:
    balancer = (obj.get("status") or {}).get("loadBalancer") or {}
    yield from load_balancer_status("status.loadBalancer", balancer, obj["spec"])


def service_warnings(obj: Object) -> list[str]:
    spec, found = obj["spec"], []
    if spec.get("externalIPs") and spec.get("type") == "ExternalName":
        found.append('spec.externalIPs is ignored when spec.type is "ExternalName"')
    elif spec.get("externalIPs"):
        found.append("spec.externalIPs is deprecated and may no longer be implemented in some clusters")
    if spec.get("loadBalancerIP"):
        found.append("spec.loadBalancerIP is deprecated and unimplemented by some load balancers")
    if spec.get("trafficDistribution") == "PreferClose":
        found.append('spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"')
    for name in ("clusterIPs", "externalIPs"):
        for n, text in enumerate(spec.get(name) or []):
            address = fields.parsed_ip(text)
            if address is not None and str(address) != text:
                found.append(
                    f'spec.{name}[{n}]: IPv6 address "{text}" should be in RFC 5952 canonical format ("{address}")'
                )
    return found


# ---- endpoints


def endpoints(obj: Object) -> Causes:
    for n, subset in enumerate(obj.get("subsets") or []):
        where = f"subsets[{n}]"
        if not subset.get("addresses") and not subset.get("notReadyAddresses"):
            yield required(where, "must specify `addresses` or `notReadyAddresses`")
        for kind in ("addresses", "notReadyAddresses"):
            for m, one in enumerate(subset.get(kind) or []):
                yield from _endpoint_address(f"{where}.{kind}[{m}]", one)
        ports = subset.get("ports") or []
        for m, port in enumerate(ports):
            place = f"{where}.ports[{m}]"
            if len(ports) > 1 and not port.get("name"):
                yield required(f"{place}.name")
            elif port.get("name"):
                yield from all_invalid(f"{place}.name", port["name"], fields.label(port["name"]))
            yield from all_invalid(f"{place}.port", port.get("port"), fields.port_number(port.get("port") or 0))
            yield from one_of(f"{place}.protocol", port.get("protocol") or "", PROTOCOLS)
            if port.get("appProtocol") is not None:
                yield from all_invalid(
                    f"{place}.appProtocol", port["appProtocol"], fields.qualified(port["appProtocol"])
                )


def _endpoint_address(path: str, one: Object) -> Causes:
    text = one.get("ip") or ""
    yield from all_invalid(f"{path}.ip", text, fields.ip(text))
    if one.get("hostname"):
        yield from all_invalid(f"{path}.hostname", one["hostname"], fields.label(one["hostname"]))
    if one.get("nodeName") is not None:
        yield from all_invalid(f"{path}.nodeName", one["nodeName"], fields.subdomain(one["nodeName"]))
    yield from public_address(f"{path}.ip", text)


def endpoint_slice(obj: Object) -> Causes:
    kind = obj.get("addressType") or ""
    if not kind:
        yield required("addressType")
    else:
        yield from one_of("addressType", kind, ("FQDN", "IPv4", "IPv6"))
    found = obj.get("endpoints") or []
    if len(found) > _MAX_ENDPOINTS:
        yield too_many("endpoints", len(found), _MAX_ENDPOINTS)
    else:
        for n, one in enumerate(found):
            yield from _endpoint(f"endpoints[{n}]", one, kind)
    yield from _slice_ports(obj.get("ports") or [])


def _endpoint(path: str, one: Object, kind: str) -> Causes:
    addresses = one.get("addresses") or []
    if not addresses:
        yield required(f"{path}.addresses", "must contain at least 1 address")
    elif len(addresses) > _MAX_ADDRESSES:
        yield too_many(f"{path}.addresses", len(addresses), _MAX_ADDRESSES)
    for n, text in enumerate(addresses):
        where = f"{path}.addresses[{n}]"
        if kind in BOTH:
            if fields.parsed_ip(text) is not None and family_of(text) != kind:
                yield invalid(f"{path}.addresses", text, f"must be an {kind} address")
            else:
                yield from public_address(where, text)
        elif kind == "FQDN":
            yield from all_invalid(where, text, fields.subdomain(text.removesuffix(".")))
    if one.get("nodeName") is not None:
        yield from all_invalid(f"{path}.nodeName", one["nodeName"], fields.subdomain(one["nodeName"]))
    if one.get("hostname") is not None:
        yield from all_invalid(f"{path}.hostname", one["hostname"], fields.label(one["hostname"]))
    for key in ("forZones", "forNodes"):
        if (one.get("hints") or {}).get(key):
            yield from _hints(f"{path}.hints.{key}", one["hints"][key])


def _hints(path: str, found: Iterable[Object]) -> Causes:
    rows = list(found)
    seen: set[str] = set()
    if len(rows) > _MAX_HINTS:
        yield too_many(path, len(rows), _MAX_HINTS)
        return
    for n, one in enumerate(rows):
        own = one.get("name") or ""
        if own in seen:
            yield duplicate(f"{path}[{n}].name", own)
        seen.add(own)
        form = fields.label_value if path.endswith("forZones") else fields.subdomain
        yield from all_invalid(f"{path}[{n}].name", own, form(own))


def _slice_ports(found: list[Object]) -> Causes:
    names: set[str] = set()
    if len(found) > _MAX_PORTS:
        yield too_many("ports", len(found), _MAX_PORTS)
        return
    for n, port in enumerate(found):
        where, own = f"ports[{n}]", port.get("name") or ""
        if own:
            yield from all_invalid(f"{where}.name", own, fields.label(own))
        if own in names:
            yield duplicate(f"{where}.name", own)
        names.add(own)
        if port.get("port") is not None and not 1 <= port["port"] <= 65535:
            yield from all_invalid(f"{where}.port", port["port"], fields.port_number(port["port"]))
        if port.get("protocol") is None:
            yield required(f"{where}.protocol")
        else:
            yield from one_of(f"{where}.protocol", port["protocol"], PROTOCOLS)
        if port.get("appProtocol") is not None:
            yield from all_invalid(f"{where}.appProtocol", port["appProtocol"], fields.qualified(port["appProtocol"]))


def slice_update(obj: Object, before: Object) -> Causes:
    if obj.get("addressType") != before.get("addressType"):
        yield meta.immutable("addressType", obj.get("addressType"))
        return
    yield from endpoint_slice(obj)
