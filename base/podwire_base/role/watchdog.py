"""Decides when a role that makes no progress is killed. Pure: the caller gives the time and what it read.

The times are those of the machine's monotonic clock, which stands still while the machine sleeps.
"""

from __future__ import annotations

from dataclasses import dataclass

SECONDS = 30.0  # without progress
MANY = 3  # ends in a row after which the seconds double: the work may need longer than that
GREATEST = 480.0
WELL = 600.0  # seconds of life after which earlier ends no longer count


@dataclass(slots=True)
class Watch:
    """One role. seconds: the time without progress. base: the begin of the present wait; ends: ends in a row by the
    watchdog.
    """

    seconds: float = SECONDS
    base: float = 0.0
    started_at: float = 0.0
    ends: int = 0
    suspect: bool = False

    @property
    def limit(self) -> float:
        return float(min(self.seconds * 2 ** (self.ends // MANY), max(GREATEST, self.seconds)))

    def started(self, now: float) -> None:
        self.base = self.started_at = now
        self.suspect = False

    def excused(self, now: float) -> None:
        """The role could not be expected to make progress until `now`: it was traced, or the whole machine was slow."""
        self.base, self.suspect = now, False

    def overdue(self, now: float, at: float | None) -> bool:
        """Whether the role must be killed. at: the time of its last progress; None: its beat cannot be read.

        The answer is only yes if two looks in a row find the beat too old, since one look may read a beat that is just
        being written.
        """
        last = max(self.base, at) if at is not None and at <= now + 1 else self.base
        late = now - last >= self.limit
        again, self.suspect = late and self.suspect, late
        return again

    def ended(self, now: float, *, by_watchdog: bool) -> None:
        if by_watchdog and now - self.started_at < self.limit + WELL:
            self.ends += 1
        else:
            self.ends = int(by_watchdog)
