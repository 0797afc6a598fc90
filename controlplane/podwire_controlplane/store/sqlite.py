"""The Store on SQLite, with a write-ahead log. Every acknowledged write survives kill -9. The store serves reads from
memory.

The writes of one moment share a transaction: those that arrive while a transaction is committed make the next one. A
thread commits, so that the event loop goes on while the disk works, and readers and listeners see a write after it is
durable.

The table `items` has the present objects. The table `changes` has the recent changes, so that watches resume after a
restart of the server. One process owns the file: SQLite's exclusive lock refuses a second process.

SQLite's `user_version` is the layout of the tables and of the objects in them. Version 0.2 wrote none (0).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from podwire_base.role import layout, logs

from .base import Conflict, Item, StoredChange
from .memory import HISTORY, HISTORY_BYTES, MemoryStore

log = logs.get("apiserver")
LAYOUT = 1  # raised by a change that an older API server would misread
_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (key TEXT PRIMARY KEY, revision INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS changes (
  revision INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB, before_revision INTEGER, before BLOB);
"""
_TRIM_EVERY, _TRIM_BYTES = 1000, 8 << 20  # how much more than the history the file may hold
_BATCH = 500  # writes of one transaction


class StoreInUse(Exception):
    """Another process has locked the file."""


class _Asked(NamedTuple):
    key: str
    value: bytes | None
    expect: int | None
    done: asyncio.Future[StoredChange]


_Order = tuple[asyncio.AbstractEventLoop, Callable[[], Any], Callable[[Any, Exception | None], None]]


def _serve(orders: queue.SimpleQueue[_Order | None]) -> None:
    """Do orders, one after another. It is the store's thread."""
    while (order := orders.get()) is not None:
        loop, work, done = order
        result, failure = None, None
        try:
            result = work()
        except Exception as err:
            failure = err
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            loop.call_soon_threadsafe(done, result, failure)


def _fail(asked: _Asked, failure: Exception) -> None:
    if not asked.done.done():
        asked.done.set_exception(failure)
        asked.done.exception()  # perhaps nobody waits for it any more


def _refuse(refused: list[tuple[Conflict, _Asked]]) -> None:
    for conflict, asked in refused:
        _fail(asked, conflict)


class SqliteStore(MemoryStore):
    """`SqliteStore(path)` opens or creates the file. Raises StoreInUse, layout.NewerLayout for a file of a later
    version (which stays as it is), or sqlite3.DatabaseError for a damaged file.
    """

    def __init__(self, path: Path, history: int = HISTORY, history_bytes: int = HISTORY_BYTES) -> None:
        super().__init__(history, history_bytes)
        self.path = path
        self.commits = 0
        self._asked: list[_Asked] = []
        self._busy = False  # a transaction is under way, or about to begin
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stored_from, self._stored_bytes = 0, 0  # what of the history was removed, but is in the file still
        self._db = sqlite3.connect(path, isolation_level=None, timeout=2, check_same_thread=False)
        try:
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            ((found,),) = self._db.execute("PRAGMA user_version")
            if found > LAYOUT:
                self._db.close()
                raise layout.NewerLayout(layout.refusal(str(path), found, LAYOUT))
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(f"PRAGMA user_version={LAYOUT:d}")
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as err:
            self._db.close()
            if err.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            raise StoreInUse(f"{path}: another API server has this store open ({err})") from err
        self._load()

    def _load(self) -> None:
        for key, revision, value in self._db.execute("SELECT key, revision, value FROM items ORDER BY key"):
            self._items[key] = Item(key, revision, value)
            self._keys.append(key)
        known: dict[str, Item] = {}
        for revision, key, value, before_revision, before in self._db.execute(
            "SELECT revision, key, value, before_revision, before FROM changes ORDER BY revision"
        ):
            if not self._changes:
                self._compacted = revision - 1
            old = known.get(key)
            if before is not None and (old is None or old.revision != before_revision):
                old = Item(key, before_revision, before)
            item = None if value is None else self._items.get(key)
            if value is not None and (item is None or item.revision != revision):
                item = Item(key, revision, value)
            change = StoredChange(revision, key, item, None if before is None else old)
            if item is not None:
                known[key] = item
            self._changes.append(change)
            self._bytes += len(value or b"") + len(before or b"")
            self._revision = revision
            self._trim()
        self._stored_from = self._compacted

    # ---- writing

    async def _write(self, key: str, value: bytes | None, expect: int | None) -> StoredChange:
        loop = asyncio.get_running_loop()
        asked = _Asked(key, value, expect, loop.create_future())
        self._asked.append(asked)
        if not self._busy:
            self._busy = True
            loop.call_soon(self._next, loop)  # the other writers of this moment come before it
        return await asyncio.shield(asked.done)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the next transaction, if there are writes."""
        while self._asked:
            batch, self._asked = self._asked[:_BATCH], self._asked[_BATCH:]
            changes, refused = self._decide_all(batch)
            if changes:
                rows = [change for change, _ in changes]
                self._order(loop, partial(self._persist, rows), partial(self._end, loop, changes, refused))
                return
            _refuse(refused)
        self._busy = False

    def _decide_all(
        self, batch: list[_Asked]
    ) -> tuple[list[tuple[StoredChange, _Asked]], list[tuple[Conflict, _Asked]]]:
        changes, refused = list[tuple[StoredChange, _Asked]](), list[tuple[Conflict, _Asked]]()
        fresh: dict[str, Item | None] = {}
        for asked in batch:
            before = fresh[asked.key] if asked.key in fresh else self._items.get(asked.key)
            try:
                revision = self._revision + len(changes) + 1
                change = self._decide(asked.key, asked.value, asked.expect, revision, before)
            except Conflict as err:
                refused.append((err, asked))
                continue
            fresh[asked.key] = change.item
            changes.append((change, asked))
        return changes, refused

    def _end(
        self,
        loop: asyncio.AbstractEventLoop,
        changes: list[tuple[StoredChange, _Asked]],
        refused: list[tuple[Conflict, _Asked]],
        _result: Any,
        failure: Exception | None,
    ) -> None:
        """Publish a transaction that is durable, or fail its writes."""
        if failure is not None:
            for one in (*changes, *refused):
                _fail(one[1], failure)
        else:
            self.commits += 1
            try:
                self._publish([change for change, _ in changes])
            except Exception:  # of a listener: the writes are durable, and the next ones have to go on
                log.error("a listener of the store failed", trace=traceback.format_exc(limit=-4))
            for change, asked in changes:
                if not asked.done.done():
                    asked.done.set_result(change)
            _refuse(refused)
        self._next(loop)

    def _order(
        self, loop: asyncio.AbstractEventLoop, work: Callable[[], Any], done: Callable[[Any, Exception | None], None]
    ) -> None:
        """Have the thread do `work`, and call `done(result, error)` in the loop after it."""
        if self._thread is None:
            self._thread = threading.Thread(target=_serve, args=(self._orders,), name="store", daemon=True)
            self._thread.start()
        self._orders.put((loop, work, done))

    def _persist(self, changes: list[StoredChange]) -> None:
        """Write changes in one transaction. Runs in the thread."""
        execute, last = self._db.execute, changes[-1].revision
        execute("BEGIN IMMEDIATE")
        try:
            for change in changes:
                item, before = change.item, change.before
                if item is None:
                    execute("DELETE FROM items WHERE key = ?", (change.key,))
                else:
                    execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?)", (change.key, item.revision, item.value))
                execute(
                    "INSERT INTO changes VALUES (?, ?, ?, ?, ?)",
                    (
                        change.revision,
                        change.key,
                        item and item.value,
                        before and before.revision,
                        before and before.value,
                    ),
                )
                self._stored_bytes += len(item.value if item else b"") + len(before.value if before else b"")
            if last - self._stored_from > self._history + _TRIM_EVERY or self._stored_bytes > _TRIM_BYTES:
                self._stored_from, self._stored_bytes = self._compacted, 0
                execute("DELETE FROM changes WHERE revision <= ?", (self._compacted,))
            execute("COMMIT")
        except sqlite3.Error:
            if self._db.in_transaction:
                execute("ROLLBACK")
            raise

    # ---- backup

    async def backup(self, path: Path) -> int:
        """Write a copy of the whole store as of one revision to a new file, and return the revision. Writes wait
        meanwhile. Raises FileExistsError.
        """

        def copy() -> int:
            path.touch(0o600, exist_ok=False)  # it holds Secrets
            other = sqlite3.connect(path)
            try:
                self._db.backup(other)
                return int(other.execute("SELECT coalesce(max(revision), 0) FROM changes").fetchone()[0])
            finally:
                other.close()

        return int(await self._in_thread(copy))

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def done(result: Any, failure: Exception | None) -> None:
            if not future.done():
                if failure is None:
                    future.set_result(result)
                else:
                    future.set_exception(failure)

        self._order(loop, work, done)
        return await future

    def abandon(self) -> None:
        """Close a store that nobody has used."""
        if self._thread is not None:
            self._orders.put(None)
            self._thread.join()
        self._db.close()

    async def close(self) -> None:
        while self._busy:
            await self._in_thread(lambda: None)  # after the transaction that is under way
        await super().close()
        self.abandon()
