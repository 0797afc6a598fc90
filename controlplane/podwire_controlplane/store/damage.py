"""Finds a damaged store before a server opens it, and keeps its files aside."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from pathlib import Path

from podwire_base.kube import codec

_ENDS = ("", "-wal", "-shm")


def damage(path: Path) -> str:
    """Return what is wrong with the store in a file, "" if it is whole. The store must not be in use."""
    if not path.exists():
        return "the file is gone"
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=2)) as db:
            found = [str(row[0]) for row in db.execute("PRAGMA quick_check(1)")]
            if found != ["ok"]:
                return found[0] if found else "SQLite cannot check it"
            if not db.execute("SELECT count(*) FROM items").fetchone()[0]:
                return "it is empty"
            for key, value in db.execute("SELECT key, value FROM items"):
                try:
                    codec.decode(value)
                except ValueError as err:
                    return f"{key}: {err}"
            db.execute("SELECT count(*) FROM changes").fetchone()
    except sqlite3.DatabaseError as err:
        return str(err)
    return ""


def keep_aside(path: Path) -> Path | None:
    """Rename the store's files, so that a server makes a new store. Returns the new name, None if there is no file.
    Raises OSError.
    """
    kept = next(name for n in itertools.count(1) if not (name := path.with_name(f"{path.name}.damaged-{n}")).exists())
    for end in reversed(_ENDS):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{end}").rename(f"{kept}{end}")
    return kept if kept.exists() else None
