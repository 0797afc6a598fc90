"""Validation of Jobs and CronJobs (pkg/apis/batch/validation)."""

from __future__ import annotations

import copy
import zoneinfo
from typing import Any

from podwire_base.kube.meta import Object, labels

from . import fields, meta, pods
from .cron import BadSchedule, parse
from .fields import (
    Causes,
    all_invalid,
    invalid,
    not_negative,
    not_supported,
    one_of,
    required,
)
from .workloads import matches


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
        if matches(selector, spec.get("template") or {}) is False:
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
