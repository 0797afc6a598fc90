"""Times as the Kubernetes API writes them: RFC 3339 in UTC (metav1.Time, metav1.MicroTime). Pure."""

from __future__ import annotations

from datetime import UTC, datetime


def timestamp(now: float) -> str:
    """metav1.Time of `now`, in seconds since the epoch: "2026-11-23T05:00:00Z"."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_timestamp(now: float) -> str:
    """metav1.MicroTime of `now`, in seconds since the epoch: "2026-11-23T05:00:00.123456Z"."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    """Parse either form, with up to nine digits of a second. Raises ValueError for another form, TypeError for a value
    that is no string.
    """
    return datetime.fromisoformat(text)
