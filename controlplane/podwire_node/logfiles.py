"""The log of a container in CRI's format: one record is `time stream tag text`. What a reader asks for. Pure.

Source: k8s.io/cri-api (log format), core/v1 PodLogOptions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from podwire_base.kube.times import parse_time


class Line(NamedTuple):
    """One line that a container wrote. stamp: RFC 3339 with nanoseconds. stream: stdout or stderr."""

    stamp: str
    stream: str
    text: str


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a container, in seconds since the epoch. end: infinite for the run of now."""

    begin: float
    end: float = float("inf")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Fields of PodLogOptions. since: seconds since the epoch. limit: bytes. stream: "" for both."""

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    tail: int | None = None
    limit: int | None = None
    since: float = 0.0
    stream: str = ""


def wanted(query: Mapping[str, str], now: float) -> Wanted:
    """Return the options of a query that the API server has checked. Raises ValueError."""

    def true(field: str) -> bool:
        return query.get(field, "") in ("true", "1")

    def number(field: str) -> int | None:
        return int(query[field]) if query.get(field) else None

    seconds, stream = number("sinceSeconds"), query.get("stream", "All")
    since = now - seconds if seconds is not None else 0.0
    if query.get("sinceTime"):
        since = parse_time(query["sinceTime"]).timestamp()
    return Wanted(
        true("follow"),
        true("previous"),
        true("timestamps"),
        number("tailLines"),
        number("limitBytes"),
        since,
        "" if stream == "All" else stream.lower(),
    )


def joined(records: Iterable[str], held: dict[str, str]) -> Iterator[Line]:
    """Yield the lines of log records. held: stream -> the parts of a long line (tag P) whose end is to come."""
    for record in records:
        words = record.rstrip("\n").split(" ", 3)
        stamp, stream = (words[0], words[1]) if len(words) == 4 else ("", "")
        text = held.pop(stream, "") + words[-1]
        if stream and words[2] == "P":
            held[stream] = text
        else:
            yield Line(stamp, stream, text)


def chosen(lines: Iterable[Line], asked: Wanted, run: Run) -> list[Line]:
    """Return the lines of a run that are asked for. A log of which parts are lost begins later."""
    begin = max(run.begin, asked.since)
    rows = [
        line
        for line in lines
        if (not asked.stream or line.stream == asked.stream) and begin <= _seconds(line.stamp) < run.end
    ]
    return rows if asked.tail is None else rows[max(0, len(rows) - asked.tail) :]


def _seconds(stamp: str) -> float:
    try:
        return parse_time(stamp).timestamp()
    except ValueError:
        return float("-inf")  # no record


def shown(line: Line, asked: Wanted) -> bytes:
    return (f"{line.stamp} {line.text}\n" if asked.timestamps else f"{line.text}\n").encode()
