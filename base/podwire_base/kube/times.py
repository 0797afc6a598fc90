"""Formats and parses the times of the Kubernetes API: RFC 3339 in UTC (metav1.Time, metav1.MicroTime), and Go's
durations (metav1.Duration). Pure.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "\u00b5s": 1e-6, "\u03bcs": 1e-6, "ns": 1e-9}
_PART = re.compile(rf"([0-9]++(?:\.[0-9]*+)?|\.[0-9]++)({'|'.join(sorted(_UNITS, key=len, reverse=True))})")
_SECONDS, _MICRO = "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%fZ"
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_RFC3339_MICRO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")
LONGEST_DURATION = 64  # characters; a longer text is no duration that anybody wrote
GREATEST = (2**63 - 1) / 1e9  # seconds in Go's time.Duration


def timestamp(now: float) -> str:
    """Returns a metav1.Time: "2026-11-23T05:00:00Z". now: seconds since the epoch."""
    return _second(int(now // 1))


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    """Format a second. One write of the API has several times of the same second."""
    return datetime.fromtimestamp(second, UTC).strftime(_SECONDS)


def micro_timestamp(now: float) -> str:
    """Returns a metav1.MicroTime: "2026-11-23T05:00:00.123456Z". now: seconds since the epoch."""
    return datetime.fromtimestamp(now, UTC).strftime(_MICRO)


def normal_time(text: str, micro: bool = False) -> str:
    """Returns a time as the API keeps it: in UTC, in seconds (metav1.Time) or microseconds (metav1.MicroTime, which has
    exactly six digits). Raises ValueError for what is not RFC 3339.
    """
    if not (_RFC3339_MICRO if micro else _RFC3339).fullmatch(text):
        raise ValueError(f"{text!r} is not a time such as 2026-01-31T12:00:00Z")
    moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).astimezone(UTC)
    return moment.strftime(_MICRO if micro else _SECONDS)


def parse_time(text: str) -> datetime:
    """Parse a metav1.Time or metav1.MicroTime, with up to nine fractional digits. Raises ValueError for another format,
    TypeError for a value that is not a string.
    """
    return datetime.fromisoformat(text)


def duration(text: str) -> float:
    """Returns the seconds of a Go duration (time.ParseDuration): "1h30m", "1.5s", "500ms", "0". The time of parsing is
    linear in the length of the text. Raises ValueError for another form, a negative duration or one out of Go's range.
    """
    rest = text.removeprefix("+")
    if rest == "0":
        return 0.0
    total, at = 0.0, 0
    while at < len(rest) <= LONGEST_DURATION:
        part = _PART.match(rest, at)
        if part is None:
            break
        total += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    if not rest or at < len(rest) or total > GREATEST:
        shown = text if len(text) <= LONGEST_DURATION else text[:LONGEST_DURATION] + "..."
        raise ValueError(f"{shown!r} is not a duration such as 30s or 1h30m")
    return total
