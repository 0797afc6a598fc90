"""Counters of the proxy and their Prometheus text. One process, one event loop: no locks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
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
    """Names are kube-proxy's where the meaning is the same (prefix kubeproxy_), else our own.

    programming: from the change of a pod to the kernel, as the endpoint slice's annotation dates it. healthz, livez:
    answers by status code. stranded: Services with a Local policy and endpoints only elsewhere, by policy.
    """

    all: Histogram = field(default_factory=Histogram)
    full: Histogram = field(default_factory=Histogram)
    partial: Histogram = field(default_factory=Histogram)
    programming: Histogram = field(default_factory=Histogram)
    conntrack: Histogram = field(default_factory=Histogram)
    healthz: Counter[int] = field(default_factory=Counter)
    livez: Counter[int] = field(default_factory=Counter)
    stranded: Mapping[str, int] = field(default_factory=dict)
    failures: int = 0
    cleanup_failures: int = 0
    repairs: int = 0
    stale_flows: int = 0
    resets: int = 0
    elements: int = 0
    verdicts: int = 0
    last_sync: float = 0.0
    last_queued: float = 0.0
    service_changes: int = 0
    endpoint_changes: int = 0
    pending_services: int = 0
    pending_endpoints: int = 0
    services: int = 0
    endpoints: int = 0

    def queued(self, *, service: bool = False, endpoint: bool = False) -> None:
        """A change came in."""
        self.last_queued = time.time()
        self.service_changes += service
        self.pending_services += service
        self.endpoint_changes += endpoint
        self.pending_endpoints += endpoint

    def synced(self, *, full: bool, seconds: float, elements: int, verdicts: int = 0) -> None:
        for histogram in (self.all, self.full if full else self.partial):
            histogram.observe(seconds)
        self.elements += elements
        self.verdicts += verdicts
        self.pending_services = self.pending_endpoints = 0
        self.last_sync = time.time()

    def swept(self, udp: int, tcp: int, seconds: float) -> None:
        """The flows that changes left behind were looked for, and so many deleted."""
        if seconds:
            self.conntrack.observe(seconds)
        self.stale_flows += udp
        self.resets += tcp

    def render(self) -> str:
        counters = {
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total": self.failures,
            "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total": self.cleanup_failures,
            "kubeproxy_sync_proxy_rules_service_changes_total": self.service_changes,
            "kubeproxy_sync_proxy_rules_endpoint_changes_total": self.endpoint_changes,
            "kubeproxy_conntrack_reconciler_deleted_entries_total": self.stale_flows,
            "podwire_proxy_foreign_changes_repaired_total": self.repairs,
            "podwire_proxy_connections_reset_total": self.resets,
            "podwire_proxy_elements_written_total": self.elements,
            "podwire_proxy_verdict_elements_written_total": self.verdicts}
        gauges = {"kubeproxy_sync_proxy_rules_last_timestamp_seconds": self.last_sync,
                  "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds": self.last_queued,
                  "kubeproxy_sync_proxy_rules_service_changes_pending": self.pending_services,
                  "kubeproxy_sync_proxy_rules_endpoint_changes_pending": self.pending_endpoints,
                  "podwire_proxy_services": self.services, "podwire_proxy_endpoints": self.endpoints}
        lines = [*self.all.lines("kubeproxy_sync_proxy_rules_duration_seconds"),
                 *self.full.lines("kubeproxy_sync_full_proxy_rules_duration_seconds"),
                 *self.partial.lines("kubeproxy_sync_partial_proxy_rules_duration_seconds"),
                 *self.programming.lines("kubeproxy_network_programming_duration_seconds"),
                 *self.conntrack.lines("kubeproxy_conntrack_reconciler_sync_duration_seconds")]
        for kind, values in (("counter", counters), ("gauge", gauges)):
            for name, value in values.items():
                lines += [f"# TYPE {name} {kind}", f"{name} {value}"]
        lines += _labelled("kubeproxy_proxy_healthz_total", "counter", "code", self.healthz)
        lines += _labelled("kubeproxy_proxy_livez_total", "counter", "code", self.livez)
        lines += _labelled("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "gauge", "traffic_policy", self.stranded)
        return "\n".join(lines) + "\n"


def _labelled(name: str, kind: str, label: str, values: Mapping[str, int] | Mapping[int, int]) -> list[str]:
    return [f"# TYPE {name} {kind}", *(f'{name}{{{label}="{key}"}} {value}' for key, value in sorted(values.items()))]
