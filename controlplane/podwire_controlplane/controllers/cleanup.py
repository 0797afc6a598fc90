"""Garbage collection by owner references, and the emptying of namespaces that are being deleted."""

from __future__ import annotations

from ..api.meta import Object, deleting, key, name, namespace, uid
from ..api.registry import RESOURCES
from .base import Change, Controller, Keys, Snapshot

KINDS = tuple(r.kind for r in RESOURCES if r.namespaced)
_OWNERS = ("Service", "Endpoints", "Deployment", "ReplicaSet", "Node", "Pod")


def _address(obj: Object) -> str:
    return f"{obj['kind']}:{key(obj)}"


def reconcile_gc(wanted: str, snapshot: Snapshot, _now: float) -> list[Change]:
    """Delete an object when none of its owners is left. An owner counts by uid: a new one of the same name is another."""
    kind, _, own = wanted.partition(":")
    obj = snapshot.get(kind, own)
    refs = obj["metadata"].get("ownerReferences") or [] if obj else []
    if obj is None or not refs or deleting(obj):
        return []
    owners: list[tuple[str, str, str, str]] = []
    for ref in refs:
        if ref.get("kind") not in _OWNERS:
            return []  # a kind we do not hold: never guess that it is gone
        space = "" if ref["kind"] == "Node" else namespace(obj)
        owner = snapshot.get(ref["kind"], f"{space}/{ref['name']}".strip("/"))
        if owner is not None and uid(owner) == ref.get("uid"):
            return []
        owners.append((ref["kind"], space, ref["name"], str(ref.get("uid"))))
    return [Change("delete", kind, namespace(obj), name(obj), {"preconditions": {"uid": uid(obj)}}, "its owner is gone",
                   unless=tuple(owners))]


def _dependents(obj: Object, snapshot: Snapshot) -> Keys:
    """The object itself, and whatever names it as an owner (it may just have been deleted)."""
    yield _address(obj)
    current = snapshot.get(obj["kind"], key(obj))
    if obj["kind"] in _OWNERS and (current is None or uid(current) != uid(obj)):
        for kind in KINDS:
            for other in snapshot.list(kind, namespace(obj) or None):
                if any(r.get("uid") == uid(obj) for r in other["metadata"].get("ownerReferences") or []):
                    yield _address(other)


def reconcile_namespace(wanted: str, snapshot: Snapshot, _now: float) -> list[Change]:
    """Delete everything in a namespace that is being deleted; when it is empty, let it go."""
    space = snapshot.get("Namespace", wanted)
    if space is None or not deleting(space):
        return []
    left = [(kind, obj) for kind in KINDS for obj in snapshot.list(kind, wanted)]
    if not left:
        return [Change("finalize", "Namespace", "", wanted, {**space, "spec": {"finalizers": []}}, "empty")]
    return [Change("delete", kind, wanted, name(obj), why="its namespace is being deleted") for kind, obj in left
            if not deleting(obj)]


def _its_namespace(obj: Object, snapshot: Snapshot) -> Keys:
    space = snapshot.get("Namespace", namespace(obj))
    return (name(space),) if space is not None and deleting(space) else ()


CONTROLLERS = (
    Controller("garbagecollector", dict.fromkeys((*KINDS, "Node"), _dependents), reconcile_gc),
    Controller("namespace", {"Namespace": lambda obj, _: (name(obj),), **dict.fromkeys(KINDS, _its_namespace)},
               reconcile_namespace),
)
