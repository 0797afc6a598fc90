"""The Store in memory: the reference implementation. The SQLite store reads through it."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable

from .base import Compacted, Conflict, Item, StoredChange

HISTORY = 10_000  # number of changes that a resumed watch can replay; a watch from an older revision gets 410 Gone


class MemoryStore:
    """See store/base.py. history: the maximum number of past changes that `since` and `scan(at=...)` can read."""

    def __init__(self, history: int = HISTORY) -> None:
        self._items: dict[str, Item] = {}
        self._keys: list[str] = []  # sorted
        self._revision = 0
        self._compacted = 0  # changes up to this revision are discarded
        self._changes: deque[StoredChange] = deque()
        self._history = history
        self._listeners: list[Callable[[StoredChange], None]] = []

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
        skip = max(0, len(self._changes) - (self._revision - revision))
        return [c for n, c in enumerate(self._changes) if n >= skip and c.key.startswith(prefix)]

    def _expect(self, key: str, expect: int | None) -> Item | None:
        actual = self._items.get(key)
        if expect is not None and (actual.revision if actual else 0) != expect:
            raise Conflict(actual)
        return actual

    async def put(self, key: str, value: bytes, expect: int | None = None) -> Item:
        before = self._expect(key, expect)
        item = Item(key, self._revision + 1, value)
        self._commit(StoredChange(item.revision, key, item, before))
        return item

    async def delete(self, key: str, expect: int | None = None) -> StoredChange:
        before = self._expect(key, expect)
        if before is None:
            raise Conflict(None)
        change = StoredChange(self._revision + 1, key, None, before)
        self._commit(change)
        return change

    def _persist(self, change: StoredChange) -> None:
        """Make one change durable before a reader sees it. The memory store does nothing here."""

    def _commit(self, change: StoredChange) -> None:
        self._persist(change)
        self._remember(change)
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
        while len(self._changes) > self._history:
            self._compacted = self._changes.popleft().revision

    def subscribe(self, listener: Callable[[StoredChange], None]) -> Callable[[], None]:
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:  # a closed store has no listeners
                self._listeners.remove(listener)

        return unsubscribe

    async def close(self) -> None:
        self._listeners.clear()
