"""What the subresources of a pod write, and what they carry over (pkg/registry/core/pod/strategy.go)."""

from __future__ import annotations

from collections.abc import Iterable

from podwire_base.kube.meta import Object

_METADATA = ("labels", "annotations", "finalizers", "ownerReferences")  # not written by subresources
_RESIZED = ("resources", "resizePolicy")


def keep(obj: Object, before: Object, fields: Iterable[str]) -> None:
    """Give fields the value that they had before."""
    for field in fields:
        obj.pop(field, None)
        if field in before:
            obj[field] = before[field]


def _but_spec(obj: Object, before: Object) -> None:
    keep(obj["metadata"], before["metadata"], _METADATA)
    keep(obj, before, ("status",))


def only_ephemeral(obj: Object, before: Object) -> None:
    new = (obj.get("spec") or {}).get("ephemeralContainers")
    _but_spec(obj, before)
    obj["spec"] = {k: v for k, v in before["spec"].items() if k != "ephemeralContainers"}
    if new:
        obj["spec"]["ephemeralContainers"] = new


def only_resources(obj: Object, before: Object) -> None:
    """Containers that are added, removed or renamed stay in the object, so that its validation refuses them."""
    spec, old = obj.get("spec") or {}, before["spec"]
    made = dict(old)
    for kind in ("containers", "initContainers"):
        ours, theirs = spec.get(kind) or [], old.get(kind) or []
        if [c.get("name") for c in ours] != [c.get("name") for c in theirs]:
            return
        if theirs:
            made[kind] = [_resized(one, former) for one, former in zip(ours, theirs, strict=True)]
    _but_spec(obj, before)
    obj["spec"] = made


def _resized(one: Object, former: Object) -> Object:
    return {k: v for k, v in former.items() if k not in _RESIZED} | {k: one[k] for k in _RESIZED if k in one}


def status_kept(obj: Object, before: Object) -> None:
    """The quality of service never changes, and a writer who knows no observedGeneration does not remove it."""
    new, old = obj.setdefault("status", {}), before.get("status") or {}
    for field in ("qosClass", "observedGeneration"):
        if not new.get(field) and old.get(field):
            new[field] = old[field]
    known: dict[str, list[int]] = {}
    for row in old.get("conditions") or []:
        known.setdefault(row.get("type") or "", []).append(row.get("observedGeneration") or 0)
    for row in new.get("conditions") or []:
        left = known.get(row.get("type") or "")
        seen = left.pop(0) if left else 0
        if seen and not row.get("observedGeneration"):
            row["observedGeneration"] = seen
