"""Deletes Events an hour after their last write, as kube-apiserver does (`--event-ttl`).

kube-apiserver lets etcd delete them: the time runs anew with each write, and neither finalizers nor owners delay it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from podwire_base.kube import codec
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import of
from podwire_base.kube.times import parse_time

from ..store.base import Conflict, Store, StoredChange

TTL = 3600.0  # seconds
AT_ONCE = 100  # deletions of one sweep; each is a durable write
PREFIXES = (of("Event").prefix(),)


def last_written(event: Object, now: float) -> float:
    """Returns the time of the last write that the object itself tells, at most `now`. An object that tells none counts
    as written now. Its fields come from clients and may hold anything.
    """
    meta, series = event.get("metadata"), event.get("series")
    given: list[Any] = [event.get("lastTimestamp"), event.get("eventTime")]
    given += [meta.get("creationTimestamp")] if isinstance(meta, dict) else []
    given += [series.get("lastObservedTime")] if isinstance(series, dict) else []
    found = []
    for text in given:
        try:
            found.append(parse_time(text).timestamp())
        except (ValueError, TypeError, OverflowError):
            continue
    return min(now, max(found, default=now))


class EventTtl:
    """The Events of a store, the one that ends next first. Call `start`, then `sweep` from time to time."""

    def __init__(self, store: Store, clock: Callable[[], float], ttl: float = TTL) -> None:
        self.store, self.clock, self.ttl = store, clock, ttl
        self._ends: OrderedDict[str, float] = OrderedDict()

    async def start(self) -> None:
        now = self.clock()
        found = [
            (last_written(codec.decode(item.value), now), item.key)
            for prefix in PREFIXES
            for item in await self.store.scan(prefix)
        ]
        self._ends.update((key, at + self.ttl) for at, key in sorted(found))
        self.store.subscribe(self._observe)

    def _observe(self, change: StoredChange) -> None:
        if change.key.startswith(PREFIXES):
            self._ends.pop(change.key, None)
            if change.item is not None:
                self._ends[change.key] = self.clock() + self.ttl  # the newest is the last

    async def sweep(self) -> int:
        """Delete Events whose time is over, at most AT_ONCE. Returns their number."""
        now, over = self.clock(), list[str]()
        for key, end in self._ends.items():
            if end > now or len(over) >= AT_ONCE:
                break
            over.append(key)
        for key in over:
            try:
                await self.store.delete(key)
            except Conflict:
                self._ends.pop(key, None)  # a client deleted it
        return len(over)
