"""A controller is a pure function: it reads the cluster's objects and returns the changes that it wants.

The driver calls `reconcile(key, snapshot, now) -> changes` for each key that an event touches. `reconcile` reads the
snapshot and returns data. The driver calls it again whenever an object that it read changes. The changes are
idempotent: the driver may apply them twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from podwire_base.kube.meta import Object, controller_of, key, name, namespace, uid

Verb = Literal["create", "update", "patch", "status", "delete", "finalize", "bind", "again"]


@dataclass(frozen=True, slots=True)
class Told:
    """The Event that a write is told by once it is done. about: an object reference. message: "{name}" stands for the
    name of the written object. failed: the reason of the Warning if the API refuses the write, "" for none.
    """

    about: Object
    reason: str
    message: str
    component: str
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Write:
    """One write to the API. kind: the object's kind. obj: the whole object (create, update, finalize), a merge patch
    (patch, status), DeleteOptions (delete) or the fields of a Binding (bind). `again` writes nothing: the driver
    reconciles the key again after obj["seconds"].

    unless: (kind, namespace, name, uid) of objects; kind is "apiVersion:Kind" for a custom kind. The driver drops the
    write if the API (not the cache) has one of these objects.
    """

    verb: Verb
    kind: str
    namespace: str
    name: str
    obj: Object = field(default_factory=dict)
    why: str = ""
    unless: tuple[tuple[str, str, str, str], ...] = ()
    told: Told | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """kind -> key -> object: the driver's live caches. Controllers only read them."""

    kinds: Mapping[str, Mapping[str, Object]]

    def get(self, kind: str, wanted: str) -> Object | None:
        return self.kinds[kind].get(wanted)

    def list(self, kind: str, in_namespace: str | None = None) -> Iterator[Object]:
        for obj in self.kinds[kind].values():
            if in_namespace is None or namespace(obj) == in_namespace:
                yield obj

    def owned(self, kind: str, owner: Object) -> Iterator[Object]:
        """Yield the objects of `kind` whose controller is `owner`."""
        for obj in self.list(kind, namespace(owner)):
            ref = controller_of(obj)
            if ref and ref.get("uid") == uid(owner):
                yield obj


Keys = Iterable[str]
Mapper = Callable[[Object, Snapshot], Keys]


@dataclass(frozen=True, slots=True)
class Controller:
    """watches: kind -> the function that returns the keys that an event on an object of this kind touches.
    resync: seconds between two reconciliations of all keys, 0 for never.

    within: kind -> (namespace, name) of the only object of this kind that the controller reads. So the controller needs
    no permission to read other objects of this kind. keep: kind -> the function that returns the part of an object that
    the controller reads. It saves memory where no other controller reads this kind.

    custom: the function that returns the keys that an event on an object of a custom kind touches, None for a
    controller that does not follow custom kinds.
    """

    name: str
    watches: Mapping[str, Mapper]
    reconcile: Callable[[str, Snapshot, float], list[Write]]
    resync: float = 0.0
    within: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    keep: Mapping[str, Callable[[Object], Object]] = field(default_factory=dict)
    custom: Mapper | None = None


def itself(obj: Object, _snapshot: Snapshot) -> Keys:
    return (key(obj),)


def owner_of(kind: str) -> Mapper:
    """Return a mapper from an object to the key of its controller, or to no key if the controller is not a `kind`."""

    def mapper(obj: Object, _snapshot: Snapshot) -> Keys:
        ref = controller_of(obj)
        return (f"{namespace(obj)}/{ref['name']}",) if ref and ref.get("kind") == kind else ()

    return mapper


def again(kind: str, seconds: float) -> Write:
    """Return the request to reconcile the same key again after `seconds`, when only time has passed."""
    return Write("again", kind, "", "", {"seconds": max(0.05, seconds)})


def owner_reference(obj: Object) -> Object:
    return {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "name": name(obj),
        "uid": uid(obj),
        "controller": True,
        "blockOwnerDeletion": True,
    }


def pod_ended(pod: Mapping[str, Any]) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
