"""The subresource scale: an autoscaling/v1 Scale in the place of a whole object, and who manages its replicas.

A Scale shows the entries of managedFields that own the replicas, as if they were about the Scale. What a write makes of
them goes back into the object. Source: the scale handler of apimachinery's managedfields package.
"""

from __future__ import annotations

from dataclasses import replace

from podwire_base.kube.errors import Cause
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import Resource
from podwire_base.kube.schema import builtin
from podwire_base.kube.selectors import selector_text

from ..custom import scale as custom
from ..rules import workloads
from . import fieldsets
from .managers import Entry, FieldManager, Key, Managed, Manager, OneVersion

SCALE = Resource("autoscaling", "v1", "Scale", "scales")
_REPLICAS: fieldsets.Path = ("f:spec", "f:replicas")
_CARRIED = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")


def path_of(resource: Resource) -> tuple[str, ...]:
    """Return where an object has its wanted replicas."""
    if resource.custom is not None and resource.custom.scale:
        return tuple(resource.custom.scale[custom.SPEC].removeprefix(".").split("."))
    return "spec", "replicas"


def fields_of(resource: Resource) -> fieldsets.Path:
    return tuple("f:" + step for step in path_of(resource))


def scale_of(resource: Resource, obj: Object, empty: bool = False) -> Object:
    """Return the Scale of an object, without managedFields. empty: a custom object may lack its replicas, which are 0
    then. Raises StatusError 500.
    """
    if resource.custom is not None and resource.custom.scale:
        return custom.of(obj, resource.custom.scale, empty=empty)
    meta, spec = obj["metadata"], obj["spec"]
    selector = spec.get("selector") or {}
    if resource.kind == "ReplicationController":
        selector = {"matchLabels": selector}
    replicas, present = spec.get("replicas", 1), (obj.get("status") or {}).get("replicas", 0)
    text = selector_text(selector)
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {k: meta[k] for k in _CARRIED if k in meta},
        "spec": {"replicas": replicas} if replicas else {},
        "status": {"replicas": present, **({"selector": text} if text else {})},
    }


def with_replicas(resource: Resource, obj: Object, scale: Object) -> Object:
    """Return the object with the replicas of a Scale, and with its resourceVersion."""
    made = {**obj, "metadata": {**obj["metadata"]}}
    *above, last = path_of(resource)
    inner = made
    for step in above:
        inner[step] = dict(inner.get(step) or {})
        inner = inner[step]
    inner[last] = (scale.get("spec") or {}).get("replicas") or 0
    made["metadata"].pop("resourceVersion", None)
    if version := scale["metadata"].get("resourceVersion"):
        made["metadata"]["resourceVersion"] = version
    return made


def wrong(scale: Object) -> list[Cause]:
    """Return the wrong fields of a Scale."""
    return list(workloads.scale(scale))


def manager() -> FieldManager:
    node = builtin().kind(SCALE.api_version, SCALE.kind)
    return FieldManager(OneVersion(node, (SCALE.api_version,)), SCALE.api_version, "scale")


def to_scale(managed: Managed, path: fieldsets.Path) -> Managed:
    """Return the entries that own the replicas of an object, as they are in its Scale."""
    own = fieldsets.of_path(_REPLICAS)
    return {
        _renamed(key, SCALE.api_version): replace(entry, fields=own, version=SCALE.api_version)
        for key, entry in managed.items()
        if fieldsets.has(entry.fields, path)
    }


def _renamed(key: Key, version: str) -> Key:
    """Return the manager as its entry in another version would be read."""
    return key._replace(version=version) if isinstance(key, Manager) and key.version else key


def to_object(managed: Managed, scaled: Managed, path: fieldsets.Path, version: str) -> Managed:
    """Return the entries of an object after a write of its Scale. scaled: the Scale's entries. version: the object's
    apiVersion. Who no longer owns the replicas loses them; who came by them gets an entry of the subresource.
    """
    left, made = dict(scaled), dict[Key, Entry]()
    own = fieldsets.of_path(path)
    for key, entry in managed.items():
        if not fieldsets.has(entry.fields, path):
            made[key] = entry
        elif key in left:
            made[key] = entry
            del left[key]
        elif fields := fieldsets.difference(entry.fields, own):
            made[key] = replace(entry, fields=fields)
    for key, entry in left.items():
        if fieldsets.has(entry.fields, _REPLICAS):
            made[_renamed(key, version)] = Entry(own, version, entry.time, entry.applied)
    return made
