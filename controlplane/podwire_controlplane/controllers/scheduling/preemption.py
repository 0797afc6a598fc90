"""Which pods of lower priority must leave so that a pod can run. Pure.

Source: Kubernetes' documentation "Pod Priority and Preemption": as few victims as possible, of as low a priority as
possible, and PodDisruptionBudgets are respected where another node allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from podwire_base.kube.meta import Object, deleting, key, labels, name, namespace
from podwire_base.kube.selectors import label_selector

from .filters import No
from .places import Place, priority


@dataclass(frozen=True, slots=True)
class Plan:
    """The pods that leave a node. broken: how many of them their budgets would keep."""

    place: Place
    victims: tuple[Object, ...]
    broken: int

    def order(self) -> tuple[int, int, int, int, str]:
        """The least first: what kube-scheduler compares, in its order."""
        ranks = [priority(pod) for pod in self.victims]
        return self.broken, max(ranks), sum(rank + 2**31 for rank in ranks), len(ranks), self.place.name


def waits(pod: Object, places: Sequence[Place]) -> bool:
    """Whether the pod is nominated to a node that victims are just leaving. It takes no others meanwhile."""
    nominated = (pod.get("status") or {}).get("nominatedNodeName")
    return any(
        place.name == nominated and any(deleting(other) and priority(other) < priority(pod) for other in place.pods)
        for place in places
    )


def allowed(pod: Object) -> bool:
    return str(pod["spec"].get("preemptionPolicy")) != "Never"


def breaking(pods: Sequence[Object], budgets: Sequence[Object]) -> set[str]:
    """Return the keys of pods whose budgets allow no further disruption, if all of these leave."""
    left = {key(one): int((one.get("status") or {}).get("disruptionsAllowed") or 0) for one in budgets}
    found = set[str]()
    for pod in pods:
        for budget in budgets:
            selector = (budget.get("spec") or {}).get("selector")
            if selector is None or namespace(budget) != namespace(pod) or not label_selector(selector)(labels(pod)):
                continue
            if name(pod) in ((budget.get("status") or {}).get("disruptedPods") or {}):
                continue
            left[key(budget)] -= 1
            if left[key(budget)] < 0:
                found.add(key(pod))
    return found


def plan(
    pod: Object,
    places: Sequence[Place],
    refused: Mapping[str, Sequence[No]],
    fits: Callable[[Place], bool],
    budgets: Sequence[Object],
) -> Plan | None:
    """Return the best plan, None if no pods can make room. fits: whether the pod can run on a node that is as given."""
    plans = [
        found
        for place in places
        if refused.get(place.name) and all(why.mends for why in refused[place.name])
        if (found := _on(pod, place, fits, budgets))
    ]
    return min(plans, key=Plan.order, default=None)


def _on(pod: Object, place: Place, fits: Callable[[Place], bool], budgets: Sequence[Object]) -> Plan | None:
    lower = [other for other in place.pods if other["spec"].get("nodeName") and priority(other) < priority(pod)]
    if not lower or not fits(place.without(lower)):
        return None
    kept = breaking(sorted(lower, key=_weight), budgets)
    victims = list(lower)
    # Each pod that can stay does: first those that a budget keeps, then those of higher priority.
    for other in sorted(lower, key=lambda one: (key(one) not in kept, *_weight(one))):
        fewer = [one for one in victims if one is not other]
        if fits(place.without(fewer)):
            victims = fewer
    if not victims:
        return None
    return Plan(place, tuple(victims), sum(key(one) in kept for one in victims))


def _weight(pod: Object) -> tuple[int, str, str]:
    """Sort the more important pod first: higher priority, then the longer run."""
    return -priority(pod), str((pod.get("status") or {}).get("startTime") or "~"), key(pod)
