"""The Store on SQLite, with a write-ahead log. Every acknowledged write survives kill -9. The store serves reads from
memory.

The table `items` has the present objects. The table `changes` has the recent changes, so that watches resume after a
restart of the server. One process owns the file: SQLite's exclusive lock refuses a second process.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from .base import Item, StoredChange
from .memory import HISTORY, MemoryStore

_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (key TEXT PRIMARY KEY, revision INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS changes (
  revision INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB, before_revision INTEGER, before BLOB);
"""
_TRIM_EVERY = 1000


class StoreInUse(Exception):
    """Another process has locked the file."""


class SqliteStore(MemoryStore):
    """`SqliteStore(path)` opens or creates the file. Raises StoreInUse, or sqlite3.DatabaseError for a damaged file."""

    def __init__(self, path: Path, history: int = HISTORY) -> None:
        super().__init__(history)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=2)
        try:
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            self._db.execute("BEGIN IMMEDIATE")
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
        rows = self._db.execute(
            "SELECT revision, key, value, before_revision, before FROM changes ORDER BY revision DESC LIMIT ?",
            (self._history,),
        ).fetchall()
        for revision, key, value, before_revision, before in reversed(rows):
            self._changes.append(
                StoredChange(
                    revision,
                    key,
                    None if value is None else Item(key, revision, value),
                    None if before is None else Item(key, before_revision, before),
                )
            )
        if self._changes:
            self._revision = self._changes[-1].revision
            self._compacted = self._changes[0].revision - 1

    def _persist(self, change: StoredChange) -> None:
        item, before = change.item, change.before
        execute = self._db.execute
        execute("BEGIN IMMEDIATE")
        try:
            if item is None:
                execute("DELETE FROM items WHERE key = ?", (change.key,))
            else:
                execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?)", (change.key, item.revision, item.value))
            execute(
                "INSERT INTO changes VALUES (?, ?, ?, ?, ?)",
                (change.revision, change.key, item and item.value, before and before.revision, before and before.value),
            )
            if change.revision % _TRIM_EVERY == 0:
                execute("DELETE FROM changes WHERE revision <= ?", (change.revision - self._history,))
            execute("COMMIT")
        except sqlite3.Error:
            if self._db.in_transaction:
                execute("ROLLBACK")
            raise

    async def close(self) -> None:
        await super().close()
        self._db.close()
