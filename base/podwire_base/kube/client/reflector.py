"""The list+watch state machine of client-go's reflector, without I/O.

States: LIST (fetch everything) -> WATCH (apply events) -> LIST again, when the server no longer has our resourceVersion
(410) or a list was unusable. A connection that merely ends leads back to WATCH from the last version seen. The caller
passes answers in and gets `Event`s back. A repeated list yields only real differences.

In LIST, everything comes either as a list or as the first part of a watch (WatchList, KEP-3157): objects one by one,
and then a bookmark that marks the end. A stream that breaks off before the bookmark changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from ..meta import Object, annotations_of, key, resource_version

INITIAL_END = "k8s.io/initial-events-end"
EventType = Literal["ADDED", "MODIFIED", "DELETED"]


@dataclass(frozen=True, slots=True)
class Event:
    """One change of the copy. `old` is the previous content (None for ADDED)."""

    type: EventType
    key: str
    object: Object
    old: Object | None = None


class Phase(Enum):
    LIST = "list"
    WATCH = "watch"


def _newer(obj: Object, than: Object) -> bool:
    """resourceVersions of one resource are decimal and increase (KEP-5504); in any other form they can only be compared
    for equality.
    """
    new, old = resource_version(obj), resource_version(than)
    return int(new) > int(old) if _decimal(obj, than) else new != old


def _decimal(*objects: Object) -> bool:
    return all(resource_version(o).isdecimal() for o in objects)


def _whole(obj: Object) -> Object:
    return obj


def is_object(obj: object) -> bool:
    """Whether it has what every cache needs: metadata with a name."""
    metadata = obj.get("metadata") if isinstance(obj, dict) else None
    return isinstance(metadata, dict) and bool(metadata.get("name")) and isinstance(metadata["name"], str)


def is_frame(frame: object) -> bool:
    """Whether it is a usable watch event. Bookmarks have no name, errors no metadata."""
    if not isinstance(frame, dict) or not isinstance(frame.get("object"), dict):
        return False
    if frame.get("type") in ("ADDED", "MODIFIED", "DELETED"):
        return is_object(frame["object"])
    return isinstance(frame["object"].get("metadata") or {}, dict)


@dataclass(slots=True)
class Reflector:
    """keep: the part of an object that the copy holds (at least its metadata's name, namespace and resourceVersion).
    Additions and changes carry the whole object; deletions found by a new list, and `old`, carry the kept part.
    """

    keep: Callable[[Object], Object] = _whole
    objects: dict[str, Object] = field(default_factory=dict)
    version: str = ""
    state: Phase = Phase.LIST
    _arriving: dict[str, Object] = field(default_factory=dict)

    def arriving(self) -> None:
        """A stream with initial events begins; the incomplete list of an earlier one is dropped."""
        self._arriving = {}

    def initial(self, frame: Object) -> Iterable[Event] | None:
        """A frame of a stream with initial events, in LIST. Returns None until all have arrived; then the differences,
        and the state becomes WATCH.
        """
        kind, obj = frame.get("type"), frame.get("object") or {}
        if kind == "ERROR":
            self.failed(int(obj.get("code") or 0))
        elif kind in ("ADDED", "MODIFIED"):
            self._arriving[key(obj)] = obj
        elif kind == "DELETED":
            self._arriving.pop(key(obj), None)
        elif kind == "BOOKMARK" and annotations_of(obj).get(INITIAL_END) == "true":
            items, self._arriving = self._arriving, {}
            return self.listed(items.values(), resource_version(obj))
        return None

    def listed(self, items: Iterable[Object], version: str) -> Iterator[Event]:
        """A full list arrived: replace the copy, yield the differences (deletions first)."""
        fresh = {key(obj): obj for obj in items}
        self.version, self.state = version, Phase.WATCH
        old = dict(self.objects)
        self.objects.clear()  # the same dict stays: other code holds it as its live view
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
        """One frame of the watch stream; None if nothing changed (bookmarks, repeats, errors)."""
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
        self.objects[name] = self.keep(obj)
        return Event("MODIFIED" if before is not None else "ADDED", name, obj, before)

    def wrote(self, obj: Object) -> Event | None:
        """The answer to our own write, ahead of the watch; a newer copy stays."""
        name, before = key(obj), self.objects.get(key(obj))
        if before is not None and not _newer(obj, before):
            return None
        if (
            before is None
            and self.version.isdecimal()
            and _decimal(obj)
            and int(resource_version(obj)) <= int(self.version)
        ):
            return None  # the watch is past this write, and the object was deleted meanwhile
        self.objects[name] = self.keep(obj)
        return Event("MODIFIED" if before is not None else "ADDED", name, obj, before)

    def deleted(self, name: str, uid: str) -> Event | None:
        """The answer to our own deletion: the object is gone before the watch reports it."""
        before = self.objects.get(name)
        if before is None or before["metadata"].get("uid") != uid:
            return None
        del self.objects[name]
        return Event("DELETED", name, before, before)

    def failed(self, code: int) -> None:
        """The server refused a watch: after 410 Gone and other 4xx answers our version is no longer usable."""
        if 400 <= code < 500 and code != 429:
            self.state = Phase.LIST
