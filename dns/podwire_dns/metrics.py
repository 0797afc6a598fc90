"""The counters of /metrics: queries, answers, their sizes and times. metrics_page.py renders the page.

A `Tally` counts in Python the answers of the slow path, of TCP and of the plain loop; the compiled loop has its own
counters (batch_counts). A count may lag by one query. A count is never torn, because each count is one number.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from podwire_base.role.metrics import empty

from .rtypes import TYPE_NAMES

BOUNDS = tuple(0.00025 * 2**power for power in range(16))  # the seconds of CoreDNS's buckets
SIZE_BOUNDS = (0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16000, 32000, 48000, 64000)
PROGRAMMING_BOUNDS = tuple(0.001 * 2**power for power in range(20))
MONITORED = frozenset(("A", "AAAA", "MX", "SOA", "CNAME", "PTR", "TXT", "NS", "SRV"))
API_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
HEALTH_BOUNDS = tuple(0.00025 * 10**power for power in range(5))
# The types that CoreDNS's metrics name; every other type counts as "other".
KNOWN_TYPES = {
    **{number: name for number, name in TYPE_NAMES.items() if name in MONITORED},
    **{15: "MX", 43: "DS", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 50: "NSEC3", 65: "HTTPS"},
    **{251: "IXFR", 252: "AXFR", 255: "ANY"},
}
DO = b"\x80"
PATHS = ("udp", "tcp", "udp6", "tcp6")  # transport, over IPv4 or IPv6


@dataclass(slots=True)
class Tally:
    """Counts queries by type and responses by rcode and plugin, and records response times (seconds) and message sizes
    (bytes).

    A plugin is the CoreDNS plugin that has the part of this program that answered; "" if no part did.

    Counts and sums of histograms are fields of this class, because each call and each object would delay an answer.
    """

    types: Counter[int] = field(default_factory=Counter)
    rcodes: Counter[tuple[int, str]] = field(default_factory=Counter)
    took: list[int] = field(default_factory=lambda: empty(BOUNDS))
    took_seconds: float = 0.0
    query_sizes: list[int] = field(default_factory=lambda: empty(SIZE_BOUNDS))
    answer_sizes: list[int] = field(default_factory=lambda: empty(SIZE_BOUNDS))
    query_bytes: int = 0
    answer_bytes: int = 0
    dnssec_ok: int = 0
    errors: int = 0

    def answered(self, query: bytes, answer: bytes, took: float, plugin: str = "") -> None:
        """Counts one response."""
        self.rcodes[answer[3] & 0xF, plugin] += 1
        if answer[4:6] == b"\0\1":
            at = 12
            while answer[at]:
                at += 1 + answer[at]
            self.types[int.from_bytes(answer[at + 1 : at + 3])] += 1
        else:
            self.types[0] += 1
        self.took[bisect_left(BOUNDS, took)] += 1
        self.took_seconds += took
        self.query_sizes[bisect_left(SIZE_BOUNDS, len(query))] += 1
        self.answer_sizes[bisect_left(SIZE_BOUNDS, len(answer))] += 1
        self.query_bytes += len(query)
        self.answer_bytes += len(answer)
        self.dnssec_ok += query[10:12] == b"\0\1" and query[-11:-8] == b"\0\0\x29" and query[-4:-3] >= DO

    def add_native(self, counts: Any) -> None:
        """Adds the counts of a compiled loop."""
        for number, count in enumerate(counts.types):
            if count:
                self.types[number] += count
        for plugin, rcodes in (("kubernetes", counts.rcodes), ("cache", counts.cached)):
            for number, count in enumerate(rcodes):
                if count:
                    self.rcodes[number, plugin] += count
        for mine, theirs in (
            (self.took, counts.took),
            (self.query_sizes, counts.query_sizes),
            (self.answer_sizes, counts.answer_sizes),
        ):
            for index, count in enumerate(theirs):
                mine[index] += count
        self.took_seconds += counts.took_ns / 1e9
        self.query_bytes += counts.received_bytes
        self.answer_bytes += counts.sent_bytes
        self.dnssec_ok += counts.dnssec_ok


def total(tallies: Iterable[Tally]) -> Tally:
    """Returns the sum of several tallies."""
    found = Tally()
    for each in tallies:
        found.types.update(each.types)
        found.rcodes.update(each.rcodes)
        for mine, theirs in (
            (found.took, each.took),
            (found.query_sizes, each.query_sizes),
            (found.answer_sizes, each.answer_sizes),
        ):
            for index, count in enumerate(theirs):
                mine[index] += count
        found.took_seconds += each.took_seconds
        found.query_bytes += each.query_bytes
        found.answer_bytes += each.answer_bytes
        found.dnssec_ok += each.dnssec_ok
        found.errors += each.errors
    return found


def response_class(answer: bytes) -> str:
    """Returns success, denial (the name or the data does not exist) or error, as in CoreDNS's log."""
    rcode = answer[3] & 0xF
    if rcode == 0:
        return "success" if answer[6:8] != b"\0\0" else "denial"
    return "denial" if rcode == 3 else "error"


def known_types(types: Mapping[int, int]) -> dict[int, int]:
    """Returns the counts of types that have a name. Type 0 has the sum of all other types."""
    found: Counter[int] = Counter()
    for number, count in sorted(types.items()):
        found[number if number in KNOWN_TYPES else 0] += count
    return dict(found)
