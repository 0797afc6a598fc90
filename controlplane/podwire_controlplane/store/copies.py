"""Backup and restore of a store, as files.

A restored store begins far above the revisions of the old one. So a client that followed the old store is told that its
history is gone (410) and lists again; without the jump it would wait for changes that it believes to have seen already.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
from pathlib import Path

from .sqlite import SqliteStore

JUMP = 1_000_000_000  # revisions; more than a store writes between a backup and its end
MARK = "/podwire.io/restored"  # the key of the first write after a restore; no kind has keys of this group


class BadBackup(ValueError):
    """The file is no backup of a store. The text says why."""


def check(path: Path) -> tuple[int, int]:
    """Return (revision, number of objects) of a backup. Raises BadBackup, and OSError."""
    path.stat()
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as db:
            found = [str(row[0]) for row in db.execute("PRAGMA integrity_check(1)")]
            if found != ["ok"]:
                raise BadBackup(f"{path}: the file is damaged: {found[0] if found else 'SQLite cannot check it'}")
            items = int(db.execute("SELECT count(*) FROM items").fetchone()[0])
            newest = "SELECT max(r) FROM (SELECT max(revision) r FROM changes UNION SELECT max(revision) FROM items)"
            return int(db.execute(newest).fetchone()[0] or 0), items
    except sqlite3.DatabaseError as err:
        raise BadBackup(f"{path}: this is not a backup of a store ({err})") from err


def restore(backup: Path, path: Path) -> tuple[int, int]:
    """Replace the store in the file `path` with a backup, and return (revision, number of objects). The old file stays
    as path + ".before-restore". Raises BadBackup, StoreInUse if a server has the store open, and OSError.
    """
    revision, items = check(backup)
    if path.exists():
        SqliteStore(path).abandon()  # nobody has it open
    fresh = path.with_name(path.name + ".restoring")
    shutil.copyfile(backup, fresh)
    fresh.chmod(0o600)
    with contextlib.closing(sqlite3.connect(fresh)) as db:
        db.execute("PRAGMA journal_mode=DELETE")
        value = b'{"restored":%d}' % time.time()
        with db:
            db.execute("DELETE FROM changes")
            first = revision + JUMP
            db.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?)", (MARK, first, value))
            db.execute("INSERT INTO changes VALUES (?, ?, ?, NULL, NULL)", (first, MARK, value))
    for end in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{end}").rename(f"{path}.before-restore{end}")
    fresh.rename(path)
    return first, items
