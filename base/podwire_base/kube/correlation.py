"""What becomes of an Event that a component tells: a new object, one more count of an earlier one, or nothing. Pure.

The rules and numbers are those of client-go (tools/record: EventCorrelator; tools/events
for Events with a series):

1. A component tells at most 25 Events of one object at once, and then one in five minutes: the rest is dropped.
2. More than ten Events of one object that differ only in their message become one, with the newest message.
3. An Event that was told before raises the count of its object.

An Event with `eventTime` (events.k8s.io) has a series in the place of a count. Its count is written when it begins, and
then at most every six minutes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from .events import ABOUT
from .meta import Object
from .times import micro_timestamp, timestamp

BURST, REFILL_SECONDS = 25, 300.0
SIMILAR, SIMILAR_SECONDS = 10, 600.0
SERIES_SECONDS = 360.0
KEPT = 4096  # of each memory, the newest
COMBINED = "(combined from similar events): "
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to send: a new object, or a strategic or merge patch of the one of this name."""

    verb: Literal["create", "patch"]
    namespace: str
    name: str
    obj: Object
    whole: Object  # the Event as it is to be, for a patch of an object that is gone


@dataclass(slots=True)
class _Bucket:
    left: float = BURST
    at: float = 0.0


@dataclass(slots=True)
class _Alike:
    """Messages of Events that are otherwise equal. last: seconds since 1970."""

    messages: set[str] = field(default_factory=set)
    last: float = 0.0


@dataclass(slots=True)
class _Seen:
    """An Event that was sent. first: its first time; sent: seconds since 1970 of the last write."""

    name: str
    count: int
    first: Any
    sent: float


def _reference(event: Object) -> tuple[str, ...]:
    about = event.get(ABOUT) or {}
    return tuple(str(about.get(f) or "") for f in ("kind", "namespace", "name", "uid", "apiVersion", "fieldPath"))


def _source(event: Object) -> tuple[str, ...]:
    source = event.get("source") or {}
    who = (source.get("component"), source.get("host"), event.get("reportingComponent"), event.get("reportingInstance"))
    return tuple(str(one or "") for one in who)


def _memory(memory: OrderedDict[Hashable, _Value], key: Hashable, fresh: _Value) -> _Value:
    """Return the value of a key, `fresh` for a new one; it becomes the newest."""
    found = memory.setdefault(key, fresh)
    memory.move_to_end(key)
    if len(memory) > KEPT:
        memory.popitem(last=False)
    return found


class Correlator:
    """Remembers what one process has told."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()
        self._alike: OrderedDict[Hashable, _Alike] = OrderedDict()
        self._seen: OrderedDict[Hashable, _Seen] = OrderedDict()

    def correlate(self, event: Object, now: float) -> Wanted | None:
        """Return what to send of a core/v1 Event, None for nothing. An Event that has a name is sent as it is. now:
        seconds since 1970.
        """
        space, metadata = event["metadata"].get("namespace", "default"), event["metadata"]
        if metadata.get("name"):
            return Wanted("create", space, metadata["name"], event, event)
        message = self._combined(event, now)
        event = {**event, "message": message}
        seen = self._counted(event, now)
        if not self._passes(event, now):
            return None
        return self._series(event, seen, space, now) if event.get("eventTime") else _count(event, seen, space, now)

    def gone(self, event: Object) -> None:
        """Forget an Event: its object does not exist any more."""
        self._seen.pop(self._identity(event), None)

    def _passes(self, event: Object, now: float) -> bool:
        bucket = _memory(self._buckets, (_source(event), _reference(event)[:5]), _Bucket(BURST, now))
        bucket.left = min(float(BURST), bucket.left + max(0.0, now - bucket.at) / REFILL_SECONDS)
        bucket.at = now
        if bucket.left < 1:
            return False
        bucket.left -= 1
        return True

    def _combined(self, event: Object, now: float) -> str:
        """Return the message of an Event, or that of the group that it belongs to."""
        key = (_source(event), _reference(event), event.get("type"), event.get("reason"), bool(event.get("eventTime")))
        group = _memory(self._alike, key, _Alike(last=now))
        if now - group.last > SIMILAR_SECONDS:
            group.messages.clear()
        group.last, message = now, str(event.get("message") or "")
        if len(group.messages) < SIMILAR or message in group.messages:
            group.messages.add(message)
            return message
        return COMBINED + message

    @staticmethod
    def _identity(event: Object) -> Hashable:
        message = str(event.get("message") or "")
        told = COMBINED if message.startswith(COMBINED) else message
        return _source(event), _reference(event), event.get("type"), event.get("reason"), told

    def _counted(self, event: Object, now: float) -> _Seen:
        name = f"{event[ABOUT]['name'][:200]}.{int(now * 1e9):x}"
        first = event.get("eventTime") or event.get("firstTimestamp") or timestamp(now)
        seen = _memory(self._seen, self._identity(event), _Seen(name, 0, first, now))
        seen.count += 1
        return seen

    @staticmethod
    def _series(event: Object, seen: _Seen, space: str, now: float) -> Wanted | None:
        metadata = {"name": seen.name, "namespace": space}
        if seen.count == 1:
            made = {**event, "metadata": metadata}
            return Wanted("create", space, seen.name, made, made)
        if seen.count > 2 and now - seen.sent < SERIES_SECONDS:
            return None
        seen.sent = now
        series = {"count": seen.count, "lastObservedTime": micro_timestamp(now)}
        whole = {**event, "metadata": metadata, "eventTime": seen.first, "series": series}
        return Wanted("patch", space, seen.name, {"series": series}, whole)


def _count(event: Object, seen: _Seen, space: str, now: float) -> Wanted:
    metadata, last = {"name": seen.name, "namespace": space}, timestamp(now)
    seen.sent = now
    whole = {**event, "metadata": metadata, "count": seen.count, "firstTimestamp": seen.first, "lastTimestamp": last}
    if seen.count == 1:
        return Wanted("create", space, seen.name, whole, whole)
    body = {"count": seen.count, "lastTimestamp": last, "message": event["message"]}
    return Wanted("patch", space, seen.name, body, whole)
