"""Chooses the endpoints of a Service port on this node. Pure. The docstrings are the specification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

from .model import Endpoint, NodeInfo


@dataclass(frozen=True, slots=True)
class Choice:
    """cluster: for traffic that may go anywhere; local: for traffic that a Local policy keeps on this node."""

    cluster: tuple[Endpoint, ...]
    local: tuple[Endpoint, ...]

    @property
    def any(self) -> bool:
        return bool(self.cluster or self.local)


_PLACE = itemgetter(0, 1)  # ip, port


def merge(endpoints: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
    """Returns one endpoint per address and port, in order. Of duplicates, the non-terminating endpoint counts.

    A pod's address can be in two slices while it moves between them, and a new pod can have the
    address of a terminating pod.
    """
    if len(endpoints) == len({(e[0], e[1]) for e in endpoints}):
        return tuple(sorted(endpoints, key=_PLACE))
    best: dict[tuple[str, int], Endpoint] = {}
    for endpoint in endpoints:
        other = best.get(endpoint.destination)
        if other is None or _rank(endpoint) < _rank(other):
            best[endpoint.destination] = endpoint
    return tuple(best[name] for name in sorted(best))


def _rank(e: Endpoint) -> tuple[object, ...]:
    return e.terminating, not e.ready, not e.serving, e.node, e.zone_hints, e.node_hints


def usable(endpoints: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
    """Returns the ready endpoints; without ready endpoints, the terminating but serving endpoints (KEP-1669)."""
    ready = tuple(e for e in endpoints if e.ready)
    return ready or tuple(e for e in endpoints if e.serving and e.terminating)


def answers(endpoint: Endpoint) -> bool:
    """Whether an endpoint answers the flows that it already has.

    As in kube-proxy, that is the condition `serving` alone: neither the end of a pod nor a policy, a zone or a hint
    takes a flow away. A ready endpoint counts too: publishNotReadyAddresses makes endpoints ready without `serving`,
    and they get new flows.
    """
    return endpoint.serving or endpoint.ready


def hinted(ready: Sequence[Endpoint], node: NodeInfo) -> tuple[Endpoint, ...]:
    """Selects ready endpoints by topology hints (KEP-2433, KEP-3015).

    Node hints count only if every endpoint has node hints and some hint names this node. Zone hints count only if every
    endpoint has zone hints and some hint names this node's zone. In any other case the function returns all endpoints,
    because incomplete hints must never concentrate traffic.
    """
    if ready and all(e.node_hints for e in ready):
        here = tuple(e for e in ready if node.name in e.node_hints)
        if here:
            return here
    if ready and node.zone and all(e.zone_hints for e in ready):
        here = tuple(e for e in ready if node.zone in e.zone_hints)
        if here:
            return here
    return tuple(ready)


def choose(endpoints: Sequence[Endpoint], node: NodeInfo) -> Choice:
    """Returns the cluster set and the local set.

    The cluster set has the usable endpoints that the hints select. The local set has the usable endpoints on this node,
    without regard to hints. Each set has its own fallback to terminating endpoints. endpoints: the result of `merge`.
    """
    cluster = usable(endpoints)
    if cluster and cluster[0].ready:
        cluster = hinted(cluster, node)
    return Choice(cluster, usable([e for e in endpoints if e.node == node.name]))
