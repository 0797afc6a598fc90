"""Validation of the networking group: policies, Ingresses, ranges (pkg/apis/networking/validation)."""

from __future__ import annotations

import re
from typing import Any

from podwire_base.kube.meta import Object

from . import fields, meta
from .containers import PROTOCOLS, port_or_name
from .fields import Causes, all_invalid, forbidden, invalid, not_supported, one_of, required
from .services import load_balancer_status

_CLASS = "kubernetes.io/ingress.class"
_PATH_TYPES = ("Exact", "ImplementationSpecific", "Prefix")
_BAD_PATH = ("//", "/./", "/../", "%2f", "%2F")
_BAD_END = ("/..", "/.")


# ---- NetworkPolicy


def _policy_ports(path: str, found: list[Object]) -> Causes:
    for n, port in enumerate(found):
        where, number, end = f"{path}[{n}]", port.get("port"), port.get("endPort")
        if port.get("protocol"):
            yield from one_of(f"{where}.protocol", port["protocol"], PROTOCOLS)
        if number is not None:
            yield from port_or_name(f"{where}.port", number)
            if isinstance(number, int) and end is not None:
                if end < number:
                    yield invalid(f"{where}.endPort", number, "must be greater than or equal to `port`")
                yield from all_invalid(f"{where}.endPort", end, fields.port_number(end))
            elif end is not None:
                yield invalid(f"{where}.endPort", end, "may not be specified when `port` is non-numeric")
        elif end is not None:
            yield invalid(f"{where}.endPort", end, "may not be specified when `port` is not specified")


def _peer(path: str, peer: Object) -> Causes:
    count = sum(peer.get(k) is not None for k in ("podSelector", "namespaceSelector", "ipBlock"))
    for kind in ("podSelector", "namespaceSelector"):
        if peer.get(kind) is not None:
            yield from meta.label_selector(f"{path}.{kind}", peer[kind])
    if peer.get("ipBlock") is not None:
        yield from _block(f"{path}.ipBlock", peer["ipBlock"])
        if count > 1:
            yield forbidden(path, "may not specify both ipBlock and another peer")
    if not count:
        yield required(path, "must specify a peer")


def _block(path: str, block: Object) -> Causes:
    text = block.get("cidr") or ""
    if not text:
        yield required(f"{path}.cidr")
        return
    whole = fields.parsed_cidr(text)
    yield from all_invalid(f"{path}.cidr", text, fields.cidr(text))
    if whole is None:
        return
    for n, inner in enumerate(block.get("except") or []):
        part = fields.parsed_cidr(inner)
        yield from all_invalid(f"{path}.except[{n}]", inner, fields.cidr(inner))
        if part is not None and (part.version != whole.version or not part.subnet_of(whole) or part == whole):
            yield invalid(f"{path}.except[{n}]", inner, "must be a strict subset of `cidr`")


def network_policy(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    yield from meta.label_selector("spec.podSelector", spec.get("podSelector") or {})
    for way, peers in (("ingress", "from"), ("egress", "to")):
        for n, rule in enumerate(spec.get(way) or []):
            yield from _policy_ports(f"spec.{way}[{n}].ports", rule.get("ports") or [])
            for m, peer in enumerate(rule.get(peers) or []):
                yield from _peer(f"spec.{way}[{n}].{peers}[{m}]", peer)
    types = spec.get("policyTypes") or []
    if len(types) > 2:
        yield invalid("spec.policyTypes", types, "may not specify more than two policyTypes")
        return
    for n, kind in enumerate(types):
        yield from one_of(f"spec.policyTypes[{n}]", kind, ("Egress", "Ingress"))


# ---- Ingress


def _backend(path: str, backend: Object) -> Causes:
    service, other = backend.get("service"), backend.get("resource")
    if service is not None and other is not None:
        yield invalid(path, "", "cannot set both resource and service backends")
    elif other is not None:
        for name in ("kind", "name"):
            if not other.get(name):
                yield required(f"{path}.resource.{name}")
    elif service is None:
        yield required(path, "resource or service backend is required")
    else:
        yield from _service_backend(path, service)


def _service_backend(path: str, service: Object) -> Causes:
    own, port = service.get("name") or "", service.get("port") or {}
    if not own:
        yield required(f"{path}.service.name")
    else:
        yield from all_invalid(f"{path}.service.name", own, fields.label(own))
    if port.get("name") and port.get("number"):
        yield invalid(path, "", "cannot set both port name & port number")
    elif port.get("name"):
        yield from all_invalid(f"{path}.service.port.name", port["name"], fields.port_name(port["name"]))
    elif port.get("number"):
        yield from all_invalid(f"{path}.service.port.number", port["number"], fields.port_number(port["number"]))
    else:
        yield required(path, "port name or number is required")


def _path(path: str, one: Object) -> Causes:
    text, kind = one.get("path") or "", one.get("pathType")
    if kind is None:
        yield required(f"{path}.pathType", "pathType must be specified")
    elif kind in ("Exact", "Prefix"):
        if not text.startswith("/"):
            yield invalid(f"{path}.path", text, "must be an absolute path")
        if text:
            for bad in _BAD_PATH:
                if bad in text:
                    yield invalid(f"{path}.path", text, f"must not contain '{bad}'")
            for bad in _BAD_END:
                if text.endswith(bad):
                    yield invalid(f"{path}.path", text, f"cannot end with '{bad}'")
    elif kind == "ImplementationSpecific":
        if text and not text.startswith("/"):
            yield invalid(f"{path}.path", text, "must be an absolute path")
    else:
        yield not_supported(f"{path}.pathType", kind, _PATH_TYPES)
    yield from _backend(f"{path}.backend", one.get("backend") or {})


def _host(path: str, host: str) -> Causes:
    if fields.parsed_ip(host) is not None:
        yield invalid(path, host, "must be a DNS name, not an IP address")
    elif "*" in host:
        yield from all_invalid(path, host, fields.wildcard(host))
    else:
        yield from all_invalid(path, host, fields.subdomain(host))


def ingress(obj: Object) -> Causes:
    spec, rules = obj.get("spec") or {}, (obj.get("spec") or {}).get("rules") or []
    if not rules and spec.get("defaultBackend") is None:
        yield invalid("spec", spec, "either `defaultBackend` or `rules` must be specified")
    if spec.get("defaultBackend") is not None:
        yield from _backend("spec.defaultBackend", spec["defaultBackend"])
    for n, rule in enumerate(rules):
        if rule.get("host"):
            yield from _host(f"spec.rules[{n}].host", rule["host"])
        if (http := rule.get("http")) is not None:
            if not http.get("paths"):
                yield required(f"spec.rules[{n}].http.paths")
            for m, one in enumerate(http.get("paths") or []):
                yield from _path(f"spec.rules[{n}].http.paths[{m}]", one)
    for n, entry in enumerate(spec.get("tls") or []):
        for m, host in enumerate(entry.get("hosts") or []):
            yield from _host(f"spec.tls[{n}].hosts[{m}]", host)
    if name := spec.get("ingressClassName"):
        yield from all_invalid("spec.ingressClassName", name, fields.subdomain(name))


def ingress_create(obj: Object) -> Causes:
    note, name = (obj["metadata"].get("annotations") or {}).get(_CLASS), (obj.get("spec") or {}).get("ingressClassName")
    if note is not None and name is not None and note != name:
        yield invalid(f"metadata.annotations[{_CLASS}]", note, "must match `ingressClassName` when both are specified")
    yield from ingress(obj)


def ingress_status(obj: Object, _before: Object) -> Causes:
    yield from load_balancer_status("status.loadBalancer", (obj.get("status") or {}).get("loadBalancer") or {}, None)


def ingress_warnings(obj: Object) -> list[str]:
    if _CLASS in (obj["metadata"].get("annotations") or {}):
        return [f"annotation \"{_CLASS}\" is deprecated, please use 'spec.ingressClassName' instead"]
    return []


def ingress_class(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    controller = spec.get("controller") or ""
    if len(controller) > 250:
        yield fields.too_long("spec.controller", 250)
    yield from all_invalid("spec.controller", controller, fields.domain_prefixed(controller))
    parameters = spec.get("parameters")
    if parameters is not None:
        for name in ("kind", "name"):
            if not parameters.get(name):
                yield required(f"spec.parameters.{name}")
        scope = parameters.get("scope")
        if scope not in ("Cluster", "Namespace"):
            yield not_supported("spec.parameters.scope", scope, ("Cluster", "Namespace"))
        elif scope == "Namespace" and not parameters.get("namespace"):
            yield required("spec.parameters.namespace", "`parameters.scope` is set to 'Namespace'")
        elif scope == "Cluster" and parameters.get("namespace") is not None:
            yield forbidden("spec.parameters.namespace", "`parameters.scope` is set to 'Cluster'")


def ingress_class_update(obj: Object, before: Object) -> Causes:
    if (obj.get("spec") or {}).get("controller") != (before.get("spec") or {}).get("controller"):
        yield meta.immutable("spec.controller", (obj.get("spec") or {}).get("controller"))


# ---- ranges and addresses


def service_cidr(obj: Object) -> Causes:
    cidrs = (obj.get("spec") or {}).get("cidrs") or []
    if not cidrs:
        yield required("spec.cidrs", "at least one CIDR required")
    elif len(cidrs) > 2:
        yield invalid("spec", cidrs, "may only hold up to 2 values")
    elif len(cidrs) == 2 and len({":" in c for c in cidrs}) < 2:
        yield invalid(
            "spec", cidrs, "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"
        )
    for n, text in enumerate(cidrs):
        network = fields.parsed_cidr(text)
        yield from all_invalid(f"spec.cidrs[{n}]", text, fields.cidr(text))
        if network is not None and str(network) != text:
            yield invalid(f"spec.cidrs[{n}]", text, "must be in canonical form")


def service_cidr_update(obj: Object, before: Object) -> Causes:
    ours, theirs = ((o.get("spec") or {}).get("cidrs") for o in (obj, before))
    if ours != theirs and not (theirs and ours and len(theirs) == 1 and ours[:1] == theirs):
        yield meta.immutable("spec.cidrs", ours)


def ip_address(obj: Object) -> Causes:
    parent: Any = (obj.get("spec") or {}).get("parentRef")
    if not parent:
        yield required("spec.parentRef")
        return
    for name in ("resource", "name"):
        if not parent.get(name):
            yield required(f"spec.parentRef.{name}")
        else:
            yield from all_invalid(f"spec.parentRef.{name}", parent[name], fields.path_segment(parent[name]))
    if parent.get("group") and not re.fullmatch(r"[a-z0-9.-]+", parent["group"]):
        yield from all_invalid("spec.parentRef.group", parent["group"], fields.subdomain(parent["group"]))


def ip_address_update(obj: Object, before: Object) -> Causes:
    if (obj.get("spec") or {}).get("parentRef") != (before.get("spec") or {}).get("parentRef"):
        yield meta.immutable("spec.parentRef", (obj.get("spec") or {}).get("parentRef"))
