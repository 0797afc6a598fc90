"""Converts Kubernetes objects to the model. Pure. The functions skip and report each unusable part, by field.

ExternalName and headless Services have no frontends. The label service.kubernetes.io/service-proxy-name gives a Service
to another proxy, and service.kubernetes.io/headless excludes an EndpointSlice. Condition defaults (ready and serving
true, terminating false) are the EndpointSlice API's, discovery.k8s.io/v1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from podwire_base.kube import meta
from podwire_base.kube.shape import ANY

from .model import PROTOCOLS, Endpoint, Policy, PortName, Protocol, ServicePort, is_v6, normal_cidr, normal_ip

PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
RESET_ANNOTATION = "podwire.io/reset-on-endpoint-removal"
DESTROY_ANNOTATION = "podwire.io/destroy-tcp"  # the same wish, in the words of those who use socket hooks
AFFINITY_SECONDS, DAY = 10800, 86400  # sessionAffinityConfig.clientIP.timeoutSeconds: default and maximum of the API
NOBODY = ("255.255.255.255/32", f"{'ffff:' * 7}ffff/128")  # source ranges that match no packet
_METADATA = {"labels": dict, "annotations": dict}
# This module reads these fields without a type check; it checks addresses, numbers and names one by one. The tracker
# compares an object with this shape only after a failure, so that a valid object costs no extra check.
SERVICE_SHAPE = {
    "metadata": _METADATA,
    "spec": {
        "clusterIP": str,
        "clusterIPs": [str],
        "ipFamilies": [str],
        "externalIPs": [ANY],
        "loadBalancerSourceRanges": [ANY],
        "sessionAffinityConfig": {"clientIP": dict},
        "ports": [{"protocol": str}],
    },
    "status": {"loadBalancer": {"ingress": [dict]}},
}
SLICE_SHAPE = {
    "metadata": _METADATA,
    "endpoints": [
        {
            "addresses": [ANY],
            "nodeName": str,
            "conditions": dict,
            "hints": {"forZones": [dict], "forNodes": [dict]},
        }
    ],
    "ports": [{"protocol": str}],
}


@dataclass(slots=True)
class Problems:
    """Findings about one object: "spec.ports[1].port: ...". The caller logs them with the object's key."""

    found: list[str] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        self.found.append(f"{where}: {what}")

    def address(self, where: str, text: Any) -> str:
        """Returns the canonical address; adds a problem and returns "" if `text` is not an address."""
        try:
            return normal_ip(str(text))
        except ValueError:
            self.add(where, f"{text!r} is not an IP address; left out")
            return ""

    def addresses(self, where: str, items: Iterable[Any]) -> tuple[str, ...]:
        found = (self.address(f"{where}[{index}]", item) for index, item in enumerate(items))
        return tuple(dict.fromkeys(ip for ip in found if ip))

    def ranges(self, where: str, items: Iterable[Any]) -> tuple[str, ...]:
        """Returns canonical CIDRs; no CIDR of a family if one CIDR matches all its addresses."""
        found: dict[str, None] = {}
        for index, item in enumerate(items):
            try:
                found[normal_cidr(str(item))] = None
            except ValueError:
                self.add(f"{where}[{index}]", f"{item!r} is not a CIDR such as 203.0.113.0/24; left out")
        for everyone, v6 in (("0.0.0.0/0", False), ("::/0", True)):
            if everyone in found:
                found = {cidr: None for cidr in found if is_v6(cidr) != v6}
        return tuple(found)

    def number(self, where: str, value: Any) -> int:
        """Returns a port from 1 to 65535; adds a problem and returns 0 for any other value."""
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536:
            return value
        self.add(where, f"{value!r} is not a port number (1-65535); left out")
        return 0


def cluster_ips(service: meta.Object) -> tuple[str, ...]:
    """Returns the ClusterIPs of a Service object; () for headless and ExternalName Services."""
    spec = service.get("spec") or {}
    first = spec.get("clusterIP") or ""
    if spec.get("type") == "ExternalName" or not first or first == "None":
        return ()
    return tuple(dict.fromkeys([first, *(spec.get("clusterIPs") or [])]))


def _of_families(ips: tuple[str, ...], spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the ClusterIPs of the families in spec.ipFamilies; all of them if the field is absent.

    The API server keeps both fields alike. Where they differ, as in kube-proxy, ipFamilies decides.
    """
    families = spec.get("ipFamilies") or ("IPv4", "IPv6")
    return tuple(ip for ip in ips if ("IPv6" if is_v6(ip) else "IPv4") in families)


def _load_balancer_ips(service: meta.Object, problems: Problems) -> tuple[str, ...]:
    """Returns the ingress addresses whose packets the node itself translates.

    With ipMode Proxy, the packet must leave the node. Host names are not addresses.
    """
    status = service.get("status") or {}
    ingress = (status.get("loadBalancer") or {}).get("ingress") or []
    usable = [item["ip"] for item in ingress if item.get("ip") and item.get("ipMode", "VIP") == "VIP"]
    return problems.addresses("status.loadBalancer.ingress", usable)


def _source_ranges(found: Any, problems: Problems) -> tuple[str, ...]:
    """Returns the valid source ranges. If all ranges are invalid, returns ranges that match no packet."""
    if not found:
        return ()
    before = len(problems.found)
    usable = problems.ranges("spec.loadBalancerSourceRanges", found)
    if len(problems.found) - before < len(found):
        return usable
    problems.add("spec.loadBalancerSourceRanges", "none of them can be used; no source is allowed")
    return NOBODY


def _open_families(found: Any, balancer: tuple[str, ...], problems: Problems) -> None:
    """Reports the addresses that nothing restricts, because all ranges are of the other family (as in kube-proxy)."""
    named = {":" in str(item) for item in found or ()} if balancer else set()
    for ip in balancer if named else ():
        if is_v6(ip) not in named:
            family = "IPv6" if is_v6(ip) else "IPv4"
            problems.add("spec.loadBalancerSourceRanges", f"has no range of {family}: every source may reach {ip}")


def _foreign_families(ips: tuple[str, ...], found: Mapping[str, tuple[str, ...]], problems: Problems) -> None:
    """Reports the addresses of a family that the Service does not have; dataplane.contribute serves none of them."""
    families = {is_v6(ip) for ip in ips}
    for where, addresses in found.items():
        for ip in addresses:
            if is_v6(ip) not in families:
                problems.add(
                    where, f"{ip} is of an IP family that the Service does not have (spec.ipFamilies); not served"
                )


def _affinity(spec: Mapping[str, Any], problems: Problems) -> int:
    if spec.get("sessionAffinity") != "ClientIP":
        return 0
    value = ((spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}).get("timeoutSeconds") or AFFINITY_SECONDS
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= DAY:
        return value
    problems.add(
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        f"{value!r} is not from 1 to {DAY}; taken as {AFFINITY_SECONDS}",
    )
    return AFFINITY_SECONDS


def _reset(service: meta.Object, problems: Problems) -> bool:
    annotations, wanted = meta.annotations_of(service), False
    for name in (RESET_ANNOTATION, DESTROY_ANNOTATION):
        value = annotations.get(name, "false")
        if value not in ("true", "false"):
            problems.add(f"metadata.annotations[{name}]", f"{value!r} is neither 'true' nor 'false'; taken as 'false'")
        wanted = wanted or value == "true"
    return wanted


def _policy(value: Any) -> Policy:
    return "Local" if value == "Local" else "Cluster"


def service_ports(service: meta.Object) -> tuple[tuple[ServicePort, ...], list[str]]:
    """Returns the Service's ports and the problems. The ports are () if this proxy does not handle the Service."""
    problems = Problems()
    if PROXY_NAME_LABEL in meta.labels(service):
        return (), []
    spec = service.get("spec") or {}
    ips = _of_families(problems.addresses("spec.clusterIPs", cluster_ips(service)), spec)
    if not ips:
        return (), problems.found
    balancer = _load_balancer_ips(service, problems) if spec.get("type") == "LoadBalancer" else ()
    external = problems.addresses("spec.externalIPs", spec.get("externalIPs") or [])
    _foreign_families(ips, {"spec.externalIPs": external, "status.loadBalancer.ingress": balancer}, problems)
    ranges = _source_ranges(spec.get("loadBalancerSourceRanges"), problems) if balancer else ()
    _open_families(spec.get("loadBalancerSourceRanges"), balancer, problems)
    asked = spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"
    check = (
        problems.number("spec.healthCheckNodePort", spec["healthCheckNodePort"])
        if (asked and spec.get("healthCheckNodePort"))
        else 0
    )
    reset, affinity = _reset(service, problems), _affinity(spec, problems)
    ports: dict[PortName, ServicePort] = {}
    for index, port in enumerate(spec.get("ports") or []):
        where = f"spec.ports[{index}]"
        number = problems.number(f"{where}.port", port.get("port"))
        protocol: Protocol = port.get("protocol") or "TCP"
        if protocol not in PROTOCOLS:
            problems.add(f"{where}.protocol", f"{protocol!r} is none of TCP, UDP, SCTP; left out")
            continue
        node_port = problems.number(f"{where}.nodePort", port["nodePort"]) if port.get("nodePort") else 0
        made = ServicePort(
            meta.key(service),
            str(port.get("name") or ""),
            protocol,
            number,
            ips,
            node_port=node_port,
            external_ips=external,
            load_balancer_ips=balancer,
            internal_policy=_policy(spec.get("internalTrafficPolicy")),
            external_policy=_policy(spec.get("externalTrafficPolicy")),
            affinity_seconds=affinity,
            source_ranges=ranges,
            health_check_port=check,
            reset=reset and protocol == "TCP",
            created=str(service["metadata"].get("creationTimestamp") or ""),
            uid=str(service["metadata"].get("uid") or ""),
        )
        if not number:
            continue
        if made.port_name in ports:
            problems.add(where, f"port {made.name!r} {protocol} is there twice; the first one counts")
            continue
        ports[made.port_name] = made
    return tuple(ports.values()), problems.found


@dataclass(frozen=True, slots=True)
class SliceInfo:
    """The content of one EndpointSlice. service: "namespace/name"; "" without a Service."""

    service: str
    endpoints: Mapping[PortName, tuple[Endpoint, ...]]


def slice_info(obj: meta.Object) -> tuple[SliceInfo, list[str]]:
    """Returns the slice's endpoints by port, and the problems. FQDN and headless slices give no endpoints."""
    problems = Problems()
    owner = meta.labels(obj).get(SERVICE_NAME_LABEL, "")
    service = f"{meta.namespace(obj)}/{owner}" if owner else ""
    if HEADLESS_LABEL in meta.labels(obj):
        return SliceInfo(service, {}), []
    if obj.get("addressType") not in ("IPv4", "IPv6"):
        problems.add("addressType", f"{obj.get('addressType')!r} is neither 'IPv4' nor 'IPv6'; left out")
        return SliceInfo(service, {}), problems.found
    version: Literal["IPv4", "IPv6"] = obj["addressType"]
    templates = [
        made
        for index, item in enumerate(obj.get("endpoints") or [])
        if (made := _endpoint(item, f"endpoints[{index}]", version, problems))
    ]
    out: dict[PortName, tuple[Endpoint, ...]] = {}
    for index, port in enumerate(obj.get("ports") or []):
        where = f"ports[{index}]"
        if port.get("name") is None or not port.get("port"):
            # discovery.k8s.io/v1: no port means "all ports", which a proxy cannot use; a name is always set by the API
            problems.add(where, "has no name or no port number; left out")
            continue
        number = problems.number(f"{where}.port", port["port"])
        protocol: Protocol = port.get("protocol") or "TCP"
        if number and protocol in PROTOCOLS:
            out[PortName(str(port["name"]), protocol)] = tuple(Endpoint(e[0], number, *e[2:]) for e in templates)
    return SliceInfo(service, out), problems.found


def _condition(conditions: Mapping[str, Any], name: str, default: bool) -> bool:
    value = conditions.get(name)
    return default if value is None else bool(value)


def _endpoint(item: Mapping[str, Any], where: str, version: str, problems: Problems) -> Endpoint | None:
    addresses = item.get("addresses") or []
    if not addresses:
        problems.add(f"{where}.addresses", "is empty; left out")
        return None
    ip = problems.address(f"{where}.addresses[0]", addresses[0])
    if not ip:
        return None
    if (":" in ip) != (version == "IPv6"):
        problems.add(f"{where}.addresses[0]", f"{ip} is not an {version} address; left out")
        return None
    conditions, hints = item.get("conditions"), item.get("hints")
    if not conditions and not hints:
        return Endpoint(ip, 0, item.get("nodeName") or "")
    conditions, hints = conditions or {}, hints or {}
    return Endpoint(
        ip,
        0,
        str(item.get("nodeName") or ""),
        ready=_condition(conditions, "ready", True),
        serving=_condition(conditions, "serving", True),
        terminating=_condition(conditions, "terminating", False),
        zone_hints=tuple(str(zone["name"]) for zone in hints.get("forZones") or [] if zone.get("name")),
        node_hints=tuple(str(node["name"]) for node in hints.get("forNodes") or [] if node.get("name")),
    )
