"""A controller is a pure function from the objects of the cluster to the changes it wants.

`reconcile(key, snapshot, now) -> changes` is called for each key that an event touched. It reads the snapshot and
returns data. It is called again whenever an object that it read changes. Applying the same answer twice does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from podwire_base.kube.meta import Object, controller_of, key, name, namespace, uid

Verb = Literal["create", "update", "patch", "status", "delete", "finalize"]


@dataclass(frozen=True, slots=True)
class Write:
    """One write. kind: of the object. obj: the whole object (create, update, finalize) or a merge patch (patch,
    status).

    unless: (kind, namespace, name, uid) of objects; if one exists according to the API (not the cache), the change is
    dropped.
    """

    verb: Verb
    kind: str
    namespace: str
    name: str
    obj: Object = field(default_factory=dict)
    why: str = ""
    unless: tuple[tuple[str, str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """kind -> key -> object. The driver's live caches; controllers only read them."""

    kinds: Mapping[str, Mapping[str, Object]]

    def get(self, kind: str, wanted: str) -> Object | None:
        return self.kinds[kind].get(wanted)

    def list(self, kind: str, in_namespace: str | None = None) -> Iterator[Object]:
        for obj in self.kinds[kind].values():
            if in_namespace is None or namespace(obj) == in_namespace:
                yield obj

    def owned(self, kind: str, owner: Object) -> Iterator[Object]:
        """Objects whose controller is `owner`."""
        for obj in self.list(kind, namespace(owner)):
            ref = controller_of(obj)
            if ref and ref.get("uid") == uid(owner):
                yield obj


Keys = Iterable[str]
Mapper = Callable[[Object, Snapshot], Keys]


@dataclass(frozen=True, slots=True)
class Controller:
    """watches: kind -> which keys an event on an object of it touches. resync: seconds, 0 for never.

    within: kind -> (namespace, name) of the only object of it that the controller reads, so that it needs no right to
    read others.
    """

    name: str
    watches: Mapping[str, Mapper]
    reconcile: Callable[[str, Snapshot, float], list[Write]]
    resync: float = 0.0
    within: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def itself(obj: Object, _snapshot: Snapshot) -> Keys:
    return (key(obj),)


def owner_of(kind: str) -> Mapper:
    """The controller of the object if that is of `kind`."""

    def mapper(obj: Object, _snapshot: Snapshot) -> Keys:
        ref = controller_of(obj)
        return (f"{namespace(obj)}/{ref['name']}",) if ref and ref.get("kind") == kind else ()

    return mapper


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
