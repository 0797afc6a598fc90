"""The Store in memory: the reference implementation. The SQLite store reads through it."""

from __future__ import annotations

import asyncio
import bisect
from collections import deque
from collections.abc import AsyncGenerator, Callable

from .base import Compacted, Conflict, Item, StoredChange

HISTORY = 100_000  # number of changes that a resumed watch can replay; a watch from an older revision gets 410 Gone
HISTORY_BYTES = 64 << 20  # of their values, with the values before; whichever bound is reached first
LAG = 100_000  # changes by which the reader of a watch may lag behind


def cost(change: StoredChange) -> int:
    """Return the bytes of values that a change holds."""
    return sum(len(item.value) for item in (change.item, change.before) if item is not None)


class MemoryStore:
    """See store/base.py. history, history_bytes: the maximum number and size of past changes that `since` and
    `scan(at=...)` can read. The last change always stays.
    """

    def __init__(self, history: int = HISTORY, history_bytes: int = HISTORY_BYTES) -> None:
        self._items: dict[str, Item] = {}
        self._keys: list[str] = []  # sorted
        self._revision = 0
        self._compacted = 0  # changes up to this revision are discarded
        self._changes: deque[StoredChange] = deque()
        self._bytes = 0
        self._history, self._history_bytes = history, history_bytes
        self._listeners: list[Callable[[StoredChange], None]] = []
        self._watches: set[_Watch] = set()

    async def revision(self) -> int:
        return self._revision

    async def get(self, key: str) -> Item | None:
        return self._items.get(key)

    async def scan(self, prefix: str, at: int | None = None) -> list[Item]:
        start = bisect.bisect_left(self._keys, prefix)
        end = bisect.bisect_left(self._keys, prefix + "\U0010ffff")
        now = [self._items[key] for key in self._keys[start:end]]
        if at is None or at >= self._revision:
            return now
        then = {item.key: item for item in now}
        for change in reversed(await self.since(prefix, at)):
            if change.before is None:
                then.pop(change.key, None)
            else:
                then[change.key] = change.before
        return [then[key] for key in sorted(then)]

    async def since(self, prefix: str, revision: int) -> list[StoredChange]:
        if revision < self._compacted:
            raise Compacted(self._compacted)
        newest = list[StoredChange]()
        for change in reversed(self._changes):  # a resumed watch needs the last few only
            if change.revision <= revision:
                break
            if change.key.startswith(prefix):
                newest.append(change)
        newest.reverse()
        return newest

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[StoredChange, None]:
        watch = _Watch(prefix)
        leave = self.subscribe(watch.take)
        self._watches.add(watch)
        try:
            for change in await self.since(prefix, revision):
                revision = change.revision
                yield change
            while True:
                while watch.queue:
                    change = watch.queue.popleft()
                    if change.revision > revision:
                        revision = change.revision
                        yield change
                if watch.late:
                    raise Compacted(self._revision)
                if watch.closed:
                    return
                watch.wake.clear()
                await watch.wake.wait()
        finally:
            leave()
            self._watches.discard(watch)

    # ---- writing

    def _decide(
        self, key: str, value: bytes | None, expect: int | None, revision: int, before: Item | None
    ) -> StoredChange:
        """Return the change that a write makes. value: None deletes. Raises Conflict."""
        if expect is not None and (before.revision if before else 0) != expect:
            raise Conflict(before)
        if value is None:
            if before is None:
                raise Conflict(None)
            return StoredChange(revision, key, None, before)
        return StoredChange(revision, key, Item(key, revision, value), before)

    async def _write(self, key: str, value: bytes | None, expect: int | None) -> StoredChange:
        change = self._decide(key, value, expect, self._revision + 1, self._items.get(key))
        self._publish([change])
        return change

    async def put(self, key: str, value: bytes, expect: int | None = None) -> Item:
        change = await self._write(key, value, expect)
        assert change.item is not None
        return change.item

    async def delete(self, key: str, expect: int | None = None) -> StoredChange:
        return await self._write(key, None, expect)

    def _publish(self, changes: list[StoredChange]) -> None:
        """Show changes to readers, and then to listeners."""
        for change in changes:
            self._remember(change)
        for change in changes:
            for listener in tuple(self._listeners):
                listener(change)

    def _remember(self, change: StoredChange) -> None:
        if change.item is None:
            del self._items[change.key]
            del self._keys[bisect.bisect_left(self._keys, change.key)]
        else:
            if change.before is None:
                bisect.insort(self._keys, change.key)
            self._items[change.key] = change.item
        self._revision = change.revision
        self._changes.append(change)
        self._bytes += cost(change)
        self._trim()

    def _trim(self) -> None:
        while len(self._changes) > 1 and (len(self._changes) > self._history or self._bytes > self._history_bytes):
            gone = self._changes.popleft()
            self._compacted = gone.revision
            self._bytes -= cost(gone)

    def subscribe(self, listener: Callable[[StoredChange], None]) -> Callable[[], None]:
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:  # a closed store has no listeners
                self._listeners.remove(listener)

        return unsubscribe

    async def close(self) -> None:
        self._listeners.clear()
        for watch in self._watches:
            watch.closed = True
            watch.wake.set()


class _Watch:
    """The changes that the reader of one watch has not taken yet."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.queue, self.wake = prefix, deque[StoredChange](), asyncio.Event()
        self.late = self.closed = False

    def take(self, change: StoredChange) -> None:
        if change.key.startswith(self.prefix):
            if len(self.queue) < LAG:
                self.queue.append(change)
            else:
                self.late = True
            self.wake.set()
