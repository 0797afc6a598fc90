"""Names of the cluster's zone as a resolver in a pod finds them: search path, Services, endpoints, pods. Pure.

Source: Kubernetes DNS-Based Service Discovery 1.1, resolv.conf(5).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from podwire_base.kube.meta import Object, key, namespace
from podwire_base.numerals import decimal

from .catalogue import Catalogue, endpoints

NDOTS = 5  # of a pod with dnsPolicy ClusterFirst
MOST_NDOTS = 15  # resolv.conf(5)


@dataclass(frozen=True, slots=True)
class Found:
    """What a name is. service: a Service by its own name. ips: the addresses of single endpoints."""

    words: str
    service: Object | None = None
    ips: tuple[str, ...] = ()


def inside(full: str, domain: str) -> bool:
    return full == domain or full.endswith("." + domain)


def search(host: str, pod: Object | None, domain: str) -> list[str]:
    """Returns the names that a resolver in the pod asks for, in their order, without final dots.

    A name with a final dot is asked as it is. A name with fewer dots than ndots is asked with each domain of the search
    path first; any other name is asked as it is first.
    """
    if host.endswith("."):
        return [host.rstrip(".").lower()]
    host = host.lower()
    spec = (pod or {}).get("spec") or {}
    own, policy = spec.get("dnsConfig") or {}, spec.get("dnsPolicy") or "ClusterFirst"
    if spec.get("hostNetwork") and policy == "ClusterFirst":
        policy = "Default"
    space = namespace(pod) if pod else "default"
    paths = [f"{space}.svc.{domain}", f"svc.{domain}", domain] if policy.startswith("ClusterFirst") else []
    paths += [str(one).strip(".").lower() for one in own.get("searches") or []]
    ndots = NDOTS if policy.startswith("ClusterFirst") else 1
    for option in own.get("options") or []:
        if option.get("name") == "ndots" and str(option.get("value") or "").isdecimal():
            number = decimal(str(option["value"]), MOST_NDOTS)
            ndots = MOST_NDOTS if number is None else number
    longer = [f"{host}.{path}" for path in dict.fromkeys(paths) if path]
    return [host, *longer] if host.count(".") >= ndots else [*longer, host]


def asks_the_cluster(pod: Object) -> bool:
    """Whether the pod's resolver is the cluster DNS."""
    spec = pod.get("spec") or {}
    policy = spec.get("dnsPolicy") or "ClusterFirst"
    return policy == "ClusterFirstWithHostNet" or (policy == "ClusterFirst" and not spec.get("hostNetwork"))


def meant_inside(host: str, catalogue: Catalogue) -> bool:
    """Whether a name that is not in the cluster's zone was meant for it: one label, or one that ends in svc, pod or a
    namespace.
    """
    last = host.rpartition(".")[2]
    return "." not in host or last in ("svc", "pod") or any(namespace(one) == last for one in catalogue.of("Service"))


def best(host: str, told: list[tuple[str, str]]) -> str:
    """Returns the reason that says most: of the name itself, else of the one that came nearest."""
    for full, why in told:
        if full == host:
            own = why
            break
    else:
        own = ""
    ranks = ("has no endpoint", "is a name of SRV records", "there is no Service", "is not an address")
    reasons = [why for _, why in told]
    if own and any(rank in own for rank in ranks):
        return own
    return next((why for rank in ranks for why in reasons if rank in why), own or next(iter(reasons), "no object"))


def elsewhere(host: str, catalogue: Catalogue, pod: Object | None) -> str:
    """Returns a hint at a Service of this name in another namespace."""
    spaces = [namespace(s) for s in catalogue.of("Service") if s["metadata"]["name"] == host]
    if "." in host or not spaces or (pod and namespace(pod) in spaces):
        return ""
    return f"; Service {spaces[0]}/{host} is there: ask for {host}.{spaces[0]}"


def look(full: str, catalogue: Catalogue) -> Found | str:
    """Returns what a name of the zone is, or why it is nothing."""
    labels = full.removesuffix(catalogue.domain).rstrip(".").split(".")
    if labels[-1] == "pod" and len(labels) == 3:
        ip = _dashed(labels[0])
        return Found(f"the pod with the address {ip}", None, (ip,)) if ip else f"{labels[0]} is not an address"
    if labels[-1] != "svc" or len(labels) < 3:
        return "no object gives this name"
    own, space = labels[-3], labels[-2]
    service = catalogue.find("Service", space, own)
    if service is None:
        if catalogue.of("Service") and not any(namespace(one) == space for one in catalogue.of("Service")):
            return f"there is no Service {space}/{own}, nor any other in namespace {space}"
        return f"there is no Service {space}/{own}"
    if len(labels) == 3:
        return Found(f"Service {key(service)}", service)
    if len(labels) == 4:
        return _endpoint(service, labels[0], catalogue)
    return f"Service {key(service)} has only addresses here; {'.'.join(labels[:-3])} is a name of SRV records"


def _endpoint(service: Object, host: str, catalogue: Catalogue) -> Found | str:
    ips = [
        ip
        for _, endpoint, ip in endpoints(catalogue.slices(key(service)))
        if endpoint.get("hostname") == host or _dashed(host) == ip
    ]
    if not ips:
        return f"Service {key(service)} has no endpoint with the hostname {host}"
    return Found(f"endpoint {host} of Service {key(service)}", None, tuple(dict.fromkeys(ips)))


def _dashed(text: str) -> str:
    """Returns the address of "10-244-0-4" or "fd00--4", "" if it is none."""
    for separator in (".", ":"):
        try:
            return str(ipaddress.ip_address(text.replace("-", separator)))
        except ValueError:
            continue
    return ""
