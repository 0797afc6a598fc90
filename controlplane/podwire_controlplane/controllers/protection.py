"""Storage that is in use is not deleted. Pure.

Admission gives claims, volumes and VolumeAttributesClasses a finalizer (admission.protect). When such an object is
being deleted, these controllers remove the finalizer as soon as nothing uses it: no pod the claim, no claim the
volume, no claim and no volume the class.
"""

from __future__ import annotations

from collections.abc import Iterator

from podwire_base.kube.meta import Object, deleting, key, name, namespace, uid

from ..admission import PROTECTED
from .base import Controller, Keys, Snapshot, Write, pod_ended

_CLASS = "volumeAttributesClassName"


def claims_of(pod: Object) -> Iterator[str]:
    """Yield the names of the claims that a pod uses. An ephemeral volume's claim is called after pod and volume."""
    for volume in pod["spec"].get("volumes") or []:
        if claim := volume.get("persistentVolumeClaim"):
            yield str(claim.get("claimName"))
        elif volume.get("ephemeral") is not None:
            yield f"{name(pod)}-{volume.get('name')}"


def _released(obj: Object) -> list[Write]:
    mine = PROTECTED[obj["kind"]]
    held = obj["metadata"].get("finalizers") or []
    left = [one for one in held if one != mine]
    change = {
        "metadata": {"uid": uid(obj), "resourceVersion": obj["metadata"].get("resourceVersion"), "finalizers": left}
    }
    return [Write("patch", obj["kind"], namespace(obj), name(obj), change, "nothing uses it")]


def _goes(obj: Object | None) -> bool:
    """Whether an object waits for its protection to end."""
    return obj is not None and deleting(obj) and PROTECTED[obj["kind"]] in (obj["metadata"].get("finalizers") or [])


def reconcile_claim(wanted: str, snapshot: Snapshot, _now: float) -> list[Write]:
    claim = snapshot.get("PersistentVolumeClaim", wanted)
    if claim is None or not _goes(claim):
        return []
    for pod in snapshot.list("Pod", namespace(claim)):
        if pod["spec"].get("nodeName") and not pod_ended(pod) and name(claim) in claims_of(pod):
            return []
    return _released(claim)


def reconcile_volume(wanted: str, snapshot: Snapshot, _now: float) -> list[Write]:
    volume = snapshot.get("PersistentVolume", wanted)
    bound = volume is not None and (volume.get("status") or {}).get("phase") == "Bound"
    return [] if volume is None or bound or not _goes(volume) else _released(volume)


def reconcile_class(wanted: str, snapshot: Snapshot, _now: float) -> list[Write]:
    found = snapshot.get("VolumeAttributesClass", wanted)
    if found is None or not _goes(found):
        return []
    for volume in snapshot.list("PersistentVolume"):
        if (volume.get("spec") or {}).get(_CLASS) == wanted:
            return []
    for claim in snapshot.list("PersistentVolumeClaim"):
        spec, status = claim.get("spec") or {}, claim.get("status") or {}
        names = (spec.get(_CLASS), status.get("currentVolumeAttributesClassName"))
        if wanted in (*names, (status.get("modifyVolumeStatus") or {}).get("targetVolumeAttributesClassName")):
            return []
    return _released(found)


def _itself(obj: Object, _snapshot: Snapshot) -> Keys:
    return (key(obj),)


def _claims(pod: Object, snapshot: Snapshot) -> Keys:
    for one in claims_of(pod):
        if _goes(snapshot.get("PersistentVolumeClaim", f"{namespace(pod)}/{one}")):
            yield f"{namespace(pod)}/{one}"


def _classes(_obj: Object, snapshot: Snapshot) -> Keys:
    return [name(one) for one in snapshot.list("VolumeAttributesClass") if _goes(one)]


CONTROLLERS = (
    Controller("pvc-protection", {"PersistentVolumeClaim": _itself, "Pod": _claims}, reconcile_claim),
    Controller("pv-protection", {"PersistentVolume": _itself}, reconcile_volume),
    Controller(
        "vac-protection",
        {"VolumeAttributesClass": _itself, "PersistentVolumeClaim": _classes, "PersistentVolume": _classes},
        reconcile_class,
    ),
)
