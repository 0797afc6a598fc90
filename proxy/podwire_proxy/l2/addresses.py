"""Computes the load balancer addresses, and the nodes that can serve each address, from API objects. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from podwire_base.kube import loadbalancer as lb
from podwire_base.kube import meta
from podwire_base.kube.occupied import Occupied, Parts, occupied, of_node, of_slice

EXCLUDE = "node.kubernetes.io/exclude-from-external-load-balancers"
SERVICE_NAME = "kubernetes.io/service-name"


def is_local(service: meta.Object) -> bool:
    return (service.get("spec") or {}).get("externalTrafficPolicy") == "Local"


def nodes_of(slice_: meta.Object) -> tuple[str, frozenset[str]]:
    """Returns (Service, nodes with a ready, non-terminating endpoint) of an EndpointSlice."""
    owner = meta.labels(slice_).get(SERVICE_NAME, "")
    found = set()
    for item in slice_.get("endpoints") or []:
        conditions = item.get("conditions") or {}
        if conditions.get("ready") is not False and not conditions.get("terminating") and item.get("nodeName"):
            found.add(str(item["nodeName"]))
    return f"{meta.namespace(slice_)}/{owner}" if owner else "", frozenset(found)


def usable(nodes: Iterable[meta.Object]) -> frozenset[str]:
    """Returns the usable nodes: ready or without Ready condition, not deleted, not excluded from load balancers."""
    found = set()
    for node in nodes:
        conditions = (node.get("status") or {}).get("conditions") or []
        ready = next((c.get("status") for c in conditions if c.get("type") == "Ready"), "True")
        if ready == "True" and not meta.deleting(node) and EXCLUDE not in meta.labels(node):
            found.add(meta.name(node))
    return frozenset(found)


@dataclass(slots=True)
class Owners:
    """Learns which addresses machines have. servers: the API server's addresses that this role uses. changed: since the
    last `occupied`.
    """

    servers: tuple[str, ...] = ()
    changed: bool = True
    _nodes: dict[str, Parts] = field(default_factory=dict)
    _api: dict[str, tuple[str, ...]] = field(default_factory=dict)  # slice -> addresses
    _gateways: tuple[str, ...] = ()

    def node(self, name: str, obj: meta.Object | None) -> None:
        """`obj` None: deleted."""
        now = of_node(obj) if obj is not None else None
        self.changed = self.changed or now != self._nodes.get(name)
        self._nodes.pop(name, None)
        if now is not None:
            self._nodes[name] = now

    def api_slice(self, key: str, obj: meta.Object | None) -> None:
        """`obj` None: deleted."""
        self.changed = True
        self._api.pop(key, None)
        if obj is not None:
            self._api[key] = of_slice(obj)

    def gateways(self, found: tuple[str, ...]) -> None:
        self.changed = self.changed or found != self._gateways
        self._gateways = found

    def occupied(self, pools: lb.Pools) -> Occupied:
        """Returns the addresses of the pools that a machine has."""
        self.changed = False
        api = {*self.servers, *(ip for ips in self._api.values() for ip in ips)}
        return occupied(self._nodes, (), api, self._gateways).within(pools)


def _age(service: meta.Object) -> dict[str, str]:
    """Returns what decides between two Services (meta.seniority)."""
    return {field: str(service["metadata"].get(field) or "") for field in ("creationTimestamp", "uid")}


def _serving_all(elder: frozenset[str] | None, younger: frozenset[str] | None) -> frozenset[str] | None:
    """Returns the nodes that can serve both; without such nodes those of the elder, if it has any. None: all nodes."""
    if not elder:  # every node, or none
        return elder if elder is None and not younger else younger
    return (elder & younger or elder) if younger else elder


@dataclass(slots=True)
class View:
    """The needed part of the API's state: the Services with addresses, and the nodes of their endpoints."""

    pools: lb.Pools = field(default_factory=lb.Pools)
    occupied: Occupied = field(default_factory=Occupied)
    services: dict[str, meta.Object] = field(default_factory=dict)
    slices: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)
    _places: dict[str, dict[str, frozenset[str]]] = field(default_factory=dict)  # Service -> slice -> nodes
    # the pools, the occupied addresses and the result of the last call
    _found: tuple[lb.Pools, Occupied, Mapping[str, frozenset[str] | None]] | None = None

    def service(self, key: str, obj: meta.Object | None) -> bool:
        """Records a Service. Returns whether data that load balancers depend on changed.

        Raises for a malformed object and keeps the previous state, because each beat reads the stored data.
        """
        now = None
        if obj is not None and (obj.get("spec") or {}).get("type") == "LoadBalancer":
            spec = {name: obj["spec"].get(name) for name in ("type", "loadBalancerClass", "externalTrafficPolicy")}
            now = {
                "metadata": {"name": meta.name(obj), "namespace": meta.namespace(obj), **_age(obj)},
                "spec": spec,
                "status": {"loadBalancer": (obj.get("status") or {}).get("loadBalancer")},
            }
            lb.ingress(now)
        before = self.services.pop(key, None)
        if now is not None:
            self.services[key] = now
        return self._changed(before != now)

    def slice(self, key: str, obj: meta.Object | None) -> bool:
        """Records a slice. Returns whether this changed the nodes of a load balancer with a Local traffic policy.

        The slices of all other Services also arrive here and are far more numerous, so they must cost very little.
        """
        now = nodes_of(obj) if obj is not None else ("", frozenset[str]())
        before = self.slices.pop(key, ("", frozenset[str]()))
        if now[0]:
            self.slices[key] = now
        if before == now:
            return False
        if before[0]:
            self._places[before[0]].pop(key, None)
            if not self._places[before[0]]:
                del self._places[before[0]]
        if now[0]:
            self._places.setdefault(now[0], {})[key] = now[1]
        return self._changed(any(is_local(self.services.get(owner, {})) for owner in (before[0], now[0])))

    def _changed(self, really: bool) -> bool:
        if really:
            self._found = None
        return really

    @property
    def wants_slices(self) -> bool:
        """Whether the role must watch EndpointSlices. Only a Local traffic policy depends on endpoints' nodes."""
        return any(is_local(service) for service in self.services.values())

    def addresses(self) -> Mapping[str, frozenset[str] | None]:
        """Returns address -> the nodes that can serve the address; None: all nodes.

        Services may share an address on different ports: it is for the nodes that can serve all of them, or if there is
        no such node, for those of the elder. An address that a machine has is not served.
        """
        if self._found is None or self._found[0] is not self.pools or self._found[1] is not self.occupied:
            found: dict[str, frozenset[str] | None] = {}
            for ip, service in lb.announced(sorted(self.services.values(), key=meta.seniority), self.pools):
                if self.occupied.owner(ip):
                    continue
                here = self._places.get(meta.key(service), {}).values() if is_local(service) else ()
                nodes = frozenset[str]().union(*here) if is_local(service) else None
                found[ip] = _serving_all(found[ip], nodes) if ip in found else nodes
            self._found = self.pools, self.occupied, found
        return self._found[2]

    def conflicts(self) -> list[str]:
        """Returns the Services' addresses that are not served because somebody has them: "192.0.2.11 (Node n1)"."""
        given = dict.fromkeys(ip for ip, _ in lb.announced(self.services.values(), self.pools))
        return [f"{ip} ({owner})" for ip in given if (owner := self.occupied.owner(ip))]

    def holder(self, ip: str) -> str:
        """Returns the Service that has the address; "" if no Service has it."""
        services = sorted(self.services.values(), key=meta.seniority)
        return next((meta.key(s) for at, s in lb.announced(services, self.pools) if at == ip), "")
