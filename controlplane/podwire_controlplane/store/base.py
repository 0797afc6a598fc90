"""The Store protocol: a small key-value store with revisions, compare-and-swap and history, like etcd.

Keys are slash-separated paths, values are opaque bytes. Each successful write increases the revision of the whole store
by exactly one. An item's revision is that of its last write.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Conflict(Exception):
    """A compare-and-swap lost: `actual` is the present item (None: there is none)."""

    def __init__(self, actual: Item | None) -> None:
        super().__init__("another client wrote the key")
        self.actual = actual


class Compacted(Exception):
    """The requested history is gone; `oldest` is the first revision that can still be read from."""

    def __init__(self, oldest: int) -> None:
        super().__init__(f"history before revision {oldest} is gone")
        self.oldest = oldest


@dataclass(frozen=True, slots=True)
class Item:
    key: str
    revision: int
    value: bytes


@dataclass(frozen=True, slots=True)
class StoredChange:
    """One write. `item` is None for a deletion, `before` None for a creation."""

    revision: int
    key: str
    item: Item | None
    before: Item | None


class Store(Protocol):
    """Implementations: MemoryStore, SqliteStore. All calls may suspend. A write is durable when the call returns."""

    async def revision(self) -> int: ...

    async def get(self, key: str) -> Item | None: ...

    async def scan(self, prefix: str, at: int | None = None) -> list[Item]:
        """Items below `prefix` in key order, as of revision `at` (default: now). Raises Compacted."""
        ...

    async def put(self, key: str, value: bytes, expect: int | None = None) -> Item:
        """Write a key. expect: the revision that the key must have now, 0 if it must not exist. Raises Conflict."""
        ...

    async def delete(self, key: str, expect: int | None = None) -> StoredChange:
        """Delete a key. Raises Conflict, also if there is nothing to delete."""
        ...

    async def since(self, prefix: str, revision: int) -> list[StoredChange]:
        """Changes below `prefix` after `revision`, in order. Raises Compacted."""
        ...

    def subscribe(self, listener: Callable[[StoredChange], None]) -> Callable[[], None]:
        """Call `listener` for every later write, in order; returns the function that unsubscribes it."""
        ...

    async def close(self) -> None: ...
