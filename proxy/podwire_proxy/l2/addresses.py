"""From the API's objects to the addresses that nodes answer for, and which nodes can serve each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from podwire_controlplane.api import loadbalancer as lb
from podwire_controlplane.api import meta

EXCLUDE = "node.kubernetes.io/exclude-from-external-load-balancers"
SERVICE_NAME = "kubernetes.io/service-name"


def is_local(service: meta.Object) -> bool:
    return (service.get("spec") or {}).get("externalTrafficPolicy") == "Local"


def nodes_of(slice_: meta.Object) -> tuple[str, frozenset[str]]:
    """(Service, nodes with a ready endpoint that does not terminate) of an EndpointSlice."""
    owner = meta.labels(slice_).get(SERVICE_NAME, "")
    found = set()
    for item in slice_.get("endpoints") or []:
        conditions = item.get("conditions") or {}
        if conditions.get("ready") is not False and not conditions.get("terminating") and item.get("nodeName"):
            found.add(str(item["nodeName"]))
    return f"{meta.namespace(slice_)}/{owner}" if owner else "", frozenset(found)


def usable(nodes: Iterable[meta.Object]) -> frozenset[str]:
    """Nodes that are ready, or say nothing of it, and are neither deleted nor excluded from load balancers."""
    found = set()
    for node in nodes:
        conditions = (node.get("status") or {}).get("conditions") or []
        ready = next((c.get("status") for c in conditions if c.get("type") == "Ready"), "True")
        if ready == "True" and not meta.deleting(node) and EXCLUDE not in meta.labels(node):
            found.add(meta.name(node))
    return frozenset(found)


@dataclass(slots=True)
class View:
    """What the API says, kept small: only Services with addresses, and only the nodes of their endpoints."""

    pools: lb.Pools = field(default_factory=lb.Pools)
    services: dict[str, meta.Object] = field(default_factory=dict)
    slices: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)

    def service(self, key: str, obj: meta.Object | None) -> bool:
        """True where it is or was a load balancer."""
        before = self.services.pop(key, None)
        if obj is not None and (obj.get("spec") or {}).get("type") == "LoadBalancer":
            spec = {name: obj["spec"].get(name) for name in ("type", "loadBalancerClass", "externalTrafficPolicy")}
            self.services[key] = {"metadata": {"name": meta.name(obj), "namespace": meta.namespace(obj)},
                                  "spec": spec, "status": obj.get("status") or {}}
        return before is not None or key in self.services

    def slice(self, key: str, obj: meta.Object | None) -> bool:
        """True where the nodes of a Service changed."""
        before, now = self.slices.pop(key, ("", frozenset())), nodes_of(obj) if obj is not None else ("", frozenset())
        if now[0]:
            self.slices[key] = now
        return before != now

    @property
    def wants_slices(self) -> bool:
        """Must EndpointSlices be watched? Only a Local traffic policy asks where endpoints are."""
        return any(is_local(service) for service in self.services.values())

    def addresses(self) -> Mapping[str, frozenset[str] | None]:
        """address -> the nodes that can serve it, None for all. Of two Services with one address the first by name counts."""
        places: dict[str, set[str]] = {}
        for owner, nodes in self.slices.values():
            places.setdefault(owner, set()).update(nodes)
        found: dict[str, frozenset[str] | None] = {}
        for ip, service in lb.announced((self.services[key] for key in sorted(self.services)), self.pools):
            found.setdefault(ip, frozenset(places.get(meta.key(service), ())) if is_local(service) else None)
        return found

    def holder(self, ip: str) -> str:
        """The Service that has the address, "" where none has."""
        return next((meta.key(s) for at, s in lb.announced(self.services.values(), self.pools) if at == ip), "")
