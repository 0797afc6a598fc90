"""Strategies of the kinds that make pods, and of a few others with something to decide at creation."""

from __future__ import annotations

from typing import ClassVar

from podwire_base.kube.meta import Object, labels, name, uid

from ..custom.names import FINALIZER, terminating
from .base import dig
from .core import Counted, storage_version

_GENERATION = "deprecated.daemonset.template.generation"
_BATCH = "batch.kubernetes.io/"


class DeploymentStrategy(Counted):
    status_labels: ClassVar[bool] = False

    def changed(self, obj: Object, before: Object) -> bool:
        notes = [o["metadata"].get("annotations") or {} for o in (obj, before)]
        return super().changed(obj, before) or notes[0] != notes[1]


class DaemonSetStrategy(Counted):
    """An annotation counts the changes of the template: it stands for a field that apps/v1 no longer has."""

    def prepare_create(self, obj: Object) -> None:
        super().prepare_create(obj)
        self._count(obj, 1)

    def prepare_update(self, obj: Object, before: Object) -> None:
        super().prepare_update(obj, before)
        now = int((before["metadata"].get("annotations") or {}).get(_GENERATION) or 0)
        changed = dig(obj, "spec", "template") != dig(before, "spec", "template")
        self._count(obj, now + changed)

    @staticmethod
    def _count(obj: Object, number: int) -> None:
        obj["metadata"]["annotations"] = {**(obj["metadata"].get("annotations") or {}), _GENERATION: str(number)}


class JobStrategy(Counted):
    """Without manualSelector, a Job selects its pods by its own uid."""

    def prepare_create(self, obj: Object) -> None:
        super().prepare_create(obj)
        spec = obj["spec"]
        if spec.get("manualSelector"):
            return
        spec["manualSelector"] = False
        own = {
            "controller-uid": uid(obj),
            "job-name": name(obj),
            _BATCH + "controller-uid": uid(obj),
            _BATCH + "job-name": name(obj),
        }
        template = spec["template"].setdefault("metadata", {})
        template["labels"] = {**labels({"metadata": template}), **own}
        selector = spec.get("selector") or {}
        matched = {**(selector.get("matchLabels") or {}), _BATCH + "controller-uid": uid(obj)}
        spec["selector"] = {**selector, "matchLabels": matched}


class DefinitionStrategy(Counted):
    """CustomResourceDefinition: the status remembers every version in which objects were ever stored."""

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"storedVersions": storage_version(obj)}

    def mark_deleted(self, obj: Object) -> None:
        """The definition stays until its objects are gone."""
        held = obj["metadata"].get("finalizers") or []
        if FINALIZER not in held:
            obj["metadata"]["finalizers"] = [*held, FINALIZER]
        terminating(obj, "Pending", obj["metadata"]["deletionTimestamp"])

    def prepare_update(self, obj: Object, before: Object) -> None:
        super().prepare_update(obj, before)
        status = obj.setdefault("status", {})
        known = status.get("storedVersions") or []
        status["storedVersions"] = [*known, *(v for v in storage_version(obj) if v not in known)]
