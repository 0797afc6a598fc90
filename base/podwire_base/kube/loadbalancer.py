"""Decides which Services get load balancer addresses from podwire, and from which pools. Pure; the controller and the
nodes share this module.

The pools are in the ConfigMap kube-system/podwire-load-balancer. Changes of the ConfigMap take effect at once:

    data:
      addresses: 172.30.0.192/27, 192.0.2.10-192.0.2.19   # CIDRs, ranges, single addresses, of both families
      exclude: 172.30.0.193                               # optional: what of these is never given
      require-class: "false"                              # "true": only Services with loadBalancerClass podwire.io/l2

Addresses that a Node, a pod, a gateway or the API server has are never given either (occupied.py).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .meta import Object, annotations_of, name, namespace

CLASS = "podwire.io/l2"
CONFIG_NAMESPACE, CONFIG_NAME = "kube-system", "podwire-load-balancer"
WANTED = "podwire.io/load-balancer-ips"
GIVEN = "podwire.io/load-balancer-given"  # the addresses that podwire gave; with it, the finalizer is podwire's
FINALIZER = "service.kubernetes.io/load-balancer-cleanup"  # the one that cloud controllers use
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Range:
    """The addresses from `first` to `last`, both included, of one IP version."""

    text: str
    version: int
    first: int
    last: int

    def covers(self, number: int) -> bool:
        return self.first <= number <= self.last


@dataclass(frozen=True, slots=True)
class Pools:
    """The address pools. Without ranges, no address is allocated or announced. excluded: parts that are never given."""

    ranges: tuple[Range, ...] = ()
    require_class: bool = False
    excluded: tuple[Range, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __contains__(self, ip: str) -> bool:
        try:
            address = ipaddress.ip_address(ip)
        except ValueError:
            return False
        version, number = address.version, int(address)

        def inside(ranges: tuple[Range, ...]) -> bool:
            return any(r.version == version and r.covers(number) for r in ranges)

        return inside(self.ranges) and not inside(self.excluded)

    def meets(self, other: Range) -> bool:
        """Whether a pool and the range have an address in common."""
        return any(r.version == other.version and r.first <= other.last and other.first <= r.last for r in self.ranges)

    def free(self, version: int, used: Collection[str], taken: Iterable[Range] = ()) -> str:
        """Returns the first address of this IP version that is neither in `used` nor in a range of `taken`; "" if there
        is none.
        """
        skip = [r for r in (*taken, *self.excluded) if r.version == version]
        kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
        for pool in self.ranges:
            number = pool.first if pool.version == version else pool.last + 1
            while number <= pool.last:
                if inside := next((r for r in skip if r.covers(number)), None):
                    number = inside.last + 1
                elif (ip := str(kind(number))) not in used:
                    return ip
                else:
                    number += 1
        return ""

    def names(self, version: int) -> str:
        return ", ".join(r.text for r in self.ranges if r.version == version)


def _range(text: str) -> Range:
    first, dash, last = text.partition("-")
    if dash:
        low, high = ipaddress.ip_address(first.strip()), ipaddress.ip_address(last.strip())
        if low.version != high.version or int(low) > int(high):
            raise ValueError("the second address must not be below the first")
        return Range(text, low.version, int(low), int(high))
    net = ipaddress.ip_network(text)
    return Range(text, net.version, int(net[0]), int(net[-1]))


def _ranges(field: str, text: Any, problems: list[str]) -> tuple[Range, ...]:
    ranges = []
    lines = [line.partition("#")[0] for line in str(text or "").splitlines()]
    for one in filter(None, re.split(r"[,\s]+", "-".join(part.strip() for part in "\n".join(lines).split("-")))):
        try:
            ranges.append(_range(one))
        except ValueError as err:
            problems.append(
                f"data.{field}: {one!r} is not a CIDR, range or address such as 192.0.2.16/28 or "
                f"192.0.2.10-192.0.2.19: {err}; left out"
            )
    return tuple(ranges)


def parse(config: Object | None) -> tuple[Pools, list[str]]:
    """Parse the ConfigMap (None: it does not exist). Returns the pools, and a text for each invalid entry."""
    data: dict[str, Any] = (config or {}).get("data") or {}
    problems: list[str] = []
    ranges, excluded = (_ranges(name, data.get(name), problems) for name in ("addresses", "exclude"))
    strict = str(data.get("require-class") or "false")
    if strict not in ("true", "false"):
        problems.append(f"data.require-class: {strict!r} is neither 'true' nor 'false'; 'false' is used")
    return Pools(ranges, strict == "true", excluded), problems


def is_config(obj: Object) -> bool:
    return (namespace(obj), name(obj)) == (CONFIG_NAMESPACE, CONFIG_NAME)


def ours(service: Object, pools: Pools) -> bool:
    """Whether podwire is the load balancer of this Service. For a Service without loadBalancerClass it is, unless the
    ConfigMap sets require-class.
    """
    spec = service.get("spec") or {}
    wanted = spec.get("loadBalancerClass") or ""
    return spec.get("type") == "LoadBalancer" and (wanted == CLASS or (not wanted and not pools.require_class))


def ingress(service: Object) -> tuple[str, ...]:
    """Returns the addresses in the Service's status. Raises an exception for malformed entries."""
    found = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    return tuple(str(item["ip"]) for item in found if item.get("ip"))


def readable(service: Object) -> list[Object]:
    """Returns the entries of status.loadBalancer.ingress. Malformed entries are skipped."""
    found: Any = service
    for field in ("status", "loadBalancer", "ingress"):
        found = found.get(field) if isinstance(found, dict) else None
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def wanted(service: Object) -> tuple[str, ...]:
    """Returns the addresses that the Service requests with the annotation podwire.io/load-balancer-ips, or else with
    spec.loadBalancerIP.
    """
    text = annotations_of(service).get(WANTED) or (service.get("spec") or {}).get("loadBalancerIP") or ""
    return tuple(dict.fromkeys(part.strip() for part in str(text).split(",") if part.strip()))


def marked(service: Object) -> bool:
    """Whether podwire gave this Service an address and set the finalizer."""
    return GIVEN in annotations_of(service)


def _metadata(service: Object, given: str | None, finalizers: list[str]) -> Object:
    """Return a merge patch of the metadata. It replaces the whole list, so it is for the version that was read."""
    return {
        "resourceVersion": str(service["metadata"].get("resourceVersion") or ""),
        "annotations": {GIVEN: given},
        "finalizers": finalizers or None,
    }


def mark(service: Object, ips: Iterable[str]) -> Object:
    """Return a merge patch of the metadata of a Service that gets these addresses; {} if none is needed. A finalizer
    that is there without podwire's annotation is another controller's, and stays its own.
    """
    finalizers, given = list(service["metadata"].get("finalizers") or []), ",".join(ips)
    if marked(service):
        return {} if annotations_of(service)[GIVEN] == given else {"annotations": {GIVEN: given}}
    return {} if FINALIZER in finalizers else _metadata(service, given, [*finalizers, FINALIZER])


def unmark(service: Object) -> Object:
    """Return a merge patch of the metadata that takes podwire's finalizer off; {} if it is not podwire's."""
    if not marked(service):
        return {}
    return _metadata(service, None, [f for f in service["metadata"].get("finalizers") or [] if f != FINALIZER])


def announced(services: Iterable[Object], pools: Pools) -> Iterator[tuple[str, Object]]:
    """Yields (address, Service) for each address for which a node must answer ARP or Neighbor Discovery, unless
    somebody has the address (occupied.py).
    """
    for service in services:
        if pools and ours(service, pools):
            for ip in ingress(service):
                if ip in pools:
                    yield str(ipaddress.ip_address(ip)), service
