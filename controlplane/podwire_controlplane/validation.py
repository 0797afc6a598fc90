"""Validation of field values. Every error names the path of the field, the fault and a valid value."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any

from podwire_base.kube.errors import Cause
from podwire_base.kube.meta import Object, labels, name
from podwire_base.kube.registry import Resource
from podwire_base.kube.selectors import label_selector

_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
_SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_SERVICE_NAME = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?\Z")
_LABEL_KEY = re.compile(r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?\Z")
_LABEL_VALUE = re.compile(r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?\Z")
_DNS_POLICIES = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")
_PROTOCOLS = ("TCP", "UDP", "SCTP")
MAX_GRACE = 10**9  # seconds
_LABEL_NAMED = ("Namespace", "Service")
Causes = Iterator[Cause]


def _one_of(path: str, value: Any, allowed: tuple[str, ...]) -> Causes:
    if value not in allowed:
        yield Cause(path, f"{value!r} is not supported; one of {', '.join(allowed)}", "FieldValueNotSupported")


def _port(path: str, value: Any) -> Causes:
    if not isinstance(value, int) or not 1 <= value <= 65535:
        yield Cause(path, f"{value!r} is not a port; expected 1 to 65535")


def _address(path: str, value: Any) -> Causes:
    try:
        ipaddress.ip_address(str(value))
    except ValueError:
        yield Cause(path, f"{value!r} is not an IP address; expected such as 10.0.0.1 or fd00::1")


def _required(path: str, hint: str) -> Cause:
    return Cause(path, f"is required: {hint}", "FieldValueRequired")


def _metadata(resource: Resource, obj: Object) -> Causes:
    own = name(obj)
    if not own:
        yield _required("metadata.name", "set it, or metadata.generateName")
    elif resource.kind in _LABEL_NAMED:
        pattern = _SERVICE_NAME if resource.kind == "Service" else _LABEL
        if len(own) > 63 or not pattern.match(own):
            yield Cause(
                "metadata.name",
                f"{own!r} is not a DNS label; lower-case letters, digits and '-', at most 63"
                + (", starting with a letter" if resource.kind == "Service" else ""),
            )
    elif len(own) > 253 or not _SUBDOMAIN.match(own):
        yield Cause(
            "metadata.name", f"{own!r} is not a DNS subdomain; lower-case letters, digits, '-' and '.', at most 253"
        )
    for key, value in labels(obj).items():
        if not _LABEL_KEY.match(key) or len(key.rsplit("/", 1)[-1]) > 63:
            yield Cause(
                f"metadata.labels.{key}", "is not a label key; letters, digits, '-', '_', '.', and a DNS prefix/"
            )
        if len(value) > 63 or not _LABEL_VALUE.match(value):
            yield Cause(
                f"metadata.labels.{key}", f"{value!r} is not a label value; at most 63 letters, digits, '-', '_', '.'"
            )


def _service(obj: Object) -> Causes:
    spec = obj["spec"]
    kind = spec["type"]
    yield from _one_of("spec.type", kind, ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"))
    ports = spec.get("ports") or []
    if kind == "ExternalName":
        target = spec.get("externalName")
        if not target:
            yield _required("spec.externalName", "the DNS name that this Service stands for")
        elif not _SUBDOMAIN.match(target.rstrip(".").lower()):
            yield Cause("spec.externalName", f"{target!r} is not a DNS name")
        if spec.get("clusterIP"):
            yield Cause("spec.clusterIP", "an ExternalName Service has no address; leave it out")
    elif not ports and spec.get("clusterIP") != "None":
        yield _required("spec.ports", "at least one port, unless the Service is headless or ExternalName")
    yield from _cluster_ips(spec)
    if spec.get("clusterIP") == "None" and kind in ("NodePort", "LoadBalancer"):
        yield Cause("spec.clusterIP", f"a headless Service cannot be of type {kind}; leave it empty")
    yield from _service_ports(ports)
    yield from _node_ports(kind, ports)
    for n, address in enumerate(spec.get("externalIPs") or []):
        yield from _address(f"spec.externalIPs[{n}]", address)
    yield from _one_of("spec.sessionAffinity", spec["sessionAffinity"], ("None", "ClientIP"))
    for field in ("internalTrafficPolicy", "externalTrafficPolicy"):
        if field in spec:
            yield from _one_of(f"spec.{field}", spec[field], ("Cluster", "Local"))


def _cluster_ips(spec: Object) -> Causes:
    first, every = spec.get("clusterIP") or "", spec.get("clusterIPs") or []
    if first not in ("", "None"):
        yield from _address("spec.clusterIP", first)
    if every and every[0] != first:
        yield Cause("spec.clusterIPs[0]", f"{every[0]!r} differs from spec.clusterIP {first!r}; give one of the two")
    for n, address in enumerate(every[1:], 1):
        yield from _address(f"spec.clusterIPs[{n}]", address)


def _service_ports(ports: list[Object]) -> Causes:
    names: set[Any] = set()
    numbers: set[Any] = set()
    for n, port in enumerate(ports):
        path = f"spec.ports[{n}]"
        if "port" not in port:
            yield _required(f"{path}.port", "the port that clients use")
            continue
        yield from _port(f"{path}.port", port["port"])
        yield from _one_of(f"{path}.protocol", port["protocol"], _PROTOCOLS)
        if isinstance(port.get("targetPort"), int):
            yield from _port(f"{path}.targetPort", port["targetPort"])
        own = port.get("name") or ""
        if len(ports) > 1 and not own:
            yield _required(f"{path}.name", "every port has a name where there are several")
        if own and (len(own) > 63 or not _LABEL.match(own)):
            yield Cause(f"{path}.name", f"{own!r} is not a DNS label")
        for seen, value, field in ((names, own, "name"), (numbers, (port["protocol"], port["port"]), "port")):
            if value and value in seen:
                yield Cause(
                    f"{path}.{field}", f"{port.get(field)!r} is used twice in this Service", "FieldValueDuplicate"
                )
            seen.add(value)


def _node_ports(kind: str, ports: list[Object]) -> Causes:
    seen: set[Any] = set()
    for n, port in enumerate(ports):
        if not (wanted := port.get("nodePort")):
            continue
        path = f"spec.ports[{n}].nodePort"
        if kind not in ("NodePort", "LoadBalancer"):
            yield Cause(
                path, f"a Service of type {kind} has no node ports; leave it out, or use type NodePort or LoadBalancer"
            )
        elif (port["protocol"], wanted) in seen:
            yield Cause(path, f"{wanted}/{port['protocol']} is used twice in this Service", "FieldValueDuplicate")
        seen.add((port["protocol"], wanted))


def pod_spec(spec: Object, path: str) -> Causes:
    if not spec.get("containers"):
        yield _required(f"{path}.containers", "at least one container")
    names = set()
    for kind in ("initContainers", "containers"):
        for n, container in enumerate(spec.get(kind) or []):
            where = f"{path}.{kind}[{n}]"
            own = container.get("name") or ""
            if not own or len(own) > 63 or not _LABEL.match(own):
                reason = "FieldValueInvalid" if own else "FieldValueRequired"
                yield Cause(f"{where}.name", f"{own!r} is not a DNS label", reason)
            if own in names:
                yield Cause(f"{where}.name", f"{own!r} is used twice in this pod", "FieldValueDuplicate")
            names.add(own)
            if not container.get("image"):
                yield _required(f"{where}.image", "the image to run, such as podwire.io/echo")
            for m, port in enumerate(container.get("ports") or []):
                yield from _port(f"{where}.ports[{m}].containerPort", port.get("containerPort"))
                yield from _one_of(f"{where}.ports[{m}].protocol", port["protocol"], _PROTOCOLS)
    grace = spec["terminationGracePeriodSeconds"]
    if not 0 <= grace <= MAX_GRACE:
        yield Cause(f"{path}.terminationGracePeriodSeconds", f"{grace}: expected 0 to {MAX_GRACE}")
    yield from _one_of(f"{path}.restartPolicy", spec["restartPolicy"], ("Always", "OnFailure", "Never"))
    yield from _one_of(f"{path}.dnsPolicy", spec["dnsPolicy"], _DNS_POLICIES)


def _workload(obj: Object) -> Causes:
    spec = obj["spec"]
    if not spec.get("selector"):
        yield _required("spec.selector", "matchLabels that the template's labels satisfy")
    else:
        try:
            fits = label_selector(spec["selector"])(labels(spec["template"]))
        except (KeyError, TypeError):
            yield Cause("spec.selector", "matchExpressions need key, operator and values")
        else:
            for n, term in enumerate(spec["selector"].get("matchExpressions") or []):
                yield from _one_of(f"spec.selector.matchExpressions[{n}].operator", term["operator"], _OPERATORS)
            if not fits:
                yield Cause(
                    "spec.template.metadata.labels", "do not satisfy spec.selector; give the template those labels"
                )
    if not isinstance(spec["replicas"], int) or spec["replicas"] < 0:
        yield Cause("spec.replicas", f"{spec['replicas']!r}: expected 0 or more")
    yield from _strategy(spec.get("strategy") or {})
    yield from pod_spec(spec["template"]["spec"], "spec.template.spec")


def _strategy(strategy: Object) -> Causes:
    if "type" in strategy:
        yield from _one_of("spec.strategy.type", strategy["type"], ("RollingUpdate", "Recreate"))
    for field, value in (strategy.get("rollingUpdate") or {}).items():
        number = isinstance(value, int) and value >= 0
        if not number and not re.fullmatch(r"[0-9]{1,3}%", str(value)):
            yield Cause(
                f"spec.strategy.rollingUpdate.{field}", f"{value!r}: expected a number from 0, or a share such as 25%"
            )


def _endpoint_address(path: str, value: Any) -> Causes:
    bad = list(_address(path, value))
    yield from bad
    if not bad:
        address = ipaddress.ip_address(value)
        if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
            yield Cause(
                path, f"{value} cannot be an endpoint: loopback, link-local, multicast and unspecified are refused"
            )


def _endpoints(obj: Object) -> Causes:
    for n, subset in enumerate(obj.get("subsets") or []):
        for kind in ("addresses", "notReadyAddresses"):
            for m, address in enumerate(subset.get(kind) or []):
                yield from _endpoint_address(f"subsets[{n}].{kind}[{m}].ip", address.get("ip"))
        for m, port in enumerate(subset.get("ports") or []):
            yield from _port(f"subsets[{n}].ports[{m}].port", port.get("port"))
            yield from _one_of(f"subsets[{n}].ports[{m}].protocol", port["protocol"], _PROTOCOLS)


def _slice(obj: Object) -> Causes:
    kind = obj.get("addressType")
    yield from _one_of("addressType", kind, ("IPv4", "IPv6", "FQDN"))
    for n, endpoint in enumerate(obj.get("endpoints") or []):
        if not endpoint.get("addresses"):
            yield _required(f"endpoints[{n}].addresses", "one address")
        for m, address in enumerate(endpoint.get("addresses") or []):
            if kind in ("IPv4", "IPv6"):
                yield from _endpoint_address(f"endpoints[{n}].addresses[{m}]", address)
    for n, port in enumerate(obj.get("ports") or []):
        if port.get("port") is not None:
            yield from _port(f"ports[{n}].port", port["port"])


def _node(obj: Object) -> Causes:
    cidr = (obj.get("spec") or {}).get("podCIDR")
    if cidr:
        try:
            ipaddress.ip_network(cidr)
        except ValueError:
            yield Cause("spec.podCIDR", f"{cidr!r} is not a network; expected such as 10.244.1.0/24")


_RULES: dict[str, Callable[[Object], Causes]] = {
    "Service": _service,
    "Pod": lambda obj: pod_spec(obj["spec"], "spec"),
    "Deployment": _workload,
    "ReplicaSet": _workload,
    "Endpoints": _endpoints,
    "EndpointSlice": _slice,
    "Node": _node,
}


def check(resource: Resource, obj: Object) -> list[Cause]:
    """Return all errors of an object. The caller has set the defaults and checked the types of the fields."""
    return [*_metadata(resource, obj), *(_RULES[resource.kind](obj) if resource.kind in _RULES else ())]


_IMMUTABLE = {
    "Deployment": (("spec", "selector"),),
    "ReplicaSet": (("spec", "selector"),),
    "EndpointSlice": (("addressType",),),
    "Pod": (("spec", "dnsPolicy"), ("spec", "restartPolicy"), ("spec", "hostNetwork")),
}


def check_update(resource: Resource, before: Object, after: Object) -> list[Cause]:
    """Return an error for each immutable field that an update changes."""
    causes = []
    for path in _IMMUTABLE.get(resource.kind, ()):
        old, new = _dig(before, path), _dig(after, path)
        if old is not None and old != new:
            causes.append(Cause(".".join(path), "is immutable; delete the object and create it again"))
    if resource.kind == "Pod" and before["spec"].get("nodeName") and before["spec"] != after["spec"]:
        causes += list(_pod_changes(before["spec"], after["spec"]))
    if resource.kind == "Node" and _dig(before, ("spec", "podCIDR")) not in (None, _dig(after, ("spec", "podCIDR"))):
        causes.append(Cause("spec.podCIDR", "cannot change once it is set; delete the Node and let it register again"))
    if resource.kind == "Service" and _keeps_ip(before) and _keeps_ip(after):
        old, new = before["spec"].get("clusterIP"), after["spec"].get("clusterIP")
        if old and new and old != new:
            causes.append(Cause("spec.clusterIP", "is immutable; delete the Service and create it again"))
    return causes


def _keeps_ip(service: Object) -> bool:
    return bool(service["spec"].get("type") != "ExternalName")


def _pod_changes(before: Object, after: Object) -> Causes:
    """Yield an error for each field that cannot change after the pod is scheduled. Only images, tolerations and
    activeDeadlineSeconds can.
    """
    free = ("tolerations", "activeDeadlineSeconds", "containers", "initContainers")
    for field in sorted(before.keys() | after.keys()):
        if field not in free and before.get(field) != after.get(field):
            yield Cause(f"spec.{field}", "cannot change once the pod runs; delete the pod and create it again")
    for kind in ("containers", "initContainers"):
        old, new = (
            [{k: v for k, v in c.items() if k != "image"} for c in spec.get(kind) or []] for spec in (before, after)
        )
        if old != new:
            yield Cause(f"spec.{kind}", "only images can change once the pod runs; delete the pod and create it again")


def _dig(obj: Object, path: tuple[str, ...]) -> Any:
    value: Any = obj
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value
