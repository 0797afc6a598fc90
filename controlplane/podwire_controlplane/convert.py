"""Conversion between the versions of a kind that share their objects in the store: Event of core/v1 and of
events.k8s.io/v1, HorizontalPodAutoscaler of autoscaling/v2 and v1. The first of each pair is stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from podwire_base.kube import codec
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import Resource

from . import gotypes

_EVENT = {  # field of core/v1 -> field of events.k8s.io/v1
    "involvedObject": "regarding",
    "message": "note",
    "reportingComponent": "reportingController",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
}
_ALPHA = "autoscaling.alpha.kubernetes.io/"  # v1 keeps what it has no field for in annotations of this prefix
_REST = {"metrics": ("spec", "metrics"), "behavior": ("spec", "behavior"), "conditions": ("status", "conditions")}


def _rename(obj: Object, names: dict[str, str]) -> Object:
    return {names.get(field, field): value for field, value in obj.items()}


def _new_event(obj: Object) -> Object:
    return _rename(obj, _EVENT)


def _core_event(obj: Object) -> Object:
    return _rename(obj, {new: old for old, new in _EVENT.items()})


def _is_cpu(metric: Object) -> bool:
    resource = metric.get("resource") or {}
    target = resource.get("target") or resource.get("current") or {}
    return metric.get("type") == "Resource" and resource.get("name") == "cpu" and "averageUtilization" in target


def _old_scaler(obj: Object) -> Object:
    spec, status = dict(obj.get("spec") or {}), dict(obj.get("status") or {})
    notes = dict(obj["metadata"].get("annotations") or {})
    rest = []
    for metric in spec.pop("metrics", None) or []:
        if _is_cpu(metric) and "targetCPUUtilizationPercentage" not in spec:
            spec["targetCPUUtilizationPercentage"] = metric["resource"]["target"]["averageUtilization"]
        else:
            rest.append(metric)
    for metric in status.pop("currentMetrics", None) or []:
        if _is_cpu(metric):
            status["currentCPUUtilizationPercentage"] = metric["resource"]["current"]["averageUtilization"]
    kept = {"metrics": rest, "behavior": spec.pop("behavior", None), "conditions": status.pop("conditions", None)}
    notes |= {_ALPHA + name: json.dumps(value, separators=(",", ":")) for name, value in kept.items() if value}
    metadata = {**obj["metadata"], **({"annotations": notes} if notes else {})}
    return {**obj, "metadata": metadata, "spec": spec, "status": status}


def _new_scaler(obj: Object) -> Object:
    spec, status = dict(obj.get("spec") or {}), dict(obj.get("status") or {})
    notes = dict(obj["metadata"].get("annotations") or {})
    parts = {"spec": spec, "status": status}
    for name, (part, field) in _REST.items():
        text = notes.pop(_ALPHA + name, None)
        if text:
            try:
                parts[part][field] = json.loads(text)
            except ValueError:
                continue  # a client wrote it; it says nothing
    share = spec.pop("targetCPUUtilizationPercentage", None)
    if share is not None:
        target = {"type": "Utilization", "averageUtilization": share}
        spec["metrics"] = [
            {"type": "Resource", "resource": {"name": "cpu", "target": target}},
            *spec.get("metrics", []),
        ]
    now = status.pop("currentCPUUtilizationPercentage", None)
    if now is not None:
        status["currentMetrics"] = [
            {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": now}}}
        ]
    metadata = {k: v for k, v in obj["metadata"].items() if k != "annotations"}
    if notes:
        metadata["annotations"] = notes
    return {**obj, "metadata": metadata, "spec": spec, "status": status}


# (group, version, kind) as served -> (apiVersion of the stored form, to it, from it)
_PAIRS: dict[tuple[str, str, str], tuple[str, Callable[[Object], Object], Callable[[Object], Object]]] = {
    ("events.k8s.io", "v1", "Event"): ("v1", _core_event, _new_event),
    ("autoscaling", "v1", "HorizontalPodAutoscaler"): ("autoscaling/v2", _new_scaler, _old_scaler),
}


def _pair(resource: Resource) -> Any:
    return _PAIRS.get((resource.group, resource.version, resource.kind))


def differs(resource: Resource) -> bool:
    """Whether objects of the kind are stored in the form of another version."""
    return resource.custom is not None or _pair(resource) is not None


def stored(resource: Resource, obj: Object) -> Object:
    """Return the form in which an object of this version is stored: the object itself for most kinds."""
    if resource.custom is not None:
        own: Object = resource.custom.strategy.stored(obj)
        return own
    pair = _pair(resource)
    if pair is None:
        return obj
    made, _ = gotypes.decode(pair[0], resource.kind, {**pair[1](obj), "apiVersion": pair[0]})
    return made


def served(resource: Resource, obj: Object) -> Object:
    """Return a stored object as this version shows it. A custom object may be changed."""
    if resource.custom is not None:
        own: Object = resource.custom.strategy.served(obj)
        return own
    pair = _pair(resource)
    if pair is None:
        return obj
    made, _ = gotypes.decode(resource.api_version, resource.kind, pair[2](obj))
    return made


def served_bytes(resource: Resource, raw: bytes) -> bytes:
    """Return the wire form of a stored object, as this version shows it."""
    if not differs(resource):
        return raw
    return codec.dumps(served(resource, codec.decode(raw)))
