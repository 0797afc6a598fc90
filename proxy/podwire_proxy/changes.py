"""Turns watch events into a current Dataplane. The tracker computes a Service again only after a change."""

from __future__ import annotations

from collections.abc import Iterable

from podwire_base import progress
from podwire_base.kube import meta
from podwire_base.kube.shape import misshapen

from .convert import SERVICE_SHAPE, SLICE_SHAPE, SliceInfo, service_ports, slice_info
from .dataplane import Contribution, Dataplane, Delta, Frontend, Key, contribute
from .externalips import Facts, refusals
from .model import Endpoint, NodeInfo, PortName, ServicePort


class Tracker:
    """`service`, `slice` and `node` record changes and return an object's problems; `flush` updates the Dataplane.
    `refusals` has the refused externalIPs of the Services that the last `flush` worked out.

    A malformed object is a problem. Any other exception is a bug in this program: the tracker then records nothing, and
    the previous state of the object stays.
    """

    def __init__(self, node: NodeInfo) -> None:
        self.dataplane = Dataplane(node)
        self._services: dict[str, tuple[ServicePort, ...]] = {}
        self._slices: dict[str, SliceInfo] = {}
        self._of_service: dict[str, set[str]] = {}  # Service -> keys of the Service's slices
        self._dirty: set[str] = set()
        self._node = self._here = node  # `_here` has what `_facts` learned
        self._facts = Facts()
        self.externals: set[str] = set()  # Services with externalIPs
        self.refusals: dict[str, list[str]] = {}
        self._refused: set[str] = set()  # Services with refused externalIPs
        self.endpoints = 0  # of all slices, counted by port

    @property
    def pending(self) -> int:
        return len(self._dirty)

    def service(self, key: str, obj: meta.Object | None) -> list[str]:
        """`obj` None: deleted."""
        try:
            ports, problems = service_ports(obj) if obj is not None else ((), [])
        except Exception:
            if why := misshapen(obj, SERVICE_SHAPE):
                return [_misshapen("Service", why)]
            raise
        if (old := self._services.get(key, ())) != ports:
            self._dirty.add(key)
            self._facts.service(old, ports)
            (self.externals.add if ports and ports[0].external_ips else self.externals.discard)(key)
            if ports:
                self._services[key] = ports
            else:
                del self._services[key]
        return problems

    def slice(self, key: str, obj: meta.Object | None) -> list[str]:
        """`obj` None: deleted."""
        try:
            info, problems = slice_info(obj) if obj is not None else (SliceInfo("", {}), [])
        except Exception:
            if why := misshapen(obj, SLICE_SHAPE):
                return [_misshapen("EndpointSlice", why)]
            raise
        old = self._slices.get(key, SliceInfo("", {}))
        if old == info:
            return problems
        self.endpoints += _count(info) - _count(old)
        for service in {old.service, info.service} - {""}:
            self._dirty.add(service)
        if old.service:
            self._of_service[old.service].discard(key)
            if not self._of_service[old.service]:
                del self._of_service[old.service]
        self._facts.slice(key, info.service, info.endpoints)
        self._slices.pop(key, None)
        if info.service:
            self._slices[key] = info
            self._of_service.setdefault(info.service, set()).add(key)
        return problems

    def node(self, node: NodeInfo) -> bool:
        """Sets the node. If the node differs, every Service is computed again. Returns whether the node differs.

        If only the rules for externalIPs differ, the result is False, and the Services with externalIPs are pending.
        """
        same = node == self._node
        if same and node.claimable == self._node.claimable:
            return False
        self._node, self._facts.changed = node, True
        if same:
            self._dirty.update(self.externals)
            return False
        self._dirty.update(self._services)
        return True

    def external_frontends(self) -> Iterable[Frontend]:
        """Yields the frontends of all externalIPs that are served."""
        for service in self.externals:
            for port in self._services[service]:
                for ip in port.external_ips:
                    found = self.dataplane.frontends.get(Key(ip, port.protocol, port.port))
                    if found is not None and found.service == service:
                        yield found

    def _endpoints(self, service: str) -> dict[PortName, list[Endpoint]]:
        out: dict[PortName, list[Endpoint]] = {}
        for key in sorted(self._of_service.get(service, ())):
            for port, found in self._slices[key].endpoints.items():
                out.setdefault(port, []).extend(found)
        return out

    def flush(self) -> Delta:
        """Processes the recorded changes.

        Equal inputs give an equal Dataplane, independent of the order and grouping of the changes.
        """
        delta = Delta()
        if self._facts.changed:
            self._here = self._facts.added(self._node) if self.externals else self._node
            self._dirty |= self.externals
        self.dataplane.node = self._here
        told = self._dirty & (self.externals | self._refused)
        self.refusals = {key: refusals(self._services.get(key, ()), self._here) for key in told}
        self._refused = (self._refused - told) | {key for key, found in self.refusals.items() if found}
        for service in self._dirty if len(self._dirty) < progress.BATCH else progress.every(self._dirty):
            self.dataplane.replace(service, self._contribution(service), delta)
        self._dirty.clear()
        return delta

    def _contribution(self, service: str) -> Contribution:
        ports: Iterable[ServicePort] = self._services.get(service, ())
        return contribute(ports, self._endpoints(service), self._here) if ports else Contribution()


class DeduplicatedLog:
    """Remembers the logged problems of each object, because watches repeat events and the log must not."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], list[str]] = {}

    def news(self, kind: str, key: str, problems: list[str]) -> list[str]:
        """Returns the object's problems that are new since the last call."""
        known = self._last.pop((kind, key), [])
        if problems:
            self._last[kind, key] = problems
        return [problem for problem in problems if problem not in known]


def _misshapen(kind: str, why: str) -> str:
    return f"is not formed as {kind}s are ({why}); passed over, what it said before stays"


def _count(info: SliceInfo) -> int:
    """Returns the number of endpoints in a slice that belongs to a Service."""
    return sum(map(len, info.endpoints.values())) if info.service else 0
