"""The Store protocol: a small key-value store with revisions, compare-and-swap and history, like etcd.

Keys are slash-separated paths, and values are opaque bytes. Each successful write increases the revision of the whole
store by one. An item's revision is the store's revision after the item's last write.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol


class Conflict(Exception):
    """A compare-and-swap failed. actual: the present item, None if the key does not exist."""

    def __init__(self, actual: Item | None) -> None:
        super().__init__("another client wrote the key")
        self.actual = actual


class Compacted(Exception):
    """The store no longer has the requested history. oldest: the oldest revision that a client can still request."""

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
    """One write. `item` is None for a deletion; `before` is None for a creation."""

    revision: int
    key: str
    item: Item | None
    before: Item | None


class Store(Protocol):
    """Implementations: MemoryStore, SqliteStore. All calls may suspend. A write is durable when the call returns."""

    async def revision(self) -> int: ...

    async def get(self, key: str) -> Item | None: ...

    async def scan(self, prefix: str, at: int | None = None) -> list[Item]:
        """Return the items whose key starts with `prefix`, in key order, as of revision `at` (default: now). Raises
        Compacted.
        """
        ...

    async def put(self, key: str, value: bytes, expect: int | None = None) -> Item:
        """Write a key. expect: the revision that the key must have, 0 if the key must not exist. Raises Conflict."""
        ...

    async def delete(self, key: str, expect: int | None = None) -> StoredChange:
        """Delete a key. Raises Conflict, also if the key does not exist."""
        ...

    async def since(self, prefix: str, revision: int) -> list[StoredChange]:
        """Return the changes after `revision` to keys that start with `prefix`, in order. Raises Compacted."""
        ...

    def watch(self, prefix: str, revision: int) -> AsyncIterator[StoredChange]:
        """Yield the changes after `revision` to keys that start with `prefix`, in order, each once and after it is
        durable, until the store is closed. Raises Compacted at the first step if the history is gone, and later if the
        reader lags behind too far.
        """
        ...

    def subscribe(self, listener: Callable[[StoredChange], None]) -> Callable[[], None]:
        """Call `listener` for every later write, in order. Return the function that unsubscribes the listener."""
        ...

    async def close(self) -> None: ...
