"""The text of log lines, and the limit of repeated lines. Pure: the caller gives the time.

A peer can choose parts of a line (a name, a request), so every character that a terminal or a log reader could take
for a command is escaped, and a peer that causes the same line again and again gets only a few of them written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SAME_BURST, SAME_SECONDS = 5, 10.0  # a line with the same fields: at once, then one in so many seconds
KIND_BURST, KIND_SECONDS = 200, 0.2  # lines of one event with different fields
REMEMBERED = 2000  # different lines; the oldest is forgotten first


def value(given: object) -> str:
    """Returns a value of a `key=value` line: plain text, or a JSON text in quotes where the plain text would be
    ambiguous or has a character that is not printable.
    """
    if isinstance(given, float):
        return f"{given:.4g}"
    text = given if isinstance(given, str) else json.dumps(given, default=str)
    if text == "" or not text.isprintable() or any(c in text for c in ' ="'):
        return _json(text)
    return text


def printable(text: str) -> str:
    """Returns the text with escapes for the characters that a terminal would obey, as text of others may have."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _json(given: object) -> str:
    return json.dumps(given, default=str)  # in ASCII: everything else is escaped


def plain(stamp: str, level: str, role: str, event: str, fields: Mapping[str, Any]) -> str:
    """Returns "TIME level role event key=value ..."."""
    return " ".join([stamp, level, value(role), value(event), *(f"{value(k)}={value(v)}" for k, v in fields.items())])


def as_json(stamp: str, level: str, role: str, event: str, fields: Mapping[str, Any]) -> str:
    return _json({"time": stamp, "level": level, "role": role, "event": event, **fields})


@dataclass(slots=True)
class _Bucket:
    """A token bucket: `burst` lines at once, then one line each `seconds`."""

    left: float
    at: float
    held: int = 0  # lines that were not written since the last one that was

    def take(self, now: float, burst: int, seconds: float) -> bool:
        self.left = min(float(burst), self.left + max(0.0, now - self.at) / seconds)
        self.at = now
        if self.left < 1:
            self.held += 1
            return False
        self.left -= 1
        return True


class Repeats:
    """Decides which lines are written. `allow` is given every line; `overdue` returns the held lines that no later line
    of their kind reported.

    Lines are the same if level, role, event and fields are the same. In warnings and errors numbers with a fraction
    (times) do not count as different. Only warnings and errors have a limit for lines of one event with different
    fields: a log of queries is asked for by its user, and must be whole.
    """

    def __init__(self) -> None:
        self._same: dict[tuple[str, ...], _Bucket] = {}
        self._kinds: dict[tuple[str, ...], _Bucket] = {}
        self._held: dict[tuple[str, ...], float] = {}  # lines with held repeats, and the time of the last repeat

    def allow(self, level: str, role: str, event: str, fields: Mapping[str, Any], now: float) -> int | None:
        """Returns None if the line is a repeat that must not be written, else the number of lines like it that were
        not written since the last one.
        """
        serious = level in ("warn", "error")
        kind = (level, role, event)
        same = (*kind, *(f"{k}={v}" for k, v in fields.items() if not (serious and isinstance(v, float))))
        held = self._take(self._same, same, now, SAME_BURST, SAME_SECONDS)
        if held is None or not serious:
            return held
        more = self._take(self._kinds, kind, now, KIND_BURST, KIND_SECONDS)
        return None if more is None else held + more

    def _take(
        self, buckets: dict[tuple[str, ...], _Bucket], key: tuple[str, ...], now: float, burst: int, seconds: float
    ) -> int | None:
        bucket = buckets.pop(key, None) or _Bucket(float(burst), now)
        buckets[key] = bucket  # the last used is the last in the dict
        if len(buckets) > REMEMBERED:
            del buckets[next(iter(buckets))]
        if not bucket.take(now, burst, seconds):
            self._held[key[:3]] = now
            return None
        held, bucket.held = bucket.held, 0
        return held

    def overdue(self, now: float) -> list[tuple[str, str, str, int]]:
        """Returns (level, role, event, number of lines) for events whose repeats ended SAME_SECONDS ago."""
        if not self._held:
            return []
        found = []
        for kind in [kind for kind, at in self._held.items() if now - at >= SAME_SECONDS]:
            del self._held[kind]
            number = 0
            for buckets in (self._same, self._kinds):
                for key, bucket in buckets.items():
                    if bucket.held and key[:3] == kind:
                        number, bucket.held = number + bucket.held, 0
            if number:
                found.append((kind[0], kind[1], kind[2], number))
        return found
