"""The figures of a spare server, as it reports them to the first one, and their sums for /metrics. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field, fields, replace

import msgspec

from podwire_base.role.metrics import Histogram

from .cache import Cache
from .metrics import BOUNDS, PATHS, Tally, total

Pairs = Counter[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """success, denial: entries. The others count since the start of the process."""

    success: int = 0
    denial: int = 0
    hits: int = 0
    denials: int = 0
    misses: int = 0
    evicted: int = 0
    stale_hits: int = 0
    prefetched: int = 0

    def plus(self, other: CacheFigures) -> CacheFigures:
        return CacheFigures(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(CacheFigures)))


def of_cache(cache: Cache, *, entries: bool = True) -> CacheFigures:
    """entries: count them too."""
    rows = list(cache.entries.values()) if entries else []
    denied = sum(entry.answer.rcode != 0 for entry in rows)
    counters = (getattr(cache, each.name) for each in fields(CacheFigures)[2:])  # the cache's own, by the same names
    return CacheFigures(len(rows) - denied, denied, *counters)


@dataclass(slots=True)
class Forwarded:
    """Counts of queries to upstreams, as in metrics_page.Forwarding."""

    exchanges: Pairs = field(default_factory=Counter)
    took: dict[tuple[str, str], Histogram] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    reused: Pairs = field(default_factory=Counter)
    opened: Pairs = field(default_factory=Counter)
    all_down: int = 0
    rejected: int = 0

    def add(self, other: Forwarded) -> None:
        for mine, theirs in (
            (self.exchanges, other.exchanges),
            (self.reused, other.reused),
            (self.opened, other.opened),
        ):
            mine.update(theirs)
        self.failures.update(other.failures)
        self.all_down += other.all_down
        self.rejected += other.rejected
        for key, theirs_took in other.took.items():
            mine_took = self.took.setdefault(key, Histogram(theirs_took.bounds))
            mine_took.counts = [a + b for a, b in zip(mine_took.counts, theirs_took.counts, strict=True)]
            mine_took.total += theirs_took.total


@dataclass(slots=True)
class Figures:
    """tallies: by path (metrics.PATHS)."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    forwarded: Forwarded = field(default_factory=Forwarded)
    cache: CacheFigures = field(default_factory=CacheFigures)

    def ended(self) -> Figures:
        """Returns what still counts when the process has ended: its cache has no entries any more."""
        return Figures(self.tallies, self.forwarded, replace(self.cache, success=0, denial=0))


def summed(every: Iterable[Figures]) -> Figures:
    found = Figures({path: Tally() for path in PATHS})
    for each in every:
        for path, tally in each.tallies.items():
            found.tallies[path] = total((found.tallies[path], tally))
        found.forwarded.add(each.forwarded)
        found.cache = found.cache.plus(each.cache)
    return found


# The report


class _Tally(msgspec.Struct, array_like=True):
    types: list[tuple[int, int]]
    rcodes: list[tuple[int, str, int]]
    took: list[int]
    query_sizes: list[int]
    answer_sizes: list[int]
    sums: tuple[float, int, int, int, int]


class Report(msgspec.Struct, tag="report", array_like=True):
    """The figures of a spare as a message."""

    applied: int
    looped: bool
    tallies: dict[str, _Tally]
    exchanges: list[tuple[str, str, int]]
    took: list[tuple[str, str, list[int], float]]
    failures: dict[str, int]
    reused: list[tuple[str, str, int]]
    opened: list[tuple[str, str, int]]
    all_down: int
    rejected: int
    cache: tuple[int, int, int, int, int, int, int, int]


def reported(found: Report) -> Figures:
    """Raises msgspec.ValidationError for histograms of another version."""
    tallies = {path: _tally(found.tallies[path]) for path in PATHS if path in found.tallies}
    took = {}
    for to, rcode, counts, seconds in found.took:
        histogram = took[to, rcode] = Histogram(BOUNDS)
        if len(counts) != len(histogram.counts):
            raise msgspec.ValidationError("a histogram of other bounds")
        histogram.counts, histogram.total = counts, seconds
    forwarded = Forwarded(
        _pairs(found.exchanges),
        took,
        Counter(found.failures),
        _pairs(found.reused),
        _pairs(found.opened),
        found.all_down,
        found.rejected,
    )
    return Figures(tallies, forwarded, CacheFigures(*found.cache))


def report(applied: int, figures: Figures, *, looped: bool) -> Report:
    """applied: the number of changes of the zone that the spare has applied. looped: it got a query of its own."""
    forwarded, cache = figures.forwarded, figures.cache
    return Report(
        applied,
        looped,
        {
            path: _Tally(
                list(tally.types.items()),
                [(number, plugin, count) for (number, plugin), count in tally.rcodes.items()],
                tally.took,
                tally.query_sizes,
                tally.answer_sizes,
                (tally.took_seconds, tally.query_bytes, tally.answer_bytes, tally.dnssec_ok, tally.errors),
            )
            for path, tally in figures.tallies.items()
        },
        _rows(forwarded.exchanges),
        [(to, rcode, took.counts, took.total) for (to, rcode), took in forwarded.took.items()],
        dict(forwarded.failures),
        _rows(forwarded.reused),
        _rows(forwarded.opened),
        forwarded.all_down,
        forwarded.rejected,
        astuple(cache),
    )


def _tally(data: _Tally) -> Tally:
    tally = Tally()
    for mine, theirs in (
        (tally.took, data.took),
        (tally.query_sizes, data.query_sizes),
        (tally.answer_sizes, data.answer_sizes),
    ):
        if len(mine) != len(theirs):
            raise msgspec.ValidationError("a histogram of other bounds")
        mine[:] = theirs
    tally.types.update(dict(data.types))
    tally.rcodes.update({(number, plugin): count for number, plugin, count in data.rcodes})
    tally.took_seconds, tally.query_bytes, tally.answer_bytes, tally.dnssec_ok, tally.errors = data.sums
    return tally


def _pairs(rows: list[tuple[str, str, int]]) -> Pairs:
    return Counter({(one, two): count for one, two, count in rows})


def _rows(pairs: Pairs) -> list[tuple[str, str, int]]:
    return [(one, two, count) for (one, two), count in pairs.items()]
