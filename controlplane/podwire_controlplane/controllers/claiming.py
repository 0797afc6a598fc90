"""Adoption and release: a controller's objects are those that its selector matches. Pure.

As upstream (pkg/controller, ControllerRefManager): an object without a controller that the selector matches is adopted,
and one that it does not match any more is released. An object of another controller is left alone.
"""

from __future__ import annotations

from collections.abc import Callable

from podwire_base.kube.meta import Object, controller_of, deleting, key, labels, name, namespace, uid
from podwire_base.kube.selectors import LabelTest, label_selector

from .base import Keys, Mapper, Snapshot, Write, owner_reference


def _always(_obj: Object) -> bool:
    return True


def claim(
    kind: str, owner: Object, snapshot: Snapshot, active: Callable[[Object], bool] = _always, finalizer: str = ""
) -> tuple[list[Object], list[Write]]:
    """Return the objects of `kind` that belong to `owner`, and the writes that adopt and release. active: which objects
    count. finalizer: what an adopted object gets and a released one loses, "" for none.
    """
    selects, held, changes = _selector(owner), list[Object](), list[Write]()
    for obj in snapshot.list(kind, namespace(owner)):
        ref = controller_of(obj)
        if (ref is not None and ref.get("uid") != uid(owner)) or not active(obj):
            continue
        if not selects(labels(obj)):
            if ref is not None and not deleting(obj):
                rest = [one for one in obj["metadata"]["ownerReferences"] if one.get("uid") != uid(owner)]
                left = [one for one in obj["metadata"].get("finalizers") or [] if one != finalizer]
                changes.append(_owned_by(kind, obj, rest, f"released by {name(owner)}", left if finalizer else None))
            continue
        if ref is None:
            if deleting(obj):
                continue
            refs = [*(obj["metadata"].get("ownerReferences") or []), owner_reference(owner)]
            more = list(dict.fromkeys([*(obj["metadata"].get("finalizers") or []), finalizer])) if finalizer else None
            changes.append(_owned_by(kind, obj, refs, f"adopted by {name(owner)}", more))
        held.append(obj)
    return held, changes


def _selector(owner: Object) -> LabelTest:
    """Return the selector of an owner. That of a ReplicationController is a plain map of labels."""
    found = owner["spec"].get("selector")
    return label_selector({"matchLabels": found} if owner.get("kind") == "ReplicationController" else found)


def _owned_by(kind: str, obj: Object, refs: list[Object], why: str, finalizers: list[str] | None = None) -> Write:
    metadata: Object = {"uid": uid(obj), "ownerReferences": refs or None}
    if finalizers is not None:
        metadata["finalizers"] = finalizers or None
    if version := obj["metadata"].get("resourceVersion"):
        metadata["resourceVersion"] = version
    return Write("patch", kind, namespace(obj), name(obj), {"metadata": metadata}, why)


def claimants(owner: str) -> Mapper:
    """Return a mapper from an object to its controller of the kind `owner`, or to those that would adopt it."""

    def mapper(obj: Object, snapshot: Snapshot) -> Keys:
        ref = controller_of(obj)
        if ref is not None:
            return (f"{namespace(obj)}/{ref['name']}",) if ref.get("kind") == owner else ()
        if not labels(obj):
            return ()
        own = labels(obj)
        found = snapshot.list(owner, namespace(obj))
        return [key(one) for one in found if _selector(one)(own)]

    return mapper
