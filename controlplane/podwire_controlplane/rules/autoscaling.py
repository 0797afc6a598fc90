"""Validation of HorizontalPodAutoscalers (pkg/apis/autoscaling/validation)."""

from __future__ import annotations

from podwire_base.kube.meta import Object

from . import fields
from .fields import (
    Causes,
    all_invalid,
    forbidden,
    invalid,
    not_supported,
    one_of,
    positive,
    required,
)

_TARGETS = {"Utilization": "averageUtilization", "Value": "value", "AverageValue": "averageValue"}
_METRICS = {"ContainerResource": "containerResource", "External": "external", "Object": "object", "Pods": "pods",
            "Resource": "resource"}  # fmt: skip


def _target_ref(path: str, ref: Object) -> Causes:
    for name in ("kind", "name"):
        value = ref.get(name) or ""
        if not value:
            yield required(f"{path}.{name}")
        else:
            yield from all_invalid(f"{path}.{name}", value, fields.path_segment(value))
    version = ref.get("apiVersion") or ""
    if version.count("/") > 1:
        yield invalid(f"{path}.apiVersion", version, "unexpected GroupVersion string")
    elif not version or ("/" not in version and version != "v1"):
        yield invalid(f"{path}.apiVersion", version, "apiVersion must specify API group")


def _target(path: str, target: Object) -> Causes:
    kind = target.get("type") or ""
    if not kind:
        yield required(f"{path}.type", "must specify a metric target type")
    elif kind not in _TARGETS:
        yield invalid(f"{path}.type", kind, "must be either Utilization, Value, or AverageValue")
    share = target.get("averageUtilization")
    if share is not None and share < 1:
        yield invalid(f"{path}.averageUtilization", share, "must be greater than 0")


def _metric(path: str, metric: Object) -> Causes:
    kind = metric.get("type") or ""
    if not kind:
        yield required(f"{path}.type", "must specify a metric source type")
        return
    if kind not in _METRICS:
        yield not_supported(f"{path}.type", kind, _METRICS)
        return
    field = _METRICS[kind]
    source = metric.get(field)
    if source is None:
        yield required(f"{path}.{field}", f"must populate information for the given metric source of type {kind}")
        return
    for other in _METRICS.values():
        if other != field and metric.get(other) is not None:
            yield forbidden(f"{path}.{other}", "must populate the given metric source only")
    where = f"{path}.{field}"
    if kind in ("Resource", "ContainerResource") and not source.get("name"):
        yield required(f"{where}.name", "must specify a resource name")
    if kind in ("External", "Object", "Pods") and not (source.get("metric") or {}).get("name"):
        yield required(f"{where}.metric.name", "must specify a metric name")
    if kind == "Object":
        yield from _target_ref(f"{where}.describedObject", source.get("describedObject") or {})
    target = source.get("target") or {}
    yield from _target(f"{where}.target", target)
    if kind == "Resource" and not any(target.get(f) is not None for f in ("averageUtilization", "averageValue")):
        yield required(
            f"{where}.target.averageUtilization", "must set either a target raw value or a target utilization"
        )


def scaler(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    low, high = spec.get("minReplicas"), spec.get("maxReplicas") or 0
    if not high:
        yield required("spec.maxReplicas", "must be greater than or equal to 1")
    elif high < 1:
        yield invalid("spec.maxReplicas", high, "must be greater than 0")
    if low is not None and low < 1:
        yield invalid("spec.minReplicas", low, "must be greater than or equal to 1")
    if low is not None and high < low:
        yield invalid("spec.maxReplicas", high, "must be greater than or equal to `minReplicas`")
    yield from _target_ref("spec.scaleTargetRef", spec.get("scaleTargetRef") or {})
    for n, metric in enumerate(spec.get("metrics") or []):
        yield from _metric(f"spec.metrics[{n}]", metric)
    for way in ("scaleUp", "scaleDown"):
        rules = (spec.get("behavior") or {}).get(way)
        if rules is not None:
            yield from _scaling(f"spec.behavior.{way}", rules)


def _scaling(path: str, rules: Object) -> Causes:
    window = rules.get("stabilizationWindowSeconds")
    if window is not None and not 0 <= window <= 3600:
        yield invalid(f"{path}.stabilizationWindowSeconds", window, "must be between 0 and 3600")
    if rules.get("selectPolicy") is not None:
        yield from one_of(f"{path}.selectPolicy", rules["selectPolicy"], ("Disabled", "Max", "Min"))
    if not rules.get("policies"):
        yield required(f"{path}.policies", "must specify at least one Policy")
    for n, policy in enumerate(rules.get("policies") or []):
        where = f"{path}.policies[{n}]"
        yield from one_of(f"{where}.type", policy.get("type"), ("Percent", "Pods"))
        yield from positive(f"{where}.value", policy.get("value") or 0)
        if not 0 < (policy.get("periodSeconds") or 0) <= 1800:
            yield invalid(
                f"{where}.periodSeconds", policy.get("periodSeconds"), "must be greater than zero and at most 1800"
            )


def scaler_v1(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    share = spec.get("targetCPUUtilizationPercentage")
    rest = {k: v for k, v in spec.items() if k != "targetCPUUtilizationPercentage"}
    yield from scaler({"spec": rest})
    if share is not None and share < 1:
        yield invalid("spec.metrics[0].resource.target.averageUtilization", share, "must be greater than 0")
