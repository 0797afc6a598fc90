"""What /metrics says: the names that dashboards made for CoreDNS expect, and podwire_dns_* for what CoreDNS has not.

A `Tally` counts in Python what the slow path, TCP and the plain loop answer; the compiled loop counts for itself
(batch_counts).
Counts are whole or a query behind, never torn: each is one number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dnslib import RCODE

from .rtypes import TYPE_NAMES

BOUNDS = ("0.00025", "0.0005", "0.001", "0.002", "0.004", "0.008", "0.016", "0.032", "0.064", "0.128", "0.256", "0.512",
          "1.024", "+Inf")
KNOWN_TYPES = {**TYPE_NAMES, 15: "MX", 43: "DS", 48: "DNSKEY", 64: "SVCB", 65: "HTTPS", 35: "NAPTR", 257: "CAA"}
SERVER, ZONE = "dns://:53", "."


@dataclass(slots=True)
class Tally:
    """Queries by type, responses by rcode, and response times (seconds)."""

    types: Counter[int] = field(default_factory=Counter)
    rcodes: Counter[int] = field(default_factory=Counter)
    took: list[int] = field(default_factory=lambda: [0] * len(BOUNDS))
    took_seconds: float = 0.0
    errors: int = 0

    def answered(self, answer: bytes, took: float) -> None:
        """Count one response."""
        self.rcodes[answer[3] & 0xF] += 1
        if answer[4:6] == b"\0\1":
            at = 12
            while answer[at]:
                at += 1 + answer[at]
            self.types[int.from_bytes(answer[at + 1:at + 3])] += 1
        else:
            self.types[0] += 1
        self.took[next(i for i, bound in enumerate(_BOUNDS) if took <= bound)] += 1
        self.took_seconds += took

    def add_native(self, counts: Any) -> None:
        """Add what a compiled loop counted."""
        for number, count in enumerate(counts.types):
            if count:
                self.types[number] += count
        for number, count in enumerate(counts.rcodes):
            if count:
                self.rcodes[number] += count
        for index, count in enumerate(counts.took):
            self.took[index] += count
        self.took_seconds += counts.took_ns / 1e9


_BOUNDS = [float(bound) for bound in BOUNDS]


@dataclass(slots=True)
class Page:
    """Lines of the text exposition format."""

    lines: list[str] = field(default_factory=list)

    def family(self, name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> None:
        self.lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        self.lines += [f"{name}{_labels(labels)} {value:g}" if isinstance(value, float) else f"{name}{_labels(labels)} {value}"
                       for labels, value in samples]

    def histogram(self, name: str, text: str, tallies: Iterable[tuple[Mapping[str, str], Tally]]) -> None:
        self.lines += [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
        for labels, tally in tallies:
            total = 0
            for bound, count in zip(BOUNDS, tally.took, strict=True):
                total += count
                self.lines.append(f"{name}_bucket{_labels({**labels, 'le': bound})} {total}")
            self.lines += [f"{name}_sum{_labels(labels)} {tally.took_seconds:.9g}", f"{name}_count{_labels(labels)} {total}"]

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    escaped = (f'{key}="{value.translate(_ESCAPES)}"' for key, value in labels.items())
    return "{" + ",".join(escaped) + "}" if labels else ""


_ESCAPES = {ord("\\"): "\\\\", ord('"'): '\\"', ord("\n"): "\\n"}


@dataclass(frozen=True, slots=True)
class State:
    """What a server is, at one moment."""

    version: str
    tallies: Mapping[str, Tally]  # by protocol
    forwarded: Mapping[tuple[str, str], int]  # (upstream, rcode or "none") -> exchanges
    forward_seconds: Mapping[str, float]
    down: Mapping[str, bool]
    cache: Mapping[str, int]  # entries, hits, misses, stale, prefetch
    answers: int
    serial: int
    synced: bool
    fed: bool
    dropped: int


def render(state: State) -> str:
    """The page."""
    page = Page()
    page.family("coredns_build_info", "gauge", "The version of podwire, under the name that dashboards look for.",
                [({"version": state.version, "goversion": "", "revision": "podwire"}, 1)])
    labels = {"server": SERVER, "zone": ZONE, "view": ""}
    page.family("coredns_dns_requests_total", "counter", "Queries.", [
        ({**labels, "proto": proto, "type": KNOWN_TYPES.get(number, "other")}, count)
        for proto, tally in state.tallies.items() for number, count in _known(tally.types).items()])
    page.family("coredns_dns_responses_total", "counter", "Responses by status code.", [
        ({**labels, "proto": proto, "rcode": str(RCODE.forward.get(number, number))}, count)
        for proto, tally in state.tallies.items() for number, count in sorted(tally.rcodes.items())])
    page.histogram("coredns_dns_request_duration_seconds", "From a query's arrival to its answer's departure.", [
        ({"server": SERVER, "zone": ZONE, "proto": proto}, tally) for proto, tally in state.tallies.items()])
    page.family("coredns_panics_total", "counter", "Queries that an error in this program left unanswered.",
                [({}, sum(tally.errors for tally in state.tallies.values()))])
    _forwarding(page, state)
    page.family("podwire_dns_answers", "gauge", "Answers of the cluster zone in memory.", [({}, state.answers)])
    page.family("podwire_dns_zone_serial", "gauge", "Serial of the zone.", [({}, state.serial)])
    page.family("podwire_dns_zone_synced", "gauge", "1: a whole zone was received.", [({}, int(state.synced))])
    page.family("podwire_dns_feeder_connected", "gauge", "1: changes arrive; 0: the last zone serves.", [({}, int(state.fed))])
    return page.text()


def _forwarding(page: Page, state: State) -> None:
    page.family("coredns_forward_requests_total", "counter", "Exchanges with upstreams.", [
        ({"to": to, "rcode": rcode}, count) for (to, rcode), count in sorted(state.forwarded.items())])
    page.family("coredns_proxy_request_duration_seconds_sum", "counter", "Time that upstreams took.", [
        ({"proxy_name": "forward", "to": to}, seconds) for to, seconds in sorted(state.forward_seconds.items())])
    page.family("podwire_dns_upstream_down", "gauge", "1: the upstream does not answer.", [
        ({"to": to}, int(down)) for to, down in sorted(state.down.items())])
    page.family("coredns_forward_max_concurrent_rejects_total", "counter", "Queries refused for too many waited.",
                [({}, state.dropped)])
    labels = {"server": SERVER, "zones": ZONE, "view": ""}
    page.family("coredns_cache_entries", "gauge", "Answers of upstreams in memory.", [(labels, state.cache["entries"])])
    page.family("coredns_cache_hits_total", "counter", "Questions answered from the cache.", [(labels, state.cache["hits"])])
    page.family("coredns_cache_misses_total", "counter", "Questions that an upstream had to be asked.",
                [(labels, state.cache["misses"])])
    page.family("coredns_cache_served_stale_total", "counter", "Expired answers given because no upstream answered.",
                [(labels, state.cache["stale"])])
    page.family("coredns_cache_prefetch_total", "counter", "Answers fetched anew before they expired.",
                [(labels, state.cache["prefetch"])])


def _known(types: Mapping[int, int]) -> dict[int, int]:
    """Types that have a name; all others together under 0."""
    found: Counter[int] = Counter()
    for number, count in sorted(types.items()):
        found[number if number in KNOWN_TYPES else 0] += count
    return dict(found)

