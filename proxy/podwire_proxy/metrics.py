"""Counters of the proxy and their Prometheus text. One process, one event loop: no locks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(slots=True)
class Histogram:
    """Durations in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        self.total += seconds
        self.counts[next((i for i, bound in enumerate(BUCKETS) if seconds <= bound), len(BUCKETS))] += 1

    def lines(self, name: str) -> Iterator[str]:
        yield f"# TYPE {name} histogram"
        below = 0
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self.counts, strict=True):
            below += count
            yield f'{name}_bucket{{le="{bound}"}} {below}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {below}"


@dataclass(slots=True)
class Metrics:
    """Names are kube-proxy's where the meaning is the same (prefix kubeproxy_), else our own."""

    full: Histogram = field(default_factory=Histogram)
    partial: Histogram = field(default_factory=Histogram)
    failures: int = 0
    repairs: int = 0
    stale_flows: int = 0
    elements: int = 0
    last_sync: float = 0.0
    services: int = 0
    endpoints: int = 0

    def synced(self, *, full: bool, seconds: float, elements: int, flows: int) -> None:
        (self.full if full else self.partial).observe(seconds)
        self.elements += elements
        self.stale_flows += flows
        self.last_sync = time.time()

    def render(self) -> str:
        counters = {
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total": self.failures,
            "kubeproxy_conntrack_reconciler_deleted_entries_total": self.stale_flows,
            "podwire_proxy_foreign_changes_repaired_total": self.repairs,
            "podwire_proxy_elements_written_total": self.elements}
        gauges = {"kubeproxy_sync_proxy_rules_last_timestamp_seconds": self.last_sync,
                  "podwire_proxy_services": self.services, "podwire_proxy_endpoints": self.endpoints}
        lines = [*self.full.lines("kubeproxy_sync_full_proxy_rules_duration_seconds"),
                 *self.partial.lines("kubeproxy_sync_partial_proxy_rules_duration_seconds")]
        for kind, values in (("counter", counters), ("gauge", gauges)):
            for name, value in values.items():
                lines += [f"# TYPE {name} {kind}", f"{name} {value}"]
        return "\n".join(lines) + "\n"
