"""Which of the nodes that a pod can run on is the best one. Pure.

The pod's own wishes come first, with kube-scheduler's weights. Then follow the fewest pods of the same owner, the node
that is least asked of, the fewest pods, and the name, so that the choice is always the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from podwire_base.kube.meta import Object, controller_of, uid

from .. import affinity
from ..taints import untolerated
from . import topology
from .places import Place, asks, taints

_WEIGHTS = {"taints": 3, "nodes": 2, "spread": 2, "pods": 2}
_MOST = 100


def _scaled(raw: dict[str, int], *, low_is_good: bool = False) -> dict[str, Fraction]:
    """Return scores from 0 to 100: the best node of these has 100, if they differ at all."""
    low, high = min(raw.values()), max(raw.values())
    if low == high:
        return dict.fromkeys(raw, Fraction(0))
    return {
        own: Fraction(_MOST * ((high - value) if low_is_good else (value - low)), high - low)
        for own, value in raw.items()
    }


def _node_affinity(pod: Object, place: Place) -> int:
    part = ((pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}).get(topology.PREFERRED) or []
    return sum(int(row.get("weight") or 0) for row in part if affinity.term(row.get("preference") or {}, place.node))


def _avoided(pod: Object, place: Place) -> int:
    """Return how many taints with PreferNoSchedule the pod does not tolerate."""
    tolerations = pod["spec"].get("tolerations") or []
    return sum(bool(untolerated([one], tolerations, ("PreferNoSchedule",))) for one in taints(place.node))


def _pod_affinity(pod: Object, places: Sequence[Place], facts: topology.Facts) -> dict[str, int]:
    """Return the weights of preferred terms, the pod's own and those of others about it, summed by node."""
    mine = [(term, 1) for term in topology.preferred(pod, "podAffinity")]
    mine += [(term, -1) for term in topology.preferred(pod, "podAntiAffinity")]
    domains: dict[tuple[str, str], int] = {}
    for place, other in topology.neighbours(places):
        rows = [(term, sign) for term, sign in mine if term.covers(other, facts)]
        if other["spec"].get("affinity"):
            theirs = [(term, 1) for term in topology.preferred(other, "podAffinity")]
            theirs += [(term, -1) for term in topology.preferred(other, "podAntiAffinity")]
            rows += [(term, sign) for term, sign in theirs if term.covers(pod, facts)]
        for term, sign in rows:
            if (value := place.labels.get(term.domain)) is not None:
                at = term.domain, value
                domains[at] = domains.get(at, 0) + sign * term.weight
    return {
        place.name: sum(weight for (key, value), weight in domains.items() if place.labels.get(key) == value)
        for place in places
    }


def _spread(pod: Object, places: Sequence[Place]) -> dict[str, int]:
    """Return how many pods the domains of ScheduleAnyway constraints have, summed by node. A node without the label
    comes after all others.
    """
    found = dict.fromkeys((place.name for place in places), 0)
    for row in topology.constraints(pod, "ScheduleAnyway"):
        held = topology.counted(pod, row, places)
        worst = max(held.values(), default=0) + 1
        for place in places:
            found[place.name] += held.get(place.labels.get(str(row["topologyKey"]), ""), worst)
    return found


def _fullness(pod: Object, place: Place) -> Fraction:
    """Return the larger of the parts of CPU and memory that would be asked for."""
    more = asks(pod)
    parts = [Fraction(0)]
    for resource in ("cpu", "memory"):
        if room := place.room.get(resource):
            parts.append((place.used.get(resource, Fraction(0)) + more.get(resource, Fraction(0))) / room)
    return max(parts)


def best(pod: Object, fits: Sequence[Place], places: Sequence[Place], facts: topology.Facts) -> Place:
    """Return the best of the nodes that fit (at least one). places: all nodes, for the pods there."""
    near, even = _pod_affinity(pod, places, facts), _spread(pod, places)
    owner = (controller_of(pod) or {}).get("uid") or uid(pod)
    scores = {
        "nodes": _scaled({place.name: _node_affinity(pod, place) for place in fits}),
        "taints": _scaled({place.name: _avoided(pod, place) for place in fits}, low_is_good=True),
        "pods": _scaled({place.name: near[place.name] for place in fits}),
        "spread": _scaled({place.name: even[place.name] for place in fits}, low_is_good=True),
    }

    def order(place: Place) -> tuple[Fraction, int, Fraction, int, str]:
        wishes = sum((_WEIGHTS[part] * scores[part][place.name] for part in _WEIGHTS), Fraction(0))
        siblings = sum((controller_of(other) or {}).get("uid") == owner for other in place.pods)
        return -wishes, siblings, _fullness(pod, place), len(place.pods), place.name

    return min(fits, key=order)
