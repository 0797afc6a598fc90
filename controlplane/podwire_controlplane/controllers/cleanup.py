"""Garbage collection by owner references, and deletion of everything in a namespace that is being deleted."""

from __future__ import annotations

from collections.abc import Iterator

from podwire_base.kube.meta import Object, deleting, key, name, namespace, uid
from podwire_base.kube.registry import BUILTIN

from .base import Controller, Keys, Snapshot, Write

KINDS = tuple(r.kind for r in BUILTIN.stored if r.namespaced)
_OWNERS = ("Service", "Endpoints", "Deployment", "ReplicaSet", "Node", "Pod")


def _address(obj: Object) -> str:
    return f"{obj['kind']}:{key(obj)}"


def reconcile_gc(wanted: str, snapshot: Snapshot, _now: float) -> list[Write]:
    """Delete an object when none of its owners exists. The uid identifies an owner, so a new object of the same name is
    a different owner.
    """
    kind, _, own = wanted.partition(":")
    obj = snapshot.get(kind, own) if kind in snapshot.kinds else None
    if obj is not None and deleting(obj):
        return _propagate(kind, obj, snapshot)
    refs = obj["metadata"].get("ownerReferences") or [] if obj else []
    if obj is None or not refs:
        return []
    owners: list[tuple[str, str, str, str]] = []
    for ref in refs:
        if ref.get("kind") not in _OWNERS:
            return []  # a kind without an informer: the owner may exist
        space = "" if ref["kind"] == "Node" else namespace(obj)
        owner = snapshot.get(ref["kind"], f"{space}/{ref['name']}".strip("/"))
        if owner is not None and uid(owner) == ref.get("uid"):
            return []
        owners.append((ref["kind"], space, ref["name"], str(ref.get("uid"))))
    return [
        Write(
            "delete",
            kind,
            namespace(obj),
            name(obj),
            {"preconditions": {"uid": uid(obj)}},
            "its owner is gone",
            unless=tuple(owners),
        )
    ]


def _owned(obj: Object, snapshot: Snapshot) -> Iterator[Object]:
    """Yield every object that names `obj` as an owner."""
    for kind in KINDS if obj["kind"] in _OWNERS else ():
        for other in snapshot.list(kind, namespace(obj) or None):
            if any(r.get("uid") == uid(obj) for r in other["metadata"].get("ownerReferences") or []):
                yield other


def _propagate(kind: str, obj: Object, snapshot: Snapshot) -> list[Write]:
    """Do the garbage collector's part of a deletion with propagationPolicy Orphan or Foreground.

    Finalizer orphan: remove the owner reference from the dependents, then delete the object. Finalizer
    foregroundDeletion: delete the dependents, then delete the object.
    """
    held = obj["metadata"].get("finalizers") or []
    changes: list[Write] = []
    if "orphan" in held:
        for other in _owned(obj, snapshot):
            left = [r for r in other["metadata"]["ownerReferences"] if r.get("uid") != uid(obj)]
            changes.append(
                Write(
                    "patch",
                    other["kind"],
                    namespace(other),
                    name(other),
                    {"metadata": {"uid": uid(other), "ownerReferences": left}},
                    "orphaned",
                )
            )
    elif "foregroundDeletion" in held:
        waiting = list(_owned(obj, snapshot))
        if waiting:
            return [
                Write(
                    "delete",
                    o["kind"],
                    namespace(o),
                    name(o),
                    {"preconditions": {"uid": uid(o)}, "propagationPolicy": "Foreground"},
                    "its owner is being deleted",
                )
                for o in waiting
                if not deleting(o)
            ]
    else:
        return []
    rest = [f for f in held if f not in ("orphan", "foregroundDeletion")]
    return [
        *changes,
        Write(
            "patch",
            kind,
            namespace(obj),
            name(obj),
            {"metadata": {"uid": uid(obj), "finalizers": rest}},
            "dependents are done",
        ),
    ]


def _dependents(obj: Object, snapshot: Snapshot) -> Keys:
    """Yield the keys of the object, of its owners, and, if the object was just deleted, of its dependents. An owner's
    foreground deletion may wait for this object.
    """
    yield _address(obj)
    for ref in obj["metadata"].get("ownerReferences") or []:
        yield f"{ref.get('kind')}:{namespace(obj)}/{ref.get('name')}"
    current = snapshot.get(obj["kind"], key(obj))
    if current is None or uid(current) != uid(obj):
        yield from map(_address, _owned(obj, snapshot))


def reconcile_namespace(wanted: str, snapshot: Snapshot, _now: float) -> list[Write]:
    """Delete all objects in a namespace that is being deleted. Remove the namespace's finalizer when it is empty."""
    space = snapshot.get("Namespace", wanted)
    if space is None or not deleting(space):
        return []
    left = [(kind, obj) for kind in KINDS for obj in snapshot.list(kind, wanted)]
    if not left:
        return [Write("finalize", "Namespace", "", wanted, {**space, "spec": {"finalizers": []}}, "empty")]
    return [
        Write("delete", kind, wanted, name(obj), why="its namespace is being deleted")
        for kind, obj in left
        if not deleting(obj)
    ]


def _its_namespace(obj: Object, snapshot: Snapshot) -> Keys:
    space = snapshot.get("Namespace", namespace(obj))
    return (name(space),) if space is not None and deleting(space) else ()


CONTROLLERS = (
    Controller("garbagecollector", dict.fromkeys((*KINDS, "Node"), _dependents), reconcile_gc),
    Controller(
        "namespace",
        {"Namespace": lambda obj, _: (name(obj),), **dict.fromkeys(KINDS, _its_namespace)},
        reconcile_namespace,
    ),
)
