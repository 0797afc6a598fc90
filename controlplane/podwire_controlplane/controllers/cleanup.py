"""Garbage collection by owner references, and deletion of everything in a namespace that is being deleted."""

from __future__ import annotations

from collections.abc import Iterator

from podwire_base.kube.events import event, reference
from podwire_base.kube.meta import Object, deleting, key, name, namespace, uid
from podwire_base.kube.registry import BUILTIN, of

from . import customkinds
from .base import Controller, Keys, Snapshot, Write

KINDS = tuple(r.kind for r in BUILTIN.stored if r.namespaced)
ALL = tuple(r.kind for r in BUILTIN.stored)
_NO_OWNERS = ("Event", "Lease")  # they come and go all the time, and nothing is theirs
_ASK_SECONDS = 20.0  # between two looks for owners of kinds without an informer


def _address(obj: Object, snapshot: Snapshot) -> str:
    return f"{customkinds.name_of(obj, snapshot)}:{key(obj)}"


def _parts(address: str) -> tuple[str, str]:
    """Return (kind, key). A custom kind is "group/version:Kind"."""
    kind, _, own = address.partition(":")
    if "/" in kind:
        rest, _, own = own.partition(":")
        kind = f"{kind}:{rest}"
    return kind, own


def reconcile_gc(wanted: str, snapshot: Snapshot, now: float) -> list[Write]:
    """Delete an object when none of its owners exists, and take away the references to those of them that do not. The
    uid identifies an owner, so a new object of the same name is a different owner. An owner of a kind without an
    informer counts as absent here; the driver asks the API before it does the write.
    """
    kind, own = _parts(wanted)
    obj = snapshot.get(kind, own) if kind in snapshot.kinds else None
    if obj is not None and deleting(obj):
        return _propagate(kind, obj, snapshot)
    refs = obj["metadata"].get("ownerReferences") or [] if obj else []
    if obj is None or not refs:
        return []
    if not namespace(obj) and any(_namespaced(ref, snapshot) for ref in refs):
        return []  # upstream never collects such an object: its owner's namespace is unknown
    absent = [ref for ref in refs if _owner(ref, obj, snapshot) is None]
    if not absent:
        return []
    sought = tuple(_sought(ref, obj) for ref in absent)
    if len(absent) < len(refs):
        if any(not _known(ref, snapshot) for ref in absent):
            return []  # perhaps one of them exists: nothing hangs on it, because another owner does
        return [_without(kind, obj, absent, sought)]
    gone = {"preconditions": {"uid": uid(obj)}}
    told = [_elsewhere(kind, obj, ref, now) for ref in absent if _lives_elsewhere(ref, obj, snapshot)]
    return [*told, Write("delete", kind, namespace(obj), name(obj), gone, "its owner is gone", unless=sought)]


def _known(ref: Object, snapshot: Snapshot) -> bool:
    """Whether the caches have the objects of an owner's kind."""
    row = BUILTIN.by_kind.get((str(ref.get("apiVersion")), str(ref.get("kind"))))
    return (row.kind if row else f"{ref.get('apiVersion')}:{ref.get('kind')}") in snapshot.kinds


def _namespaced(ref: Object, snapshot: Snapshot) -> bool:
    """Whether an owner's kind lives in namespaces. A custom kind that the caches do not know counts as one that does
    not: its owner is then looked for without a namespace.
    """
    row = BUILTIN.by_kind.get((str(ref.get("apiVersion")), str(ref.get("kind"))))
    if row is None:
        row = dict(customkinds.followed(snapshot)).get(f"{ref.get('apiVersion')}:{ref.get('kind')}")
    return row is not None and row.namespaced


def _space(ref: Object, obj: Object) -> str:
    """Return the namespace of an owner: that of its dependent, or none if its kind has none."""
    row = BUILTIN.by_kind.get((str(ref.get("apiVersion")), str(ref.get("kind"))))
    return namespace(obj) if row is None or row.namespaced else ""


def _sought(ref: Object, obj: Object) -> tuple[str, str, str, str]:
    row = BUILTIN.by_kind.get((str(ref.get("apiVersion")), str(ref.get("kind"))))
    kind = row.kind if row else f"{ref.get('apiVersion')}:{ref.get('kind')}"
    return kind, _space(ref, obj), str(ref.get("name")), str(ref.get("uid"))


def _owner(ref: Object, obj: Object, snapshot: Snapshot) -> Object | None:
    if not _known(ref, snapshot):
        return None
    kind, own = customkinds.name_of(ref, snapshot), str(ref.get("name"))
    places = (f"{_space(ref, obj)}/{own}".strip("/"), own)  # a custom owner may have no namespace
    found = (snapshot.get(kind, place) for place in places)
    return next((one for one in found if one is not None and uid(one) == ref.get("uid")), None)


def _lives_elsewhere(ref: Object, obj: Object, snapshot: Snapshot) -> bool:
    """Whether an owner exists in another namespace, where it owns nothing of this one."""
    return _known(ref, snapshot) and any(
        uid(other) == ref.get("uid") and namespace(other) != namespace(obj)
        for other in snapshot.list(customkinds.name_of(ref, snapshot))
    )


def _elsewhere(kind: str, obj: Object, ref: Object, now: float) -> Write:
    where = f"{ref.get('apiVersion')}/{ref['kind']}, namespace: {namespace(obj)}, name: {ref.get('name')}"
    text = f'ownerRef [{where}, uid: {ref.get("uid")}] does not exist in namespace "{namespace(obj)}"'
    about = reference(kind.rpartition(":")[2], obj, obj["apiVersion"] if ":" in kind else of(kind).api_version)
    suffix = f"ownerref-{uid(obj)[:8]}"  # one Event for each object
    told = event(about, "OwnerRefInvalidNamespace", text, now, component="garbage-collector-controller", suffix=suffix)
    return Write("create", "Event", namespace(obj), "", told, text)


def _without(kind: str, obj: Object, refs: list[Object], unless: tuple[tuple[str, str, str, str], ...] = ()) -> Write:
    """Take references to owners away from an object, if it is still as it was seen."""
    left = [ref for ref in obj["metadata"]["ownerReferences"] if ref not in refs]
    metadata: Object = {"uid": uid(obj), "ownerReferences": left or None}
    if version := obj["metadata"].get("resourceVersion"):
        metadata["resourceVersion"] = version
    return Write("patch", kind, namespace(obj), name(obj), {"metadata": metadata}, "orphaned", unless=unless)


def _owned(obj: Object, snapshot: Snapshot) -> Iterator[Object]:
    """Yield every object that names `obj` as an owner."""
    for kind in tuple(snapshot.kinds) if obj["kind"] not in _NO_OWNERS else ():
        for other in snapshot.list(kind, namespace(obj) or None):
            if _refs(other, obj):
                yield other


def _refs(obj: Object, owner: Object) -> list[Object]:
    return [ref for ref in obj["metadata"].get("ownerReferences") or [] if ref.get("uid") == uid(owner)]


def _propagate(kind: str, obj: Object, snapshot: Snapshot) -> list[Write]:
    """Do the garbage collector's part of a deletion with propagationPolicy Orphan or Foreground.

    Finalizer orphan: remove the owner reference from the dependents, then delete the object. Finalizer
    foregroundDeletion: delete the dependents, then delete the object.
    """
    held = obj["metadata"].get("finalizers") or []
    changes: list[Write] = []
    if "orphan" in held:
        changes = [
            _without(customkinds.name_of(other, snapshot), other, _refs(other, obj)) for other in _owned(obj, snapshot)
        ]
    elif "foregroundDeletion" in held:
        waiting = list(_owned(obj, snapshot))
        steps = [_end(other, obj, snapshot) for other in waiting if not deleting(other)]
        if steps or any(ref.get("blockOwnerDeletion") for other in waiting for ref in _refs(other, obj)):
            return steps
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


def _end(other: Object, owner: Object, snapshot: Snapshot) -> Write:
    """What a foreground deletion does with a dependent: one with another owner that stays loses the reference only."""
    others = [ref for ref in other["metadata"]["ownerReferences"] if ref.get("uid") != uid(owner)]
    if any((found := _owner(ref, other, snapshot)) is not None and not deleting(found) for ref in others):
        return _without(customkinds.name_of(other, snapshot), other, _refs(other, owner))
    options = {"preconditions": {"uid": uid(other)}, "propagationPolicy": "Foreground"}
    kind = customkinds.name_of(other, snapshot)
    return Write("delete", kind, namespace(other), name(other), options, "its owner is being deleted")


def _asked(obj: Object, snapshot: Snapshot) -> Keys:
    """Yield the key of an object whose owners the caches do not know: the end of such an owner makes no event here."""
    refs = obj["metadata"].get("ownerReferences") or []
    if any(not _known(ref, snapshot) for ref in refs):
        yield _address(obj, snapshot)


def _dependents(obj: Object, snapshot: Snapshot) -> Keys:
    """Yield the keys of the object, of its owners, and, if the object was just deleted, of its dependents. An owner's
    foreground deletion may wait for this object.
    """
    yield _address(obj, snapshot)
    for ref in obj["metadata"].get("ownerReferences") or []:
        kind = customkinds.name_of(ref, snapshot)
        places = dict.fromkeys((namespace(obj), "")) if ":" in kind else (_space(ref, obj),)
        yield from (f"{kind}:{f'{space}/' if space else ''}{ref.get('name')}" for space in places)
    current = snapshot.get(customkinds.name_of(obj, snapshot), key(obj))
    if current is None or uid(current) != uid(obj):
        yield from (_address(other, snapshot) for other in _owned(obj, snapshot))


def reconcile_namespace(wanted: str, snapshot: Snapshot, _now: float) -> list[Write]:
    """Delete all objects in a namespace that is being deleted. Remove the namespace's finalizer when it is empty."""
    space = snapshot.get("Namespace", wanted)
    if space is None or not deleting(space):
        return []
    kinds = (*KINDS, *(kind for kind, row in customkinds.followed(snapshot) if row.namespaced))
    left = [(kind, obj) for kind in kinds for obj in snapshot.list(kind, wanted)]
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
    Controller("garbagecollector", dict.fromkeys(ALL, _dependents), reconcile_gc, custom=_dependents),
    Controller("ownerlookup", dict.fromkeys(ALL, _asked), reconcile_gc, resync=_ASK_SECONDS, custom=_asked),
    Controller(
        "namespace",
        {"Namespace": lambda obj, _: (name(obj),), **dict.fromkeys(KINDS, _its_namespace)},
        reconcile_namespace,
        custom=_its_namespace,
    ),
)
