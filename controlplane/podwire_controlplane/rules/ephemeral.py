"""What the subresources ephemeralcontainers and resize of a pod may change (pkg/apis/core/validation)."""

from __future__ import annotations

import copy

from podwire_base.kube.meta import Object

from ..strategies.podcreate import qos_class
from . import containers, volumes
from .fields import Causes, duplicate, forbidden, invalid

_RESIZED = ("resources", "resizePolicy")
# fields that a container which is started for debugging may not have
_NOT_EPHEMERAL = ("ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resizePolicy")


def added(obj: Object, before: Object) -> Causes:
    """Yield what is wrong with an update of ephemeralcontainers: they may be added, and nothing else."""
    new, old = obj["spec"].get("ephemeralContainers") or [], before["spec"].get("ephemeralContainers") or []
    path = "spec.ephemeralContainers"
    yield from _ephemeral(path, obj["spec"])
    known = {one.get("name"): one for one in new}
    for one in old:
        if one.get("name") not in known:
            text = f"existing ephemeral containers {one.get('name')!r} may not be removed"
            yield forbidden(path, text)
        elif known[one.get("name")] != one:
            yield forbidden(path, f"existing ephemeral containers {one.get('name')!r} may not be changed")


def _ephemeral(path: str, spec: Object) -> Causes:
    names = {c.get("name") for kind in ("containers", "initContainers") for c in spec.get(kind) or []}
    targets = {c.get("name") for c in spec.get("containers") or []}
    known, claims = dict[str, Object](), {c.get("name") or "" for c in spec.get("resourceClaims") or []}
    list(volumes.volumes("spec.volumes", spec.get("volumes") or [], known))  # they were checked when the pod was made
    for n, one in enumerate(spec.get("ephemeralContainers") or []):
        where = f"{path}[{n}]"
        yield from containers.container(where, {**one, "resources": {}}, known, claims, None)
        if one.get("name") in names:
            yield duplicate(f"{where}.name", one.get("name"))
        names.add(one.get("name"))
        target = one.get("targetContainerName")
        if target and target not in targets:
            yield invalid(f"{where}.targetContainerName", target, "no container of this name is in the pod")
        for field in _NOT_EPHEMERAL:
            if one.get(field):
                yield forbidden(f"{where}.{field}", "cannot be set for an Ephemeral Container")
        if one.get("resources"):
            yield forbidden(f"{where}.resources", "cannot be set for an Ephemeral Container")
        for m, mount in enumerate(one.get("volumeMounts") or []):
            for field in ("subPath", "subPathExpr"):
                if mount.get(field):
                    yield forbidden(f"{where}.volumeMounts[{m}].{field}", "cannot be set for an Ephemeral Container")


def resized(obj: Object, before: Object) -> Causes:
    """Yield what is wrong with an update of resize: only CPU and memory of containers may change."""
    new, old = copy.deepcopy(obj["spec"]), before["spec"]
    quality = (before.get("status") or {}).get("qosClass")
    if quality and qos_class(new) != quality:
        yield invalid("spec", quality, "Pod QOS Class may not change as a result of resizing")
    for kind in ("containers", "initContainers"):
        for one, former in zip(new.get(kind) or [], old.get(kind) or [], strict=False):
            for field in _RESIZED:
                one.pop(field, None)
                if field in former:
                    one[field] = former[field]
    if new != old:
        yield forbidden("spec", "only cpu and memory resources are mutable")
