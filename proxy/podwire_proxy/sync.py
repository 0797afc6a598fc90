"""Decides when to sync. Pure: `now` is seconds of any monotonic clock.

The first change after a quiet time is written at once. A burst is gathered: at most one sync in an interval. If a sync
took longer than the interval, at most half of the time goes into syncs (iptables writes a table of any size whole). A
failed sync is tried again, as a full one, after a pause that doubles. If another program held the lock, it is tried
again soon.
"""

from __future__ import annotations

from dataclasses import dataclass

RETRY_FIRST, RETRY_LAST = 0.1, 30.0
VERIFY_FIRST, VERIFY_SHARE = (
    60.0,
    200,
)  # a backend without notifications reads back each minute; if that takes long, it uses a 200th of the time
RETRY_BUSY = 0.5  # if another program holds the lock, which costs the kernel nothing


@dataclass(slots=True)
class Pacer:
    """`changed` records that there is work, `due` returns when to sync, `done` records the result. All times in
    seconds.
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
        """full: the mirror of the kernel's state cannot be trusted; read it back."""
        self.pending = True
        self.full = self.full or full

    def due(self, now: float) -> float:
        """Seconds until the next sync: 0 for now."""
        if not self.pending:
            return max(0.0, self._verified + self._interval - now)
        if self.failures:
            wait: float = min(RETRY_FIRST * 2 ** (self.failures - 1), RETRY_BUSY if self.busy else RETRY_LAST)
        else:
            wait = self.min_interval
        return max(0.0, self._last + max(wait, self._took) - now)

    @property
    def _interval(self) -> float:
        """Between two read-backs. deaf: the kernel does not tell of every change that others make."""
        often = max(VERIFY_FIRST, VERIFY_SHARE * self._full_took) if self.no_notifications else self.verify_interval
        return min(often, self.verify_interval)

    def start(self, now: float) -> bool:
        """A sync begins; returns whether it must be a full one. Changes from here on belong to the next one."""
        full = self.full or now >= self._verified + self._interval
        self.pending = self.full = False
        self._began = now
        return full

    def done(self, now: float, *, ok: bool, full: bool, busy: bool = False) -> None:
        """A sync ended. busy: it failed because another program held the lock."""
        self._last, self._took, self.busy = now, now - self._began, busy
        if ok:
            self.failures = 0
            if full:
                self._verified, self._full_took = now, self._took
            return
        self.failures += 1
        self.changed(full=True)
