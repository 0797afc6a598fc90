"""Decides when to sync. Pure: `now` is seconds of any monotonic clock.

The pacer syncs the first change after a quiet time at once. In a burst, the pacer allows one sync per interval. If a
sync took longer than the interval, syncs take at most half of the time (iptables always writes a whole table). After a
failure, the next sync is a full sync, after a pause that doubles. If another program held the lock, the pause is short.
"""

from __future__ import annotations

from dataclasses import dataclass

RETRY_FIRST, RETRY_LAST = 0.1, 30.0
VERIFY_FIRST, VERIFY_SHARE = (
    60.0,
    200,
)  # a backend without notifications reads back each minute, but for at most a 200th of the time
RETRY_BUSY = 0.5  # the pause if another program holds the lock; such an attempt costs little


@dataclass(slots=True)
class Pacer:
    """Paces syncs. `changed` records a change, `due` returns the time of the next sync, `done` records the result.

    All times are in seconds.
    """

    min_interval: float
    verify_interval: float = 600.0
    no_notifications: bool = False
    pending: bool = False
    full: bool = True
    failures: int = 0
    busy: bool = False
    _last: float = float("-inf")
    _began: float = float("-inf")
    _took: float = 0.0
    _full_took: float = 0.0
    _verified: float = float("-inf")

    def changed(self, *, full: bool = False) -> None:
        """Records a change. full: the mirror may be wrong, so the next sync must read the kernel's state back."""
        self.pending = True
        self.full = self.full or full

    def due(self, now: float) -> float:
        """Returns the seconds until the next sync; 0: now."""
        if not self.pending:
            return max(0.0, self._verified + self._interval - now)
        if self.failures:
            wait: float = min(RETRY_FIRST * 2 ** (self.failures - 1), RETRY_BUSY if self.busy else RETRY_LAST)
        else:
            wait = self.min_interval
        return max(0.0, self._last + max(wait, self._took) - now)

    @property
    def _interval(self) -> float:
        """Returns the seconds between two read-backs. deaf: the kernel does not report every foreign change."""
        often = max(VERIFY_FIRST, VERIFY_SHARE * self._full_took) if self.no_notifications else self.verify_interval
        return min(often, self.verify_interval)

    def start(self, now: float) -> bool:
        """Begins a sync. Returns whether it must be a full sync. Later changes belong to the next sync."""
        full = self.full or now >= self._verified + self._interval
        self.pending = self.full = False
        self._began = now
        return full

    def done(self, now: float, *, ok: bool, full: bool, busy: bool = False) -> None:
        """Ends a sync. busy: the sync failed because another program held the lock."""
        self._last, self._took, self.busy = now, now - self._began, busy
        if ok:
            self.failures = 0
            if full:
                self._verified, self._full_took = now, self._took
            return
        self.failures += 1
        self.changed(full=True)
