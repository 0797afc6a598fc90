"""Applies all policy: turns Service ports and endpoints into frontends that balance, reject or drop.

The kinds of sources are those of the masquerade matrix: a *pod* (source inside NodeInfo.pod_cidrs), this *node* (a
local address), or *outside*. A frontend defines the treatment of each kind of source, and the masquerade:

| frontend                            | pod    | node   | outside | masquerade                         |
|-------------------------------------|--------|--------|---------|------------------------------------|
| ClusterIP                           | internal | internal | internal | off-cluster: node and outside      |
| NodePort, externalIP, LB; eTP Cluster | internal | internal | internal | always |
| NodePort, externalIP, LB; eTP Local | internal | internal | external | node: only the node's own traffic  |

With NodeInfo.localhost, NodePorts are on 127.0.0.1 too. A packet from the wire with a loopback address is then dropped.

`internal` is the cluster set of endpoints (the local set for a ClusterIP with internalTrafficPolicy Local); `external`
is the local set. Without a usable endpoint in the cluster, the result is NO_ENDPOINTS, a refusal; for an externalIP
that is a node's address it is PASS (externalips.py). Under a Local policy, with usable endpoints only on other nodes,
the result is NO_LOCAL_ENDPOINTS, a drop. A packet whose chosen endpoint is its own source is always masqueraded
(hairpin). Without pod_cidrs no source counts as a pod, and a ClusterIP's packets keep their source.

A load balancer's address with source ranges drops every other source (NOT_IN_RANGE), pods and the node included,
before anything else. Session affinity remembers each client's endpoint by Service port, so it holds across the port's
frontends as long as they draw from the same set of endpoints (cluster or local).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from . import externalips
from .model import LOCALHOST, Destination, Endpoint, NodeInfo, PortName, Protocol, ServicePort, covers, is_v6
from .topology import Choice, answers, choose, merge
from .verdict import NO_ENDPOINTS, NO_LOCAL_ENDPOINTS, PASS, Verdict


class Key(NamedTuple):
    """The destination of a packet for a frontend."""

    ip: str
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class Sticky:
    """Session affinity ClientIP.

    port: the first ClusterIP and port, which identify the Service port for all its frontends. local: the choice is
    among the local set of endpoints. seconds: the time after a client's last new connection at which affinity ends.
    """

    port: Key
    local: bool
    seconds: int


@dataclass(frozen=True, slots=True)
class Balance:
    """Uniform random choice for each new connection. destinations: at least one, sorted, distinct.

    sticky: a remembered client gets its previous endpoint while `destinations` has this endpoint.
    """

    destinations: tuple[Destination, ...]
    sticky: Sticky | None = None


# A frontend's action on a packet. The verdicts are NO_ENDPOINTS, NO_LOCAL_ENDPOINTS and PASS.
Treatment = Balance | Verdict
Kind = Literal["ClusterIP", "NodePort", "ExternalIP", "LoadBalancer"]
Masquerading = Literal["off-cluster", "always", "node"]


@dataclass(frozen=True, slots=True)
class Frontend:
    """One address and port of a Service, and the treatment of its packets.

    external: the treatment for sources outside the cluster; None if it equals `internal`. sources: CIDRs of the allowed
    sources; (): all sources. alive: only for a Service that requests a reset of flows to removed endpoints: all its
    endpoints, in any condition. None: flows end by themselves. serving: only for UDP: the endpoints that still answer
    the flows that they have, in addition to `destinations`, which get the new flows.
    """

    key: Key
    kind: Kind
    service: str
    internal: Treatment
    external: Treatment | None
    masquerade: Masquerading
    sources: tuple[str, ...] = ()
    alive: tuple[Destination, ...] | None = None
    serving: tuple[Destination, ...] = ()

    @property
    def destinations(self) -> frozenset[Destination]:
        """Returns all destinations of new connections."""
        return frozenset(b for a in (self.internal, self.external) if isinstance(a, Balance) for b in a.destinations)


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """The answer on a Service's healthCheckNodePort, apart for each IP family.

    ipv4, ipv6: the number of addresses with a ready endpoint among those that the data path chooses for clients outside
    (Choice.local). None: the Service does not have this family, so nothing answers at the node's addresses of the
    family. Endpoints that terminate but still serve do not count, although packets may go to them: the load balancer
    must stop sending here before the last one is gone. KEP-1669 asks for this, and so does the e2e test
    "Services should fail health check node port if there are only terminating endpoints".
    """

    port: int
    ipv4: int | None = None
    ipv6: int | None = None

    def at(self, ip: str) -> int | None:
        """Returns the count that the listener at this address of the node answers with; None: no listener."""
        return self.ipv6 if is_v6(ip) else self.ipv4


@dataclass(frozen=True, slots=True)
class Contribution:
    """One Service's part of the dataplane."""

    frontends: tuple[Frontend, ...] = ()
    cluster_ips: tuple[str, ...] = ()
    hairpin: tuple[str, ...] = ()
    health: HealthCheck | None = None
    # Ports whose policy is Local, with endpoints only elsewhere: IPv4 internal and external, IPv6 internal and external
    no_local_endpoints: tuple[int, ...] = (0, 0, 0, 0)
    # (creationTimestamp, uid, name): if two Services claim an address and port, the first in this order gets it
    order: tuple[str, str, str] = ("", "", "")


class Keeping(NamedTuple):
    """The endpoints to which existing flows may go on: Frontend.alive and Frontend.serving."""

    alive: tuple[Destination, ...] | None
    serving: tuple[Destination, ...]


def _balance(endpoints: Iterable[Endpoint]) -> Balance | None:
    destinations = tuple(sorted({e.destination for e in endpoints}))
    return Balance(destinations) if destinations else None


def _treatment(wanted: Balance | None, choice: Choice) -> Treatment:
    return wanted or (NO_LOCAL_ENDPOINTS if choice.any else NO_ENDPOINTS)


def contribute(
    ports: Iterable[ServicePort], endpoints: Mapping[PortName, Iterable[Endpoint]], node: NodeInfo
) -> Contribution:
    """Returns the frontends and other results of one Service's ports on this node.

    A Service has the IP families of its ClusterIPs. It has no frontend of another family: packets to its external
    addresses of that family are left to routing, and endpoints of that family are ignored.
    """
    frontends: dict[Key, Frontend] = {}
    hairpin: set[str] = set()
    ips: dict[str, None] = {}
    order = ("", "", "")
    here: dict[bool, set[str]] = {}  # by `v6`
    check = 0
    no_local_endpoints = [0, 0, 0, 0]
    for port in ports:
        order = (port.created, port.uid, port.service)
        ips.update(dict.fromkeys(port.cluster_ips))
        found = merge(tuple(endpoints.get(port.port_name, ())))
        for v6 in sorted({is_v6(ip) for ip in port.cluster_ips}):
            family = [e for e in found if is_v6(e.ip) == v6]
            choice = choose(family, node)
            here.setdefault(v6, set()).update(e.ip for e in choice.local if e.ready)
            keeping = Keeping(
                tuple(e.destination for e in family) if port.reset else None,
                tuple(e.destination for e in family if answers(e)) if port.protocol == "UDP" else (),
            )
            for frontend in _frontends(port, choice, node, v6, keeping):
                frontends.setdefault(frontend.key, frontend)
            hairpin.update(_hairpin(port, choice, node))
            away = bool(choice.cluster and not choice.local)
            no_local_endpoints[2 * v6] += away and port.internal_policy == "Local"
            no_local_endpoints[2 * v6 + 1] += away and port.external_policy == "Local" and port.external
        check = port.health_check_port
    return Contribution(
        tuple(frontends.values()),
        tuple(ips),
        tuple(sorted(hairpin)),
        HealthCheck(check, *(len(here[v6]) if v6 in here else None for v6 in (False, True))) if check else None,
        tuple(no_local_endpoints),
        order,
    )


def _hairpin(port: ServicePort, choice: Choice, node: NodeInfo) -> Iterable[str]:
    """Returns the endpoints to which this node may have to return their own packets (hairpin).

    Another node translates the packets of its own pods, except packets to this node's external frontends. These
    frontends masquerade all traffic anyway unless externalTrafficPolicy is Local.
    """
    everyone = port.external and port.external_policy == "Local"
    return [e.ip for e in {*choice.cluster, *choice.local} if everyone or e.node in (node.name, "")]


def _frontends(port: ServicePort, choice: Choice, node: NodeInfo, v6: bool, keeping: Keeping) -> Iterable[Frontend]:
    everywhere, here = _balance(choice.cluster), _balance(choice.local)
    addresses = [ip for ip in port.cluster_ips if is_v6(ip) == v6]
    local = port.external_policy == "Local"

    def sticky(wanted: Balance | None, key: Key, local: bool) -> Balance | None:
        if wanted is None or not port.affinity_seconds:
            return wanted
        owner = Key(addresses[0], port.protocol, port.port) if addresses else key
        return Balance(wanted.destinations, Sticky(owner, local, port.affinity_seconds))

    for ip in addresses:
        key, kept = Key(ip, port.protocol, port.port), port.internal_policy == "Local"
        internal = _treatment(sticky(here if kept else everywhere, key, kept), choice)
        yield Frontend(key, "ClusterIP", port.service, internal, None, "off-cluster", (), *keeping)
    masquerade: Masquerading = "node" if local else "always"
    for kind, key in _places(port, node):
        if is_v6(key.ip) == v6:
            nobody = kind == "ExternalIP" and not choice.any and node.owned(key.ip)  # what the node has there answers
            yield Frontend(
                key,
                kind,
                port.service,
                PASS if nobody else _treatment(sticky(everywhere, key, False), choice),
                (PASS if nobody else _treatment(sticky(here, key, True), choice)) if local else None,
                masquerade,
                _sources(port, key.ip, node) if kind == "LoadBalancer" else (),
                *keeping,
            )


def _places(port: ServicePort, node: NodeInfo) -> Iterable[tuple[Kind, Key]]:
    """Yields the external frontends."""
    places: list[tuple[Kind, tuple[str, ...], int]] = [
        (
            "NodePort",
            (*node.node_port_ips, *([LOCALHOST] if node.localhost else [])) if port.node_port else (),
            port.node_port,
        ),
        ("ExternalIP", externalips.served(port, node) if port.external_ips else (), port.port),
        ("LoadBalancer", port.load_balancer_ips, port.port),
    ]
    for kind, addresses, number in places:
        for ip in addresses:
            yield kind, Key(ip, port.protocol, number)


def _sources(port: ServicePort, ip: str, node: NodeInfo) -> tuple[str, ...]:
    """Returns the loadBalancerSourceRanges of the address's family.

    If the ranges allow the node, the result also allows the address of the load balancer: if a cloud assigns this
    address to the node, the node's own packets have this address as source.
    """
    ranges = tuple(cidr for cidr in port.source_ranges if is_v6(cidr) == is_v6(ip))
    if any(covers(ranges, address) for address in node.addresses if is_v6(address) == is_v6(ip)):
        return (*ranges, f"{ip}/{128 if is_v6(ip) else 32}")
    return ranges


@dataclass(slots=True)
class Delta:
    """The keys that a change affected. Look up each key in the Dataplane; a missing key was deleted.

    moved: the frontends whose earlier packets may have gone to destinations that new connections no longer get.
    """

    frontends: set[Key] = field(default_factory=set)
    moved: set[Key] = field(default_factory=set)
    cluster_ips: set[str] = field(default_factory=set)
    hairpin: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.frontends or self.cluster_ips or self.hairpin)


class Dataplane:
    """All frontends of a node. Each update replaces one Service.

    After any updates, the Dataplane equals a new Dataplane with the same Services.
    """

    def __init__(self, node: NodeInfo) -> None:
        self.node = node
        self.frontends: dict[Key, Frontend] = {}
        self.cluster_ips: dict[str, int] = {}  # address -> number of Services that have it
        self.hairpin: dict[str, int] = {}
        self.health: dict[str, HealthCheck] = {}
        self.no_local_endpoints = [0, 0, 0, 0]
        self.contested: dict[Key, tuple[str, ...]] = {}  # address and port -> its Services, the one that has it first
        self._parts: dict[str, Contribution] = {}
        self._claims: dict[Key, dict[str, Frontend]] = {}

    @property
    def services(self) -> int:
        return len(self._parts)

    def replace(self, service: str, part: Contribution, delta: Delta) -> None:
        """Replaces the contribution of `service` with `part`, and records the changes in `delta`."""
        old = self._parts.pop(service, Contribution())
        if part != Contribution():
            self._parts[service] = part
        if part.health is not None:
            self.health[service] = part.health
        else:
            self.health.pop(service, None)
        for index in range(4):
            self.no_local_endpoints[index] += part.no_local_endpoints[index] - old.no_local_endpoints[index]
        before = {f.key: f for f in old.frontends}
        after = {f.key: f for f in part.frontends}
        for key in before.keys() | after.keys():
            if before.get(key) != after.get(key) or old.order != part.order:
                self._claim(service, key, after.get(key), delta)
        for counts, gone, come, noted in (
            (self.cluster_ips, old.cluster_ips, part.cluster_ips, delta.cluster_ips),
            (self.hairpin, old.hairpin, part.hairpin, delta.hairpin),
        ):
            _count(counts, gone, come, noted)

    def _claim(self, service: str, key: Key, frontend: Frontend | None, delta: Delta) -> None:
        claims = self._claims.setdefault(key, {})
        claims.pop(service, None)
        if frontend is not None:
            claims[service] = frontend
        if not claims:
            del self._claims[key]
        winner = next(iter(claims), None)
        if len(claims) > 1:
            self.contested[key] = tuple(sorted(claims, key=lambda name: self._parts[name].order))
            winner = self.contested[key][0]
        else:
            self.contested.pop(key, None)
        new = claims[winner] if winner is not None else None
        old = self.frontends.get(key)
        if old != new:
            delta.frontends.add(key)
            if new is not None and _moved(old, new):
                delta.moved.add(key)
            if new is None:
                del self.frontends[key]
            else:
                self.frontends[key] = new

    def claim(self, service: str, key: Key) -> Frontend:
        """Returns what the Service would do with the address and port, whether it has it or not. Raises KeyError."""
        return self._claims[key][service]

    @property
    def _state(self) -> tuple[object, ...]:
        return (
            self.node,
            self.frontends,
            self.cluster_ips,
            self.hairpin,
            self.health,
            self.no_local_endpoints,
            self.contested,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dataplane) and self._state == other._state

    __hash__ = None  # type: ignore[assignment]  # mutable


def _moved(old: Frontend | None, new: Frontend) -> bool:
    """Whether earlier packets to the frontend may have gone to a destination that new connections do not get.

    This is so if an endpoint left, if the frontend had no endpoint, or if an external address is new: routes may have
    led its packets to another host. No other host has ClusterIPs and NodePorts: without a translating rule, packets to
    them are dropped or refused and leave no entry.
    """
    if old is None:
        return new.kind in ("ExternalIP", "LoadBalancer")
    return not old.destinations or not old.destinations <= new.destinations


def _count(counts: dict[str, int], gone: Iterable[str], come: Iterable[str], noted: set[str]) -> None:
    come, gone = set(come), set(gone)
    for ip in come - gone:
        counts[ip] = counts.get(ip, 0) + 1
        if counts[ip] == 1:
            noted.add(ip)
    for ip in gone - come:
        counts[ip] -= 1
        if not counts[ip]:
            del counts[ip]
            noted.add(ip)
