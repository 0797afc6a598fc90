"""PodDisruptionBudgets (policy/v1): how many of a budget's pods are healthy, and how many evictions it allows now."""

from __future__ import annotations

from podwire_base.kube.conditions import condition, is_true
from podwire_base.kube.meta import Object, controller_of, deleting, key, labels, name, namespace
from podwire_base.kube.selectors import label_selector
from podwire_base.kube.times import parse_time, timestamp

from .base import Controller, Keys, Snapshot, Write, itself, pod_ended
from .workloads import resolve

_SCALED = ("ReplicaSet", "StatefulSet", "ReplicationController", "Deployment")
_FORGET = 120.0  # seconds after which an eviction that deleted no pod is forgotten


def reconcile_budget(wanted: str, snapshot: Snapshot, now: float) -> list[Write]:
    budget = snapshot.get("PodDisruptionBudget", wanted)
    if budget is None or deleting(budget):
        return []
    pods = [p for p in snapshot.list("Pod", namespace(budget)) if _covers(budget, p) and not pod_ended(p)]
    expected, desired = _needs(budget, pods, snapshot)
    before = budget.get("status") or {}
    disrupted = {
        pod: since
        for pod, since in (before.get("disruptedPods") or {}).items()
        if now - parse_time(since).timestamp() < _FORGET and any(name(p) == pod and not deleting(p) for p in pods)
    }
    healthy = sum(is_true(p, "Ready") and not deleting(p) and name(p) not in disrupted for p in pods)
    allowed = max(0, healthy - desired) if expected > 0 else 0
    status: Object = {
        "currentHealthy": healthy,
        "desiredHealthy": desired,
        "disruptionsAllowed": allowed,
        "expectedPods": expected,
        "observedGeneration": budget["metadata"].get("generation", 1),
        "disruptedPods": disrupted or None,
        "conditions": [_condition(budget, allowed > 0, now)],
    }
    if {field: before.get(field) for field in status} == status:
        return []
    return [
        Write(
            "status", "PodDisruptionBudget", namespace(budget), name(budget), {"status": status}, f"{allowed} allowed"
        )
    ]


def _covers(budget: Object, pod: Object) -> bool:
    selector = (budget.get("spec") or {}).get("selector")
    return selector is not None and label_selector(selector)(labels(pod))


def _needs(budget: Object, pods: list[Object], snapshot: Snapshot) -> tuple[int, int]:
    """Return (pods that there should be, pods of them that must stay healthy). A percentage, and maxUnavailable, are of
    the replicas that the pods' controllers want.
    """
    spec = budget["spec"]
    least, most = spec.get("minAvailable"), spec.get("maxUnavailable")
    if most is None and isinstance(least, int):
        return len(pods), least
    owners = {}
    for pod in pods:
        if (owner := _scaled(pod, snapshot)) is not None:
            owners[(owner["kind"], key(owner))] = int(owner["spec"].get("replicas", 1))
    expected = sum(owners.values())
    if most is not None:
        return expected, max(0, expected - resolve(most, expected, up=True))
    return expected, resolve(least, expected, up=True) if least is not None else 0


def _scaled(pod: Object, snapshot: Snapshot) -> Object | None:
    """Return the topmost controller of a pod that has replicas."""
    found, obj = None, pod
    while (ref := controller_of(obj)) and ref.get("kind") in _SCALED:
        owner = snapshot.get(ref["kind"], f"{namespace(pod)}/{ref['name']}")
        if owner is None:
            break
        found = obj = {"kind": ref["kind"], **owner}
    return found


def _condition(budget: Object, enough: bool, now: float) -> Object:
    text, before = str(enough), condition(budget, "DisruptionAllowed")
    same = before.get("status") == text and before.get("lastTransitionTime")
    return {
        "type": "DisruptionAllowed",
        "status": text,
        "reason": "SufficientPods" if enough else "InsufficientPods",
        "message": "",
        "observedGeneration": budget["metadata"].get("generation", 1),
        "lastTransitionTime": before["lastTransitionTime"] if same else timestamp(now),
    }


def _budgets(obj: Object, snapshot: Snapshot) -> Keys:
    """Yield the budgets of the pod's namespace that may cover it."""
    for budget in snapshot.list("PodDisruptionBudget", namespace(obj)):
        if _covers(budget, obj):
            yield key(budget)


def _all_budgets(obj: Object, snapshot: Snapshot) -> Keys:
    return [key(budget) for budget in snapshot.list("PodDisruptionBudget", namespace(obj))]


CONTROLLERS = (
    Controller(
        "disruption",
        {"PodDisruptionBudget": itself, "Pod": _budgets, **dict.fromkeys(_SCALED, _all_budgets)},
        reconcile_budget,
        resync=30.0,
    ),
)
