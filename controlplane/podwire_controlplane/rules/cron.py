"""Cron schedules: five fields, names of months and days, steps, and descriptors such as @hourly (robfig/cron v3)."""

from __future__ import annotations

import re

from podwire_base.numerals import INT32, decimal

_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of month", 1, 31), ("month", 1, 12), ("day of week", 0, 6))
_MONTHS = dict(
    zip(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], range(1, 13), strict=True)
)
_DAYS = dict(zip(["sun", "mon", "tue", "wed", "thu", "fri", "sat"], range(7), strict=True))
_DESCRIPTORS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
_EVERY = re.compile(r"@every ([0-9]+(\.[0-9]*)?(ns|us|ms|s|m|h))+")


class BadSchedule(ValueError):
    """The text is no schedule. The message names the field."""


def parse(text: str) -> list[frozenset[int]]:
    """Return the values of each of the five fields; [] for a descriptor. Raises BadSchedule."""
    if text.startswith("@"):
        if text in _DESCRIPTORS or _EVERY.fullmatch(text):
            return []
        raise BadSchedule(f"unrecognized descriptor: {text}")
    words = text.split()
    if len(words) != len(_FIELDS):
        raise BadSchedule(f"expected exactly 5 fields, found {len(words)}: {text}")
    return [_field(word, *limits) for word, limits in zip(words, _FIELDS, strict=True)]


def _field(word: str, what: str, low: int, high: int) -> frozenset[int]:
    names = _MONTHS if what == "month" else _DAYS if what == "day of week" else {}
    return frozenset(value for part in word.split(",") for value in _part(part, what, low, high, names))


def _number(text: str, what: str, names: dict[str, int]) -> int:
    if text.lower() in names:
        return names[text.lower()]
    number = decimal(text, INT32)
    if number is None:
        raise BadSchedule(f"failed to parse {what}: {text!r}")
    return number


def _part(part: str, what: str, low: int, high: int, names: dict[str, int]) -> range:
    span, slash, step = part.partition("/")
    first, dash, last = span.partition("-")
    if first in ("*", "?") and not dash:
        start, end = low, high
    else:
        start = _number(first, what, names)
        end = _number(last, what, names) if dash else high if slash else start
    width = _number(step, what, {}) if slash else 1
    if start < low or end > high or start > end or not width:
        raise BadSchedule(f"{what}: {part!r} is outside {low} to {high}, or ends before it starts")
    return range(start, end + 1, width)
