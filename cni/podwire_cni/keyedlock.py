"""Locks by name: one verb at a time for each container, and containers do not wait for each other."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class KeyedLock:
    """Locks by name. A lock exists while it is held or awaited. Its holder may acquire it again."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.RLock, int]] = {}

    @contextlib.contextmanager
    def of(self, owner: str, patience: float = -1) -> Iterator[bool]:
        """Yields whether the caller holds the lock: False if others held it for all of `patience` seconds (-1: no
        limit).

        A caller that already holds a lock must not wait without limit for another one: the holder of that may wait for
        the first.
        """
        with self._guard:
            lock, users = self._locks.get(owner, (threading.RLock(), 0))
            self._locks[owner] = (lock, users + 1)
        try:
            mine = lock.acquire(timeout=patience)
            try:
                yield mine
            finally:
                if mine:
                    lock.release()
        finally:
            with self._guard:
                lock, users = self._locks.pop(owner)
                if users > 1:
                    self._locks[owner] = (lock, users - 1)
