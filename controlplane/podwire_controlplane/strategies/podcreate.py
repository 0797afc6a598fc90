"""What the server decides when a pod is created: its quality of service, its first conditions, and the selectors that
follow from matchLabelKeys (k8s.io/kubernetes, pkg/registry/core/pod/strategy.go).
"""

from __future__ import annotations

from typing import Any

from podwire_base.kube import quantity
from podwire_base.kube.meta import Object, labels

_COMPUTE = ("cpu", "memory")


def _amounts(resources: Object | None, which: str) -> dict[str, Any]:
    found = {n: quantity.parse(v) for n, v in ((resources or {}).get(which) or {}).items() if n in _COMPUTE}
    return {name: value for name, value in found.items() if value > 0}


def qos_class(spec: Object) -> str:
    """Return Guaranteed, Burstable or BestEffort, by the requests and limits of CPU and memory."""
    own = spec.get("resources")
    parts = [own] if own else [c.get("resources") for c in (*(spec.get("containers") or []),
                                                            *(spec.get("initContainers") or []))]  # fmt: skip
    requests: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    guaranteed = True
    for part in parts:
        asked, allowed = _amounts(part, "requests"), _amounts(part, "limits")
        for total, more in ((requests, asked), (limits, allowed)):
            for name, value in more.items():
                total[name] = total.get(name, 0) + value
        guaranteed = guaranteed and len(allowed) == len(_COMPUTE)
    if not requests and not limits:
        return "BestEffort"
    return "Guaranteed" if guaranteed and requests == limits else "Burstable"


def _with_keys(term: Object, own: dict[str, str]) -> None:
    """Add the pod's own labels to the selector of a term: In for matchLabelKeys, NotIn for mismatchLabelKeys."""
    selector = term.get("labelSelector")
    if selector is None:
        return
    for field, operator in (("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")):
        for key in term.get(field) or []:
            if key in own:
                rule = {"key": key, "operator": operator, "values": [own[key]]}
                selector["matchExpressions"] = [*(selector.get("matchExpressions") or []), rule]


def _selectors(spec: Object, own: dict[str, str]) -> None:
    affinity = spec.get("affinity") or {}
    for kind in ("podAffinity", "podAntiAffinity"):
        part = affinity.get(kind) or {}
        for term in part.get("requiredDuringSchedulingIgnoredDuringExecution") or []:
            _with_keys(term, own)
        for weighted in part.get("preferredDuringSchedulingIgnoredDuringExecution") or []:
            _with_keys(weighted.get("podAffinityTerm") or {}, own)
    for constraint in spec.get("topologySpreadConstraints") or []:
        _with_keys({**constraint, "mismatchLabelKeys": []}, own)


def prepare_pod(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    status: Object = {"phase": "Pending", "qosClass": qos_class(spec)}
    if spec.get("schedulingGates"):
        status["conditions"] = [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastProbeTime": None,
                "lastTransitionTime": obj["metadata"].get("creationTimestamp"),
            }
        ]
    obj["status"] = status
    if (spec.get("terminationGracePeriodSeconds") or 0) < 0:
        spec["terminationGracePeriodSeconds"] = 1  # as upstream: a negative time is a short one
    _selectors(spec, labels(obj))
