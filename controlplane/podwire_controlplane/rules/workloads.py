"""Validation of the kinds that make pods (pkg/apis/apps/validation, pkg/apis/batch/validation, pkg/apis/core)."""

from __future__ import annotations

import copy
import zoneinfo
from typing import Any

from podwire_base.kube.meta import Object, labels
from podwire_base.kube.selectors import label_selector as parse_selector
from podwire_base.numerals import INT32, decimal

from . import fields, meta, pods
from .cron import BadSchedule, parse
from .fields import (
    Causes,
    all_invalid,
    forbidden,
    invalid,
    not_negative,
    not_supported,
    one_of,
    positive,
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


def _matches(selector: Object | None, template: Object) -> bool | None:
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
    fits = _matches(selector, found)
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


# ---- apps


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


# ---- batch


def job_spec(path: str, spec: Object) -> Causes:
    for name in ("parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished",
                 "backoffLimitPerIndex", "maxFailedIndexes"):  # fmt: skip
        yield from not_negative(f"{path}.{name}", spec.get(name))
    mode = spec.get("completionMode")
    if mode is not None and mode not in ("Indexed", "NonIndexed"):
        yield not_supported(f"{path}.completionMode", mode, ("Indexed", "NonIndexed"))
    if mode == "Indexed":
        if spec.get("completions") is None:
            yield required(f"{path}.completions", "when completion mode is Indexed")
    else:
        for name in ("backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"):
            if spec.get(name) is not None:
                yield invalid(f"{path}.{name}", spec[name], "requires indexed completion mode")
    manager = spec.get("managedBy")
    if manager is not None:
        yield from all_invalid(f"{path}.managedBy", manager, fields.domain_prefixed(manager))
    if spec.get("successPolicy") is not None and not spec["successPolicy"].get("rules"):
        yield required(f"{path}.successPolicy.rules", "at least one rule must be specified")
    inner = (spec.get("template") or {}).get("spec") or {}
    yield from _failure_policy(path, spec, inner)
    yield from _job_template(path, spec, inner)


def _job_template(path: str, spec: Object, inner: Object) -> Causes:
    yield from pods.template(f"{path}.template", spec.get("template") or {})
    restart = inner.get("restartPolicy")
    where = f"{path}.template.spec.restartPolicy"
    if restart in ("", None, "Always"):
        yield required(where, 'valid values: "OnFailure", "Never"')
    elif restart not in ("OnFailure", "Never"):
        yield not_supported(where, restart, ("OnFailure", "Never"))
    elif spec.get("podFailurePolicy") is not None and restart != "Never":
        yield invalid(where, restart, 'only "Never" is supported when podFailurePolicy is specified')


def _failure_policy(path: str, spec: Object, inner: Object) -> Causes:
    names = {c.get("name") for k in ("containers", "initContainers") for c in inner.get(k) or []}
    for n, rule in enumerate((spec.get("podFailurePolicy") or {}).get("rules") or []):
        where = f"{path}.podFailurePolicy.rules[{n}]"
        if not rule.get("action"):
            yield required(f"{where}.action", "valid values: Count, FailIndex, FailJob, Ignore")
        else:
            yield from one_of(f"{where}.action", rule["action"], ("Count", "FailIndex", "FailJob", "Ignore"))
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions") or []
        if codes is not None and conditions:
            yield invalid(where, "", "specifying both OnExitCodes and OnPodConditions is not supported")
        if codes is None and not conditions:
            yield invalid(where, "", "specifying one of OnExitCodes and OnPodConditions is required")
        if codes is not None:
            yield from _exit_codes(f"{where}.onExitCodes", codes, names)
        for m, one in enumerate(conditions):
            yield from all_invalid(
                f"{where}.onPodConditions[{m}].type", one.get("type"), fields.qualified(one.get("type") or "")
            )
            yield from one_of(f"{where}.onPodConditions[{m}].status", one.get("status"), ("False", "True", "Unknown"))


def _exit_codes(path: str, codes: Object, names: set[Any]) -> Causes:
    yield from one_of(f"{path}.operator", codes.get("operator"), ("In", "NotIn"))
    own, values = codes.get("containerName"), codes.get("values") or []
    if own is not None and own not in names:
        yield invalid(
            f"{path}.containerName", own, "must be one of the container or initContainer names in the pod template"
        )
    if not values:
        yield invalid(f"{path}.values", values, "at least one value is required")
    for n, value in enumerate(values):
        if codes.get("operator") == "In" and value == 0:
            yield invalid(f"{path}.values[{n}]", value, "must not be 0 for the In operator")
        if value in values[:n]:
            yield fields.duplicate(f"{path}.values[{n}]", value)


def job(obj: Object) -> Causes:
    spec = obj["spec"]
    yield from job_spec("spec", spec)
    selector = spec.get("selector")
    if selector is None:
        yield required("spec.selector")
    else:
        yield from meta.label_selector("spec.selector", selector)
        if _matches(selector, spec.get("template") or {}) is False:
            yield invalid(
                "spec.template.metadata.labels",
                labels(spec.get("template") or {}),
                "`selector` does not match template `labels`",
            )


def job_update(obj: Object, before: Object) -> Causes:
    new, old = obj["spec"], before["spec"]
    for name in (
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "successPolicy",
        "managedBy",
    ):
        if new.get(name) != old.get(name):
            yield meta.immutable(f"spec.{name}", new.get(name))
    if new.get("completions") != old.get("completions"):
        indexed = new.get("completionMode") == "Indexed"
        if (
            not indexed
            or new.get("completions") != new.get("parallelism")
            or old.get("completions") != old.get("parallelism")
        ):
            yield meta.immutable("spec.completions", new.get("completions"))
    ours, theirs = ((o.get("template") or {}).get("spec") for o in (new, old))
    if ours != theirs and not _resumable(ours, theirs, before):
        yield meta.immutable("spec.template.spec", ours)


def _resumable(ours: Any, theirs: Any, before: Object) -> bool:
    """A suspended Job that never started may change where its pods run."""
    if not before["spec"].get("suspend") or (before.get("status") or {}).get("startTime"):
        return False
    ours = copy.deepcopy(ours or {})
    for name in ("affinity", "nodeSelector", "tolerations", "schedulingGates"):
        ours.pop(name, None)
        if name in (theirs or {}):
            ours[name] = theirs[name]
    return bool(ours == theirs)


def cron_job(obj: Object) -> Causes:
    spec, own = obj["spec"], obj["metadata"].get("name") or ""
    schedule = spec.get("schedule") or ""
    if not schedule:
        yield required("spec.schedule")
    elif "TZ" in schedule:
        yield invalid("spec.schedule", schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead")
    else:
        try:
            parse(schedule)
        except BadSchedule as err:
            yield invalid("spec.schedule", schedule, str(err))
    yield from not_negative("spec.startingDeadlineSeconds", spec.get("startingDeadlineSeconds"))
    yield from _zone(spec.get("timeZone"))
    if not spec.get("concurrencyPolicy"):
        yield required("spec.concurrencyPolicy")
    else:
        yield from one_of("spec.concurrencyPolicy", spec["concurrencyPolicy"], ("Allow", "Forbid", "Replace"))
    for name in ("successfulJobsHistoryLimit", "failedJobsHistoryLimit"):
        yield from not_negative(f"spec.{name}", spec.get(name))
    inner = (spec.get("jobTemplate") or {}).get("spec") or {}
    yield from job_spec("spec.jobTemplate.spec", inner)
    if len(own) > 52:  # a Job's name is 11 characters longer, and its pods carry it in a label
        yield invalid("metadata.name", own, "must be no more than 52 characters")


def _zone(name: Any) -> Causes:
    if name is None:
        return
    if not name:
        yield invalid("spec.timeZone", name, "timeZone must be nil or non-empty string")
    elif name.lower() == "local":
        yield invalid("spec.timeZone", name, "timeZone must be an explicit time zone as defined in the tz database")
    elif not _known_zone(name) and _known_zone("UTC"):  # a machine without time zones cannot judge
        yield invalid("spec.timeZone", name, "unknown time zone " + name)


def _known_zone(name: str) -> bool:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


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


# ---- autoscaling

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
