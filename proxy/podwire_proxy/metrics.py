"""Counters of the proxy and their Prometheus text. One process, one event loop: no locks."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .flows import Swept

# kube-proxy's own, so that its dashboards and alerts go on working.
SYNC_BUCKETS = tuple(0.001 * 2**n for n in range(15))
PROGRAMMING_BUCKETS = (
    0.25,
    0.5,
    *map(float, range(1, 60)),
    *map(float, range(60, 120, 5)),
    *map(float, range(120, 301, 30)),
)


@dataclass(slots=True)
class Histogram:
    """Durations in seconds."""

    bounds: tuple[float, ...] = SYNC_BUCKETS
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, seconds: float) -> None:
        self.total += seconds
        self.counts[bisect_left(self.bounds, seconds)] += 1

    def lines(self, name: str, each: Iterable[str]) -> Iterator[str]:
        """each: label sets that all carry these figures."""
        yield f"# TYPE {name} histogram"
        for labels in each:
            below = 0
            for bound, count in zip((*(f"{b:g}" for b in self.bounds), "+Inf"), self.counts, strict=True):
                below += count
                yield f'{name}_bucket{{{labels},le="{bound}"}} {below}'
            yield f"{name}_sum{{{labels}}} {self.total:.6f}"
            yield f"{name}_count{{{labels}}} {below}"


@dataclass(slots=True)
class Metrics:
    """Names are kube-proxy's where the meaning is the same (prefix kubeproxy_), else our own.

    programming: from the change of a pod to the kernel, as the endpoint slice's annotation dates it. healthz, livez:
    answers by status code. stranded: Service ports with a Local policy and endpoints only elsewhere, by family and
    policy. stale_flows: by family. rules: how many rules there are in the kernel by (family, table), for iptables.
    counted: asks the kernel for the packets of backend.Counted; seen: what it said last.
    """

    families: tuple[str, ...] = ("IPv4",)
    backend: str = "nftables"
    rules: Callable[[], Mapping[tuple[str, str], int]] = dict
    counted: Callable[[], Sequence[int]] = tuple

    all: Histogram = field(default_factory=Histogram)
    full: Histogram = field(default_factory=Histogram)
    partial: Histogram = field(default_factory=Histogram)
    programming: Histogram = field(default_factory=lambda: Histogram(PROGRAMMING_BUCKETS))
    conntrack: Histogram = field(default_factory=Histogram)
    healthz: Counter[int] = field(default_factory=Counter)
    livez: Counter[int] = field(default_factory=Counter)
    no_local_endpoints: Mapping[tuple[str, str], int] = field(default_factory=dict)
    seen: Sequence[int] = (0, 0)
    failures: int = 0
    partial_failures: int = 0
    last_rules: int = 0
    cleanup_failures: int = 0
    repairs: int = 0
    stale_flows: Counter[str] = field(default_factory=Counter)
    resets: int = 0
    freed: int = 0
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
        self.last_rules = elements
        self.verdicts += verdicts
        self.pending_services = self.pending_endpoints = 0
        self.last_sync = time.time()

    def failed(self, *, full: bool) -> None:
        """The kernel refused a sync."""
        self.failures += 1
        self.partial_failures += not full

    def swept(self, swept: Swept) -> None:
        """The flows that changes left behind were looked for."""
        if swept.seconds:
            self.conntrack.observe(swept.seconds)
        for family, count in swept.by_family.items():
            self.stale_flows[_family_name(family)] += count
        self.resets += swept.tcp
        self.freed += swept.opening

    def render(self) -> str:
        """One sync writes all families, so each family's label carries its figures; what is told apart is told
        apart."""
        each = [f'ip_family="{family}"' for family in self.families]
        out: list[str] = []
        for name, histogram in (
            ("sync_proxy_rules_duration_seconds", self.all),
            ("sync_full_proxy_rules_duration_seconds", self.full),
            ("sync_partial_proxy_rules_duration_seconds", self.partial),
            ("network_programming_duration_seconds", self.programming),
            ("conntrack_reconciler_sync_duration_seconds", self.conntrack),
        ):
            out += histogram.lines(f"kubeproxy_{name}", each)
        failing = (
            "sync_proxy_rules_iptables_restore_failures_total"
            if self.backend == "iptables"
            else ("sync_proxy_rules_nftables_sync_failures_total")
        )
        for kind, name, value in (
            ("gauge", "sync_proxy_rules_last_timestamp_seconds", self.last_sync),
            ("gauge", "sync_proxy_rules_last_queued_timestamp_seconds", self.last_queued),
            ("counter", failing, self.failures),
        ):
            out += _family(f"kubeproxy_{name}", kind, dict.fromkeys(each, value))
        if self.backend == "iptables":
            tables = {
                f'ip_family="{_family_name(family)}",table="{table}"': count
                for (family, table), count in sorted(self.rules().items())
            }
            out += _family("kubeproxy_sync_proxy_rules_iptables_total", "gauge", tables)
            out += _family("kubeproxy_sync_proxy_rules_iptables_last", "gauge", dict.fromkeys(each, self.last_rules))
            out += _family(
                "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
                "counter",
                dict.fromkeys(each, self.partial_failures),
            )
        else:
            out += _family(
                "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
                "counter",
                dict.fromkeys(each, self.cleanup_failures),
            )
        out += _family(
            "kubeproxy_conntrack_reconciler_deleted_entries_total",
            "counter",
            {f'ip_family="{family}"': self.stale_flows[family] for family in self.families},
        )
        out += _family(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "gauge",
            {
                f'ip_family="{family}",traffic_policy="{policy}"': self.no_local_endpoints.get((family, policy), 0)
                for family in self.families
                for policy in ("internal", "external")
            },
        )
        own = (
            "kubeproxy_iptables" if self.backend == "iptables" else "podwire_proxy"
        )  # kube-proxy has them for iptables only
        for name, packets in zip(("ct_state_invalid_dropped", "localhost_nodeports_accepted"), self.seen, strict=True):
            out += _family(f"{own}_{name}_packets_total", "counter", {"": packets})
        for name, answers in (("proxy_healthz_total", self.healthz), ("proxy_livez_total", self.livez)):
            out += _family(
                f"kubeproxy_{name}", "counter", {f'code="{code}"': count for code, count in sorted(answers.items())}
            )
        for kind, name, number in (
            ("counter", "kubeproxy_sync_proxy_rules_service_changes_total", self.service_changes),
            ("counter", "kubeproxy_sync_proxy_rules_endpoint_changes_total", self.endpoint_changes),
            ("gauge", "kubeproxy_sync_proxy_rules_service_changes_pending", self.pending_services),
            ("gauge", "kubeproxy_sync_proxy_rules_endpoint_changes_pending", self.pending_endpoints),
            ("counter", "podwire_proxy_foreign_changes_repaired_total", self.repairs),
            ("counter", "podwire_proxy_connections_reset_total", self.resets),
            ("counter", "podwire_proxy_connection_attempts_freed_total", self.freed),
            ("counter", "podwire_proxy_elements_written_total", self.elements),
            ("counter", "podwire_proxy_verdict_elements_written_total", self.verdicts),
            ("gauge", "podwire_proxy_services", self.services),
            ("gauge", "podwire_proxy_endpoints", self.endpoints),
        ):
            out += _family(name, kind, {"": number})
        return "\n".join(out) + "\n"


def _family_name(family: str) -> str:
    return "IPv6" if family == "ip6" else "IPv4"


def _family(name: str, kind: str, values: Mapping[str, float]) -> list[str]:
    return [
        f"# TYPE {name} {kind}",
        *(f"{name}{{{labels}}} {value}" if labels else f"{name} {value}" for labels, value in values.items()),
    ]
