"""Writes of the subresources that change an object in a way of their own: scale, pods/binding, namespaces/finalize."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from podwire_base.kube import codec, errors
from podwire_base.kube.meta import Object, deleting
from podwire_base.kube.registry import of
from podwire_base.kube.times import timestamp

from ..apply import managers, ownership, scale
from ..rules.fields import not_supported, required
from ..strategies.core import bound
from . import preparing
from .writes import Scope, WriteOptions, Written, guard

if TYPE_CHECKING:
    from .objects import Objects

_NAMESPACES = of("Namespace")


async def change_scale(objects: Objects, scope: Scope, kind: str, body: Any, options: WriteOptions) -> Written:
    """Write the subresource scale and return the Scale. kind: the media type of a patch, "" for a PUT."""
    resource, where = scope.resource, scale.fields_of(scope.resource)
    whole = Scope(resource, scope.namespace, scope.name)
    body = body if kind else ownership.as_scale(body)

    def change(before: Object) -> Object:
        old, now = scale.scale_of(resource, before, empty=True), timestamp(objects.clock())
        managed = managers.decode(before["metadata"].get("managedFields"), known=True)
        ownership.put(old, scale.to_scale(managed, where))
        new = ownership.scaled(old, kind, body, options.manager, now, options.force)
        if causes := scale.wrong(new):
            raise errors.invalid(scale.SCALE, scope.name, causes)
        guard(whole, before, new)
        after = scale.with_replicas(resource, before, new)
        scaled = managers.decode(new["metadata"].get("managedFields"), known=True)
        ownership.put(after, scale.to_object(managed, scaled, where, resource.api_version))
        return after

    written = await objects.modify(whole, change, options, (), tracked=True)
    return Written(codec.dumps(scale.scale_of(resource, codec.decode(written.raw))), written.warnings)


async def bind(objects: Objects, scope: Scope, binding: Any, options: WriteOptions) -> None:
    """Assign a pod to a node (the subresource pods/binding). scope: the pod. Raises a conflict if the pod already
    has a node or is being deleted.
    """
    made, _ = preparing.shape(of("Binding"), binding, options)
    target = made.get("target") or {}
    if target.get("kind") not in (None, "", "Node"):
        raise errors.invalid(of("Binding"), scope.name, [not_supported("target.kind", target["kind"], ("Node",))])
    if not target.get("name"):
        raise errors.invalid(of("Binding"), scope.name, [required("target.name")])
    whole = Scope(scope.resource, scope.namespace, scope.name, "binding")
    now = timestamp(objects.clock())

    def change(before: Object) -> Object:
        if before["spec"].get("nodeName"):
            why = f"pod {scope.name} is already assigned to node {before['spec']['nodeName']!r}"
            raise errors.conflict(scope.resource, scope.name, why)
        if deleting(before):
            raise errors.conflict(
                scope.resource, scope.name, f"pod {scope.name} is being deleted and cannot be assigned"
            )
        return bound(before, made, now)

    await objects.modify(whole, change, options, (), tracked=True)


async def finalize(objects: Objects, namespace: str, obj: Any) -> Written:
    """Write spec.finalizers of a namespace (the subresource finalize, the namespace controller's last step).
    Without finalizers, a namespace with a deletionTimestamp is then deleted. Raises a conflict if the body has no
    finalizers and the namespace still contains objects.
    """
    scope = Scope(_NAMESPACES, "", namespace, "finalize")
    obj, _ = preparing.shape(_NAMESPACES, obj, WriteOptions())
    if not (obj.get("spec") or {}).get("finalizers"):
        for resource in objects.registry.stored:
            if resource.namespaced and await objects.store.scan(resource.prefix(namespace)):
                raise errors.conflict(_NAMESPACES, namespace, f"the namespace still contains {resource.plural}")

    def change(before: Object) -> Object:
        left = (obj.get("spec") or {}).get("finalizers") or []
        return {**before, "spec": {**before.get("spec", {}), "finalizers": left}}

    return await objects.modify(scope, change, WriteOptions(), ())
