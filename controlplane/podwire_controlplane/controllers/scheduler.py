"""The scheduler: binds a waiting pod to the best node, or says why it waits and makes room by priority.

The decisions are in scheduling/. Their words are kube-scheduler's.
"""

from __future__ import annotations

from collections.abc import Callable

from podwire_base.kube.conditions import condition, with_condition
from podwire_base.kube.events import event, reference
from podwire_base.kube.meta import Object, deleting, key, labels, name, namespace, uid

from .base import Controller, Keys, Snapshot, Told, Write, pod_ended
from .scheduling import filters, preemption, scores, topology
from .scheduling.places import Place, places

COMPONENT = "default-scheduler"


def _waits(pod: Object) -> bool:
    spec = pod["spec"]
    return not (
        spec.get("nodeName")
        or deleting(pod)
        or pod_ended(pod)
        or spec.get("schedulingGates")
        or spec.get("schedulerName", COMPONENT) != COMPONENT
    )


def facts(snapshot: Snapshot) -> topology.Facts:
    return topology.Facts({name(space): labels(space) for space in snapshot.list("Namespace")})


def reconcile(wanted: str, snapshot: Snapshot, now: float) -> list[Write]:
    pod = snapshot.get("Pod", wanted)
    if pod is None or not _waits(pod):
        return []
    known = facts(snapshot)
    held = places(pod, snapshot.list("Node"), (p for p in snapshot.list("Pod") if not pod_ended(p)))
    refused = filters.reasons(pod, held, known)
    if fits := [place for place in held if not refused[place.name]]:
        return [_bound(pod, scores.best(pod, fits, held, known))]
    return _refused(pod, snapshot, held, refused, known, now)


def _bound(pod: Object, place: Place) -> Write:
    told = f"Successfully assigned {key(pod)} to {place.name}"
    return Write(
        "bind",
        "Pod",
        namespace(pod),
        name(pod),
        {"target": {"kind": "Node", "name": place.name}},
        f"on {place.name}",
        told=Told(reference("Pod", pod), "Scheduled", told, COMPONENT),
    )


def _refused(
    pod: Object,
    snapshot: Snapshot,
    held: list[Place],
    refused: dict[str, list[filters.No]],
    known: topology.Facts,
    now: float,
) -> list[Write]:
    """Return the writes for a pod that no node takes: its condition, an Event, and those that make room."""
    why = filters.told(refused)
    if not preemption.allowed(pod):
        return _said(pod, f"{why} preemption: not eligible due to preemptionPolicy=Never." if held else why, now)
    if preemption.waits(pod, held):
        return []  # it has said why, and the victims leave
    plan = preemption.plan(pod, held, refused, _fits(pod, held, known), list(snapshot.list("PodDisruptionBudget")))
    if plan is None:
        return _said(pod, f"{why} preemption: {_helpless(refused)}" if held else why, now)
    changes = _said(pod, why, now, nominated=plan.place.name)
    for victim in plan.victims:
        changes += _evicted(victim, pod, plan.place, now)
    return changes


def _fits(pod: Object, held: list[Place], known: topology.Facts) -> Callable[[Place], bool]:
    def fits(place: Place) -> bool:
        rows = [place if row.name == place.name else row for row in held]
        return not filters.reasons(pod, rows, known)[place.name]

    return fits


def _helpless(refused: dict[str, list[filters.No]]) -> str:
    """Return why no pods make room."""
    mends = sum(all(row.mends for row in rows) for rows in refused.values())
    parts = []
    if never := len(refused) - mends:
        parts.append(f"{never} Preemption is not helpful for scheduling")
    if mends:
        parts.append(f"{mends} No preemption victims found for incoming pod")
    return f"0/{len(refused)} nodes are available: {', '.join(parts)}."


def _said(pod: Object, why: str, now: float, nominated: str = "") -> list[Write]:
    """Return the pod's condition and an Event, if they are new."""
    status: Object = {}
    if condition(pod, "PodScheduled").get("message") != why:
        status["conditions"] = with_condition(pod, "PodScheduled", "False", "Unschedulable", why, now)
    if nominated and (pod.get("status") or {}).get("nominatedNodeName") != nominated:
        status["nominatedNodeName"] = nominated
    if not status:
        return []
    changes = [Write("status", "Pod", namespace(pod), name(pod), {"status": status}, why)]
    if "conditions" in status:
        told = event(reference("Pod", pod), "FailedScheduling", why, now, component=COMPONENT)
        changes.append(Write("create", "Event", namespace(pod), "", told, why))
    return changes


def _evicted(victim: Object, pod: Object, place: Place, now: float) -> list[Write]:
    """Return the writes that end a victim. It has its own grace period."""
    if deleting(victim):
        return []
    why = f"{COMPONENT}: preempting to accommodate a higher priority pod"
    rows = with_condition(victim, "DisruptionTarget", "True", "PreemptionByScheduler", why, now)
    about = Told(reference("Pod", victim), "Preempted", f"Preempted by pod {uid(pod)} on node {place.name}", COMPONENT)
    return [
        Write("status", "Pod", namespace(victim), name(victim), {"status": {"conditions": rows}}, why),
        Write(
            "delete",
            "Pod",
            namespace(victim),
            name(victim),
            {"preconditions": {"uid": uid(victim)}},
            f"makes room for {key(pod)}",
            told=about,
        ),
    ]


# ---- what wakes a waiting pod


def _waiting(_obj: Object, snapshot: Snapshot) -> Keys:
    return [key(pod) for pod in snapshot.list("Pod") if _waits(pod)]


def _pod(obj: Object, snapshot: Snapshot) -> Keys:
    """Yield the pod itself, and those that wait for what it does: it leaves, or it is one that they want to be near."""
    if not obj["spec"].get("nodeName"):
        yield key(obj)
        return
    gone = deleting(obj) or pod_ended(obj) or snapshot.get("Pod", key(obj)) is None
    if not gone and (obj.get("status") or {}).get("phase") != "Pending":
        return  # its other changes mean nothing to those that wait
    for pod in snapshot.list("Pod"):
        if _waits(pod) and (gone or (pod["spec"].get("affinity") or {}).get("podAffinity")):
            yield key(pod)


def _nothing(_obj: Object, _snapshot: Snapshot) -> Keys:
    return ()


CONTROLLERS = (
    Controller(
        "scheduler",
        {"Pod": _pod, "Node": _waiting, "Namespace": _nothing, "PodDisruptionBudget": _nothing},
        reconcile,
        resync=60.0,
    ),
)
