"""The list+watch state machine of client-go's reflector, without I/O.

States: LIST (fetch all objects) -> WATCH (apply events) -> LIST again if the server refuses the watch with 410 (it no
longer has our resourceVersion) or another 4xx status except 429. If a connection only ends, the reflector stays in
WATCH and the next watch continues from the last resourceVersion seen. The caller passes the server's answers to the
methods, and the methods return `Event`s. A repeated list yields events only for objects that differ from the copy.

In LIST, the objects arrive in one of two forms. The first form is a list. The second form is the first part of a watch
(WatchList, KEP-3157): the stream has one event for each object, and then a bookmark that marks the end of the initial
events. A stream that ends before this bookmark leaves the copy unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from podwire_base.numerals import decimal

from ..meta import Object, annotations_of, key, resource_version

_LAST = 10**40  # a longer resourceVersion is no number of any server
INITIAL_END = "k8s.io/initial-events-end"
EventType = Literal["ADDED", "MODIFIED", "DELETED"]


@dataclass(frozen=True, slots=True)
class Event:
    """One change of the copy. `old` is the previous object as the copy held it (None for ADDED)."""

    type: EventType
    key: str
    object: Object
    old: Object | None = None


class Phase(Enum):
    LIST = "list"
    WATCH = "watch"


def _newer(obj: Object, than: Object) -> bool:
    """Whether `obj` is a newer version of the object than `than`. The resourceVersions of one resource are increasing
    decimal numbers (KEP-5504). If a resourceVersion has another form, any different resourceVersion counts as newer.
    """
    new, old = resource_version(obj), resource_version(than)
    return int(new) > int(old) if _decimal(obj, than) else new != old


def _decimal(*objects: Object) -> bool:
    return all(decimal(resource_version(o), _LAST) is not None for o in objects)


def whole(obj: Object) -> Object:
    return obj


def is_object(obj: object) -> bool:
    """Whether `obj` has the fields that every cache needs: metadata with a name."""
    metadata = obj.get("metadata") if isinstance(obj, dict) else None
    return isinstance(metadata, dict) and bool(metadata.get("name")) and isinstance(metadata["name"], str)


def is_frame(frame: object) -> bool:
    """Whether `frame` is a usable watch event. (The object of a bookmark has no name, and the object of an error has no
    metadata.)
    """
    if not isinstance(frame, dict) or not isinstance(frame.get("object"), dict):
        return False
    if frame.get("type") in ("ADDED", "MODIFIED", "DELETED"):
        return is_object(frame["object"])
    return isinstance(frame["object"].get("metadata") or {}, dict)


@dataclass(slots=True)
class Reflector:
    """The copy of one resource, and the state. keep: returns the part of an object that the copy stores (at least
    metadata.name, metadata.namespace and metadata.resourceVersion). Events for additions and changes have the whole
    object. A deletion found by a new list, and `Event.old`, have only the stored part. cut: returns the part of an
    object that is used at all, with the same three fields. The rest is freed when the object arrives, so a first list
    of very many objects is never whole in memory.
    """

    keep: Callable[[Object], Object] = whole
    cut: Callable[[Object], Object] = whole
    objects: dict[str, Object] = field(default_factory=dict)
    version: str = ""
    state: Phase = Phase.LIST
    _arriving: dict[str, Object] = field(default_factory=dict)

    def arriving(self) -> None:
        """Call it when a stream with initial events begins. It discards the objects of an earlier incomplete stream."""
        self._arriving = {}

    def initial(self, frame: Object) -> Iterable[Event] | None:
        """Process one frame of a stream with initial events, in the state LIST. Returns None until the bookmark at the
        end of the initial events; for this bookmark, sets the state to WATCH and returns the differences from the copy.
        """
        kind, obj = frame.get("type"), frame.get("object") or {}
        if kind == "ERROR":
            self.failed(int(obj.get("code") or 0))
        elif kind in ("ADDED", "MODIFIED"):
            self._arriving[key(obj)] = self.cut(obj)
        elif kind == "DELETED":
            self._arriving.pop(key(obj), None)
        elif kind == "BOOKMARK" and annotations_of(obj).get(INITIAL_END) == "true":
            items, self._arriving = self._arriving, {}
            return self.listed(items.values(), resource_version(obj))
        return None

    def listed(self, items: Iterable[Object], version: str) -> Iterator[Event]:
        """Replace the copy with a full list and set the state to WATCH. Yields the differences, deletions first."""
        fresh = {key(obj): obj for obj in items}
        self.version, self.state = version, Phase.WATCH
        old = dict(self.objects)
        self.objects.clear()  # keep the same dict: other code uses it as a live view
        self.objects.update((name, self.keep(obj)) for name, obj in fresh.items())
        for name, obj in old.items():
            if name not in fresh:
                yield Event("DELETED", name, obj, obj)
        for name, obj in fresh.items():
            before = old.get(name)
            if before is None:
                yield Event("ADDED", name, obj)
            elif resource_version(before) != resource_version(obj):
                yield Event("MODIFIED", name, obj, before)

    def watched(self, frame: Object) -> Event | None:
        """Process one frame of a watch. Returns None if the copy did not change (bookmark, repeated event, error)."""
        kind, obj = frame.get("type"), frame.get("object") or {}
        if kind == "ERROR":
            self.failed(int(obj.get("code") or 0))
            return None
        version = resource_version(obj)
        if version:
            self.version = version
        if kind == "BOOKMARK":
            return None
        name = key(obj)
        before = self.objects.get(name)
        if kind == "DELETED":
            if before is None or (_decimal(obj, before) and _newer(before, obj)):
                return None  # the copy already holds a later object of this name
            del self.objects[name]
            return Event("DELETED", name, obj, before)
        if kind not in ("ADDED", "MODIFIED"):
            return None
        if before is not None and not _newer(obj, before):
            return None
        obj = self.cut(obj)
        self.objects[name] = self.keep(obj)
        return Event("MODIFIED" if before is not None else "ADDED", name, obj, before)

    def wrote(self, obj: Object) -> Event | None:
        """Apply the server's answer to our own write before the watch reports the object. Returns None if the copy
        already has this version or a newer one, or if the object was deleted meanwhile.
        """
        name, before = key(obj), self.objects.get(key(obj))
        if before is not None and not _newer(obj, before):
            return None
        if (
            before is None
            and decimal(self.version, _LAST) is not None
            and _decimal(obj)
            and int(resource_version(obj)) <= int(self.version)
        ):
            return None  # the watch has already passed this write, so the object was deleted meanwhile
        obj = self.cut(obj)
        self.objects[name] = self.keep(obj)
        return Event("MODIFIED" if before is not None else "ADDED", name, obj, before)

    def deleted(self, name: str, uid: str) -> Event | None:
        """Apply our own deletion before the watch reports it. Returns None if the copy does not have an object with
        this key and uid.
        """
        before = self.objects.get(name)
        if before is None or before["metadata"].get("uid") != uid:
            return None
        del self.objects[name]
        return Event("DELETED", name, before, before)

    def failed(self, code: int) -> None:
        """Process a refused watch. After 410 Gone or another 4xx status except 429, our resourceVersion is no longer
        usable, so the state becomes LIST.
        """
        if 400 <= code < 500 and code != 429:
            self.state = Phase.LIST
