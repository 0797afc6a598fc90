"""Validation of the kinds that make pods, but for those of batch (pkg/apis/apps/validation, pkg/apis/core)."""

from __future__ import annotations

from typing import Any

from podwire_base.kube.meta import Object, labels
from podwire_base.kube.selectors import label_selector as parse_selector
from podwire_base.numerals import INT32, decimal

from . import fields, meta, pods
from .fields import (
    Causes,
    all_invalid,
    forbidden,
    invalid,
    not_negative,
    not_supported,
    one_of,
    required,
)


def int_or_percent(path: str, value: Any) -> Causes:
    """A number from 0, or a percentage."""
    if isinstance(value, str):
        yield from all_invalid(path, value, fields.percent(value))
    elif isinstance(value, int):
        yield from not_negative(path, value)


def at_most_all(path: str, value: Any) -> Causes:
    if isinstance(value, str) and not fields.percent(value) and _share(value) > 100:
        yield invalid(path, value, "must not be greater than 100%")


def _share(value: Any) -> int:
    """Return the number of a count or percentage, 0 for what is neither."""
    if isinstance(value, int):
        return value
    if not isinstance(value, str) or fields.percent(value):
        return 0
    number = decimal(value[:-1], INT32)
    return INT32 if number is None else number


def matches(selector: Object | None, template: Object) -> bool | None:
    """Whether the labels of a template satisfy a selector; None if the selector cannot be read."""
    if any(t.get("operator") not in ("In", "NotIn", "Exists", "DoesNotExist")
           for t in (selector or {}).get("matchExpressions") or []):  # fmt: skip
        return None
    return parse_selector(selector)(labels({"metadata": template.get("metadata") or {}}))


def _selector(spec: Object, needed: bool) -> Causes:
    selector = spec.get("selector")
    if selector is None:
        if needed:
            yield required("spec.selector")
        return
    yield from meta.label_selector("spec.selector", selector)
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        yield invalid("spec.selector", selector, "empty selector is invalid for this kind")


def _template(spec: Object, selector: Object | None, always: bool = True) -> Causes:
    found = spec.get("template") or {}
    fits = matches(selector, found)
    if fits is None:
        yield invalid("spec.selector", selector, "invalid label selector")
        return
    empty = selector is not None and not selector.get("matchLabels") and not selector.get("matchExpressions")
    if not empty and not fits:
        yield invalid("spec.template.metadata.labels", labels(found), "`selector` does not match template `labels`")
    yield from _pod_template(found)
    inner = found.get("spec") or {}
    if always and inner.get("restartPolicy") in pods.RESTART and inner["restartPolicy"] != "Always":
        yield not_supported("spec.template.spec.restartPolicy", inner["restartPolicy"], ("Always",))
    if always and inner.get("activeDeadlineSeconds") is not None:
        yield forbidden(
            "spec.template.spec.activeDeadlineSeconds", "activeDeadlineSeconds in ReplicaSet is not supported"
        )


def _pod_template(found: Object) -> Causes:
    yield from pods.template("spec.template", found)


def deployment(obj: Object) -> Causes:
    spec = obj["spec"]
    yield from not_negative("spec.replicas", spec.get("replicas"))
    yield from _selector(spec, needed=True)
    yield from _template(spec, spec.get("selector"))
    strategy = spec.get("strategy") or {}
    if strategy.get("type") == "Recreate":
        if strategy.get("rollingUpdate") is not None:
            yield forbidden("spec.strategy.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'")
    elif strategy.get("type") == "RollingUpdate":
        yield from _rolling("spec.strategy.rollingUpdate", strategy.get("rollingUpdate") or {})
    elif strategy.get("type"):
        yield not_supported("spec.strategy.type", strategy["type"], ("Recreate", "RollingUpdate"))
    yield from not_negative("spec.minReadySeconds", spec.get("minReadySeconds"))
    yield from not_negative("spec.revisionHistoryLimit", spec.get("revisionHistoryLimit"))
    deadline = spec.get("progressDeadlineSeconds")
    if deadline is not None:
        yield from not_negative("spec.progressDeadlineSeconds", deadline)
        if deadline <= (spec.get("minReadySeconds") or 0):
            yield invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds")


def _rolling(path: str, found: Object) -> Causes:
    down, up = found.get("maxUnavailable"), found.get("maxSurge")
    yield from int_or_percent(f"{path}.maxUnavailable", down)
    yield from int_or_percent(f"{path}.maxSurge", up)
    if _share(down) == 0 and _share(up) == 0:
        yield invalid(f"{path}.maxUnavailable", down, "may not be 0 when `maxSurge` is 0")
    yield from at_most_all(f"{path}.maxUnavailable", down)


def _counts(obj: Object, names: tuple[str, ...]) -> Causes:
    for name in names:
        yield from not_negative(f"status.{name}", (obj.get("status") or {}).get(name))


def deployment_status(obj: Object, before: Object) -> Causes:
    status = obj.get("status") or {}
    yield from _counts(obj, ("observedGeneration", "replicas", "updatedReplicas", "readyReplicas", "availableReplicas",
                             "unavailableReplicas", "collisionCount"))  # fmt: skip
    total = status.get("replicas") or 0
    for name in ("updatedReplicas", "readyReplicas", "availableReplicas"):
        if (status.get(name) or 0) > total:
            yield invalid(f"status.{name}", status.get(name) or 0, "cannot be greater than status.replicas")
    if (status.get("availableReplicas") or 0) > (status.get("readyReplicas") or 0):
        yield invalid(
            "status.availableReplicas", status.get("availableReplicas"), "cannot be greater than readyReplicas"
        )
    was = (before.get("status") or {}).get("collisionCount")
    if was is not None and (status.get("collisionCount") or 0) < was:
        yield invalid("status.collisionCount", status.get("collisionCount"), "cannot be decremented")


def deployment_update(obj: Object, before: Object) -> Causes:
    if obj["spec"].get("selector") != before["spec"].get("selector"):
        yield meta.immutable("spec.selector", obj["spec"].get("selector"))


def replica_set(obj: Object) -> Causes:
    spec = obj["spec"]
    yield from not_negative("spec.replicas", spec.get("replicas"))
    yield from not_negative("spec.minReadySeconds", spec.get("minReadySeconds"))
    yield from _selector(spec, needed=True)
    yield from _template(spec, spec.get("selector"))


def replica_status(obj: Object, _before: Object) -> Causes:
    status = obj.get("status") or {}
    yield from _counts(
        obj, ("replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration")
    )
    total = status.get("replicas") or 0
    for name in ("fullyLabeledReplicas", "readyReplicas", "availableReplicas"):
        if (status.get(name) or 0) > total:
            yield invalid(f"status.{name}", status.get(name) or 0, "cannot be greater than status.replicas")
    if (status.get("availableReplicas") or 0) > (status.get("readyReplicas") or 0):
        yield invalid(
            "status.availableReplicas", status.get("availableReplicas"), "cannot be greater than readyReplicas"
        )


def replication_controller(obj: Object) -> Causes:
    spec = obj["spec"]
    yield from not_negative("spec.minReadySeconds", spec.get("minReadySeconds"))
    if not spec.get("selector"):
        yield required("spec.selector")
    yield from not_negative("spec.replicas", spec.get("replicas"))
    if spec.get("template") is None:
        yield required("spec.template")
    elif spec.get("selector"):
        yield from _template(spec, {"matchLabels": spec["selector"]})
    else:
        yield from _pod_template(spec["template"])


def daemon_set(obj: Object) -> Causes:
    spec = obj["spec"]
    yield from _selector(spec, needed=False)
    yield from _template(spec, spec.get("selector"))
    yield from not_negative("spec.minReadySeconds", spec.get("minReadySeconds"))
    update = spec.get("updateStrategy") or {}
    if update.get("type") == "RollingUpdate":
        rolling = update.get("rollingUpdate")
        if rolling is None:
            yield required("spec.updateStrategy.rollingUpdate")
        else:
            yield from _daemon_rolling("spec.updateStrategy.rollingUpdate", rolling)
    elif update.get("type") != "OnDelete":
        yield not_supported("spec.updateStrategy", update.get("type"), ("OnDelete", "RollingUpdate"))
    yield from not_negative("spec.revisionHistoryLimit", spec.get("revisionHistoryLimit"))


def _daemon_rolling(path: str, rolling: Object) -> Causes:
    down, up = rolling.get("maxUnavailable"), rolling.get("maxSurge")
    for name, value in (("maxUnavailable", down), ("maxSurge", up)):
        yield from int_or_percent(f"{path}.{name}", value)
        yield from at_most_all(f"{path}.{name}", value)
    if _share(down) and _share(up):
        yield invalid(f"{path}.maxSurge", up, "may not be set when maxUnavailable is non-zero")
    if not _share(down) and not _share(up):
        yield required(f"{path}.maxUnavailable", "cannot be 0 when maxSurge is 0")


def stateful_set(obj: Object) -> Causes:
    spec = obj["spec"]
    yield from one_of("spec.podManagementPolicy", spec.get("podManagementPolicy") or "", ("OrderedReady", "Parallel"))
    update = spec.get("updateStrategy") or {}
    if not update.get("type"):
        yield required("spec.updateStrategy")
    elif update["type"] == "OnDelete":
        if update.get("rollingUpdate") is not None:
            yield invalid(
                "spec.updateStrategy.rollingUpdate",
                update["rollingUpdate"],
                "only allowed for updateStrategy 'RollingUpdate'",
            )
    elif update["type"] == "RollingUpdate":
        rolling = update.get("rollingUpdate") or {}
        yield from not_negative("spec.updateStrategy.rollingUpdate.partition", rolling.get("partition"))
        yield from int_or_percent("spec.updateStrategy.rollingUpdate.maxUnavailable", rolling.get("maxUnavailable"))
    else:
        yield invalid("spec.updateStrategy", update, "must be 'RollingUpdate' or 'OnDelete'")
    for name, value in (spec.get("persistentVolumeClaimRetentionPolicy") or {}).items():
        yield from one_of(f"spec.persistentVolumeClaimRetentionPolicy.{name}", value, ("Delete", "Retain"))
    yield from not_negative("spec.replicas", spec.get("replicas"))
    yield from not_negative("spec.minReadySeconds", spec.get("minReadySeconds"))
    yield from not_negative("spec.ordinals.start", (spec.get("ordinals") or {}).get("start"))
    yield from _selector(spec, needed=True)
    yield from _template(spec, spec.get("selector"), always=False)
    inner = (spec.get("template") or {}).get("spec") or {}
    if inner.get("restartPolicy") in pods.RESTART and inner["restartPolicy"] != "Always":
        yield not_supported("spec.template.spec.restartPolicy", inner["restartPolicy"], ("Always",))
    if inner.get("activeDeadlineSeconds") is not None:
        yield forbidden(
            "spec.template.spec.activeDeadlineSeconds", "activeDeadlineSeconds in StatefulSet is not Supported"
        )


_STATEFUL_FREE = ("replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit",
                  "persistentVolumeClaimRetentionPolicy", "minReadySeconds")  # fmt: skip


def stateful_set_update(obj: Object, before: Object) -> Causes:
    ours, theirs = ({k: v for k, v in o["spec"].items() if k not in _STATEFUL_FREE} for o in (obj, before))
    if ours != theirs:
        yield forbidden("spec", "updates to statefulset spec for fields other than "
                        + ", ".join(f"'{f}'" for f in _STATEFUL_FREE) + " are forbidden")  # fmt: skip


def revision(obj: Object) -> Causes:
    if obj.get("data") is None:
        yield required("data", "data is mandatory")
    yield from not_negative("revision", obj.get("revision"))


def revision_update(obj: Object, before: Object) -> Causes:
    if obj.get("data") != before.get("data"):
        yield meta.immutable("data", obj.get("data"))


def pod_template(obj: Object) -> Causes:
    yield from pods.template("template", obj.get("template") or {})


def scale(obj: Object) -> Causes:
    yield from not_negative("spec.replicas", (obj.get("spec") or {}).get("replicas"))


def budget(obj: Object) -> Causes:
    """PodDisruptionBudget."""
    spec = obj.get("spec") or {}
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        yield invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set")
    for name in ("minAvailable", "maxUnavailable"):
        if spec.get(name) is not None:
            yield from int_or_percent(f"spec.{name}", spec[name])
            yield from at_most_all(f"spec.{name}", spec[name])
    yield from meta.label_selector("spec.selector", spec.get("selector"))
    policy = spec.get("unhealthyPodEvictionPolicy")
    if policy is not None and policy not in ("AlwaysAllow", "IfHealthyBudget"):
        yield not_supported("spec.unhealthyPodEvictionPolicy", policy, ("AlwaysAllow", "IfHealthyBudget"))
