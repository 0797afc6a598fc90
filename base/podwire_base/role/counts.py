"""Compares what is counted of the kernel's state with the last look. Pure; the callers read the kernel."""

from __future__ import annotations

from collections.abc import Callable, Hashable


class Counts:
    """What is counted of the kernel's state, compared with the last look.

    figures: the counts. generation: a number that stands still while only this role writes; None: there is no such
    number, so the figures are read at each look. own: grows with each change by this role itself; such a change makes
    other figures right. hinted: whether a hint of the kernel's can be about these (default: if there is a generation).
    """

    def __init__(
        self,
        figures: Callable[[], Hashable],
        generation: Callable[[], int] | None = None,
        own: Callable[[], int] = lambda: 0,
        *,
        hinted: bool = False,
    ) -> None:
        self._figures, self._generation, self._own = figures, generation, own
        self.hinted = hinted or generation is not None
        self._last: tuple[int | None, int, Hashable] | None = None
        self._before: tuple[int | None, int, Hashable] | None = None
        self._unsure = False  # what changed while the role read, and perhaps after it read it

    def reading(self) -> None:
        """The role begins to read everything. What others change from now on is a difference at the next look, even if
        it happens before `settled`. So are the role's own changes, if there is no generation or if it moves by more
        than `own`: they cost one more reading. Raises OSError.
        """
        self._before = self._now()

    def settled(self) -> None:
        """The kernel's state was as it should be when the role read it. Raises OSError."""
        before, self._before = self._before, None
        if self._generation:
            now = self._now()
            self._unsure = before is not None and _more(before, now) and before[2] != now[2]
            self._last = now
        else:
            self._last = before or self._last or self._now()

    def _now(self) -> tuple[int | None, int, Hashable]:
        own, generation = self._own(), self._generation() if self._generation else None
        return generation, own, self._figures()

    def differs(self) -> bool:
        """Whether another program changed what is counted since the last look. Raises OSError."""
        if self._last is None:
            self._last = self._now()
            return False
        if self._unsure:
            self._unsure, self._last = False, self._now()
            return True
        generation, own, figures = self._last
        now = self._generation() if self._generation else None
        if now is not None and (now, self._own()) == (generation, own):
            return False
        self._last = self._now()
        # our own changes meanwhile: what others changed beside them is told by the notifications
        return self._last[1] == own and self._last[2] != figures


def _more(before: tuple[int | None, int, Hashable], now: tuple[int | None, int, Hashable]) -> bool:
    """Whether the generation moved by more than the role's own changes."""
    return (now[0] or 0) - (before[0] or 0) > now[1] - before[1]
