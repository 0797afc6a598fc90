"""Pods leave a node with a NoExecute taint that they do not tolerate, or when the time of their toleration is over.

Source: Kubernetes' documentation "Taints and Tolerations". The node controller gives every such
taint its timeAdded, so a restarted controller goes on with the same times.
"""

from __future__ import annotations

from podwire_base.kube.conditions import with_condition
from podwire_base.kube.events import reference
from podwire_base.kube.meta import Object, deleting, key, name, namespace, uid
from podwire_base.kube.times import parse_time

from .base import Controller, Keys, Snapshot, Told, Write, again, itself, pod_ended
from .taints import seconds

COMPONENT = "taint-eviction-controller"


def due(pod: Object, node: Object, now: float) -> float | None:
    """Return when the pod has to leave the node, None: never."""
    tolerations = pod["spec"].get("tolerations") or []
    times = []
    for taint in (node.get("spec") or {}).get("taints") or []:
        if taint.get("effect") == "NoExecute" and (left := seconds(taint, tolerations)) is not None:
            since = parse_time(taint["timeAdded"]).timestamp() if taint.get("timeAdded") else now
            times.append(since + left)
    return min(times, default=None)


def reconcile(wanted: str, snapshot: Snapshot, now: float) -> list[Write]:
    pod = snapshot.get("Pod", wanted)
    if pod is None or deleting(pod) or pod_ended(pod):
        return []
    node = snapshot.get("Node", str(pod["spec"].get("nodeName") or ""))
    when = due(pod, node, now) if node is not None else None
    if when is None:
        return []
    if when > now:
        return [again("Pod", when - now)]
    why = "Taint manager: deleting due to NoExecute taint"
    rows = with_condition(pod, "DisruptionTarget", "True", "DeletionByTaintManager", why, now)
    told = Told(reference("Pod", pod), "TaintManagerEviction", f"Marking for deletion Pod {key(pod)}", COMPONENT)
    return [
        Write("status", "Pod", namespace(pod), name(pod), {"status": {"conditions": rows}}, why),
        Write("delete", "Pod", namespace(pod), name(pod), {"preconditions": {"uid": uid(pod)}}, why, told=told),
    ]


def _pods(node: Object, snapshot: Snapshot) -> Keys:
    if not any(taint.get("effect") == "NoExecute" for taint in (node.get("spec") or {}).get("taints") or []):
        return []
    return [key(pod) for pod in snapshot.list("Pod") if pod["spec"].get("nodeName") == name(node)]


CONTROLLERS = (Controller("tainteviction", {"Pod": itself, "Node": _pods}, reconcile),)
