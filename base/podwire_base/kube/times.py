"""Formats and parses the times of the Kubernetes API: RFC 3339 in UTC (metav1.Time, metav1.MicroTime). Pure."""

from __future__ import annotations

from datetime import UTC, datetime


def timestamp(now: float) -> str:
    """Returns a metav1.Time: "2026-11-23T05:00:00Z". now: seconds since the epoch."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_timestamp(now: float) -> str:
    """Returns a metav1.MicroTime: "2026-11-23T05:00:00.123456Z". now: seconds since the epoch."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    """Parse a metav1.Time or metav1.MicroTime, with up to nine fractional digits. Raises ValueError for another format,
    TypeError for a value that is not a string.
    """
    return datetime.fromisoformat(text)
