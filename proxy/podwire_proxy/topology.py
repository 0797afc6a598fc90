"""Which endpoints a Service port uses on this node. One pure function; its docstring is the specification."""

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
    """One endpoint for each address and port, ordered; of duplicates, the one that is not terminating counts.

    A pod's address can be in two slices while it moves between them, and a new pod can have a terminating one's
    address.
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
    """The ready endpoints; if there are none, those that are terminating but still serving (KEP-1669)."""
    ready = tuple(e for e in endpoints if e.ready)
    return ready or tuple(e for e in endpoints if e.serving and e.terminating)


def hinted(ready: Sequence[Endpoint], node: NodeInfo) -> tuple[Endpoint, ...]:
    """Narrow ready endpoints by topology hints (KEP-2433, KEP-3015).

    Node hints count only if every endpoint has some and one names this node; zone hints only if every endpoint has some
    and one names this node's zone. Half-written hints must never concentrate traffic, so in any other case all
    endpoints are used.
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
    """Cluster set: usable endpoints narrowed by hints. Local set: usable ones among those on this node, hints ignored.

    The fallback to terminating endpoints is decided separately for each set. `endpoints` must be merged.
    """
    cluster = usable(endpoints)
    if cluster and cluster[0].ready:
        cluster = hinted(cluster, node)
    return Choice(cluster, usable([e for e in endpoints if e.node == node.name]))
