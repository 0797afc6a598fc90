"""What controllers of pods share: a pod from a template, whether it is available, and the Events that they write."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from podwire_base.kube.conditions import condition, is_true
from podwire_base.kube.events import event, reference
from podwire_base.kube.meta import Object, annotations_of, labels, name, namespace
from podwire_base.kube.times import parse_time

from .base import Told, Write, owner_reference

REVISION_HASH = "controller-revision-hash"


def make_pod(
    owner: Object,
    template: Object,
    *,
    own: str = "",
    prefix: str = "",
    extra_labels: Mapping[str, str] | None = None,
    extra_annotations: Mapping[str, str] | None = None,
    finalizers: tuple[str, ...] = (),
) -> Object:
    """Return a pod of `template` whose controller is `owner`. own: its name; without it the API server makes one that
    begins with `prefix` (default: the owner's name).
    """
    metadata: Object = {
        **({"name": own} if own else {"generateName": prefix or f"{name(owner)}-"}),
        "namespace": namespace(owner),
        "labels": {**labels(template), **(extra_labels or {})},
        "annotations": {**annotations_of(template), **(extra_annotations or {})},
        "ownerReferences": [owner_reference(owner)],
    }
    if finalizers:
        metadata["finalizers"] = list(finalizers)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": copy.deepcopy(template["spec"])}


def creates(pod: Object, why: str = "") -> Write:
    return Write("create", "Pod", namespace(pod), name(pod) if "name" in pod["metadata"] else "", pod, why)


def deletes(pod: Object, why: str) -> Write:
    return Write("delete", "Pod", namespace(pod), name(pod), why=why)


def available_in(pod: Object, seconds: int, now: float) -> float | None:
    """Return the seconds until a ready pod has been ready for `seconds` (minReadySeconds), 0 if it has been, None if it
    is not ready.
    """
    if not is_true(pod, "Ready"):
        return None
    since = condition(pod, "Ready").get("lastTransitionTime")
    return max(0.0, parse_time(since).timestamp() + seconds - now) if since and seconds else 0.0


def changed_status(kind: str, obj: Object, status: Object) -> list[Write]:
    """Return the write of the fields in `status`, or nothing if the object has them. A field that is absent is as good
    as an empty one or 0: the API server leaves such out.
    """
    before = obj.get("status") or {}
    if all((before.get(field) or None) == (value or None) for field, value in status.items()):
        return []
    return [Write("status", kind, namespace(obj), name(obj), {"status": status})]


def tells(
    kind: str, obj: Object, reason: str, message: str, now: float, *, warning: bool = False, once: str = ""
) -> Write:
    """Return the write of an Event about `obj`. once: a word that makes it the same Event at each telling."""
    told = event(
        reference(kind, obj, str(obj.get("apiVersion") or "v1")),
        reason,
        message,
        now,
        warning=warning,
        component=f"{kind.lower()}-controller",
        suffix=once,
    )
    return Write("create", "Event", namespace(obj), told["metadata"].get("name", ""), told, message)


_WORDS = {  # kind -> what its Events say of a pod, or of a CronJob's Job, that was created or deleted
    "CronJob": ("Created job {name}", "Deleted job {name}"),
    "StatefulSet": (
        "create Pod {name} in StatefulSet {owner} successful",
        "delete Pod {name} in StatefulSet {owner} successful",
    ),
}
_PLAIN = ("Created pod: {name}", "Deleted pod: {name}")
_COMPONENTS = {"DaemonSet": "daemonset-controller", "Job": "job-controller", "StatefulSet": "statefulset-controller"}


def telling(kind: str, owner: Object, changes: list[Write]) -> list[Write]:
    """Return the writes with the Events about `owner` that tell of each created or deleted pod (of a CronJob: Job), in
    upstream's words.
    """
    what = "Job" if kind == "CronJob" else "Pod"
    about = reference(kind, owner, str(owner.get("apiVersion") or ("batch/v1" if "Job" in kind else "apps/v1")))
    created, deleted = (words.replace("{owner}", name(owner)) for words in _WORDS.get(kind, _PLAIN))
    component = _COMPONENTS.get(kind, "cronjob-controller")
    by_verb = {
        "create": Told(about, "SuccessfulCreate", created, component, "FailedCreate"),
        "delete": Told(about, "SuccessfulDelete", deleted, component, "FailedDelete"),
    }
    return [replace(w, told=by_verb[w.verb]) if w.kind == what and w.verb in by_verb else w for w in changes]


def number(obj: Mapping[str, Any], field: str, absent: int) -> int:
    """Return a whole number of a spec; `absent` where it is missing or null."""
    found = obj.get(field)
    return absent if found is None else int(found)
