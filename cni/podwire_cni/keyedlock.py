"""Locks by name. Only one verb at a time works on a container, and different containers do not wait for each other."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class KeyedLock:
    """Locks by name. A lock exists only while a thread holds it or waits for it. The thread that holds a lock may
    acquire the lock again.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.RLock, int]] = {}

    @contextlib.contextmanager
    def of(self, owner: str, patience: float = -1) -> Iterator[bool]:
        """A context manager that acquires the lock of this name. Yields True if the caller has the lock, False if other
        threads held it for `patience` seconds (-1: wait without limit).

        A thread that already holds a lock must not wait without limit for a second lock. The holder of the second lock
        may wait for the first lock, and both would wait forever.
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
