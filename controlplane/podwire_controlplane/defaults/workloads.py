"""Defaults of the kinds that make pods (pkg/apis/apps/v1, pkg/apis/batch/v1, pkg/apis/core/v1)."""

from __future__ import annotations

from typing import Any

from podwire_base.kube.meta import Object, labels

from .pods import claim_spec, pod_spec, put

_SHARE = "25%"
_ROLLING = "RollingUpdate"


def _spec(obj: Object) -> Object:
    """Return the spec, with the defaults of its template."""
    spec: Object = obj.setdefault("spec", {})
    pod_spec(spec.setdefault("template", {}).setdefault("spec", {}))
    return spec


def _absent(obj: Object, **values: Any) -> None:
    for field, value in values.items():
        if obj.get(field) is None:
            obj[field] = value


def deployment(obj: Object) -> None:
    spec = _spec(obj)
    _absent(spec, replicas=1, revisionHistoryLimit=10, progressDeadlineSeconds=600)
    strategy = spec.setdefault("strategy", {})
    put(strategy, type=_ROLLING)
    if strategy["type"] == _ROLLING:
        _absent(strategy, rollingUpdate={})
        _absent(strategy["rollingUpdate"], maxUnavailable=_SHARE, maxSurge=_SHARE)


def replica_set(obj: Object) -> None:
    _absent(_spec(obj), replicas=1)


def replication_controller(obj: Object) -> None:
    spec = _spec(obj)
    _absent(spec, replicas=1)
    own = labels(spec["template"])
    if own and not spec.get("selector"):
        spec["selector"] = dict(own)
    if own and not labels(obj):
        obj["metadata"]["labels"] = dict(own)


def stateful_set(obj: Object) -> None:
    spec = _spec(obj)
    put(spec, podManagementPolicy="OrderedReady")
    update = spec.setdefault("updateStrategy", {})
    put(update, type=_ROLLING)
    if update["type"] == _ROLLING:
        _absent(update, rollingUpdate={})
        _absent(update["rollingUpdate"], partition=0)
    _absent(spec, persistentVolumeClaimRetentionPolicy={}, replicas=1, revisionHistoryLimit=10)
    put(spec["persistentVolumeClaimRetentionPolicy"], whenDeleted="Retain", whenScaled="Retain")
    for claim in spec.get("volumeClaimTemplates") or []:
        put(claim, kind="PersistentVolumeClaim", apiVersion="v1")
        claim_spec(claim.setdefault("spec", {}))
        put(claim.setdefault("status", {}), phase="Pending")


def daemon_set(obj: Object) -> None:
    spec = _spec(obj)
    update = spec.setdefault("updateStrategy", {})
    put(update, type=_ROLLING)
    if update["type"] == _ROLLING:
        _absent(update, rollingUpdate={})
        _absent(update["rollingUpdate"], maxUnavailable=1, maxSurge=0)
    _absent(spec, revisionHistoryLimit=10)


def job_spec(spec: Object) -> None:
    pod_spec(spec.setdefault("template", {}).setdefault("spec", {}))
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = spec["parallelism"] = 1
    _absent(spec, parallelism=1, completionMode="NonIndexed", suspend=False, manualSelector=False)
    _absent(spec, backoffLimit=2**31 - 1 if spec.get("backoffLimitPerIndex") is not None else 6)
    policy = spec.get("podFailurePolicy")
    for rule in (policy or {}).get("rules") or []:
        for pattern in rule.get("onPodConditions") or []:
            put(pattern, status="True")
    _absent(spec, podReplacementPolicy="Failed" if policy is not None else "TerminatingOrFailed")


def job(obj: Object) -> None:
    job_spec(obj.setdefault("spec", {}))
    own = labels(obj["spec"]["template"])
    if own and not labels(obj):
        obj["metadata"]["labels"] = dict(own)


def cron_job(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    put(spec, concurrencyPolicy="Allow")
    _absent(spec, suspend=False, successfulJobsHistoryLimit=3, failedJobsHistoryLimit=1)
    inner = spec.setdefault("jobTemplate", {}).setdefault("spec", {})
    pod_spec(inner.setdefault("template", {}).setdefault("spec", {}))


def pod_template(obj: Object) -> None:
    pod_spec(obj.setdefault("template", {}).setdefault("spec", {}))
