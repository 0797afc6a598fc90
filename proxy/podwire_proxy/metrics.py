"""Counts the proxy's events and renders the page of counters. All code runs in one event loop, without locks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from podwire_base.kernel.reasons import Reason
from podwire_base.kube.client.counted import Calls
from podwire_base.role import process
from podwire_base.role.metrics import Histogram, Page

from .backend import Figures, MetricNames
from .flows import Swept

# The buckets of kube-proxy, so that its dashboards and alerts continue to work.
SYNC_BUCKETS = tuple(0.001 * 2**n for n in range(15))
PROGRAMMING_BUCKETS = (
    0.25,
    0.5,
    *map(float, range(1, 60)),
    *map(float, range(60, 120, 5)),
    *map(float, range(120, 301, 30)),
)


@dataclass(slots=True)
class Metrics:
    """The counters. A metric with a counterpart in kube-proxy has kube-proxy's name (prefix kubeproxy_).

    programming: seconds from the change of a pod (the time in the EndpointSlice's annotation) to the kernel. healthz,
    livez: answers by status code. stranded: Service ports with a Local policy and endpoints only elsewhere, by family
    and policy. stale_flows: by family. names: the metric names of the backend. rules: (family, table) -> number of
    rules in the kernel. api: requests to the API server. counted: reads the kernel's packet counters, by reason code;
    seen: the last result. figures: what the backend's own parts count; own: the last result.
    """

    families: tuple[str, ...] = ("IPv4",)
    names: MetricNames = field(default_factory=lambda: MetricNames(""))
    rules: Callable[[], Mapping[tuple[str, str], int]] = dict
    counted: Callable[[], Mapping[Reason, int]] = dict
    figures: Callable[[], Sequence[Figures]] = tuple
    api: Calls = field(default_factory=Calls)
    mended: Callable[[], Mapping[str, int]] = dict  # role of this node -> how often it mended what others changed

    all: Histogram = field(default_factory=lambda: Histogram(SYNC_BUCKETS))
    full: Histogram = field(default_factory=lambda: Histogram(SYNC_BUCKETS))
    partial: Histogram = field(default_factory=lambda: Histogram(SYNC_BUCKETS))
    programming: Histogram = field(default_factory=lambda: Histogram(PROGRAMMING_BUCKETS))
    conntrack: Histogram = field(default_factory=lambda: Histogram(SYNC_BUCKETS))
    healthz: Counter[int] = field(default_factory=Counter)
    livez: Counter[int] = field(default_factory=Counter)
    no_local_endpoints: Mapping[tuple[str, str], int] = field(default_factory=dict)
    seen: Mapping[Reason, int] = field(default_factory=dict)
    own: Sequence[Figures] = ()
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
        """Counts a change that arrived."""
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
        """Counts a sync that the kernel refused."""
        self.failures += 1
        self.partial_failures += not full

    def swept(self, swept: Swept) -> None:
        """Counts the result of a check of flows."""
        if swept.seconds:
            self.conntrack.observe(swept.seconds)
        for family, count in swept.by_family.items():
            self.stale_flows[_family_name(family)] += count
        self.resets += swept.tcp
        self.freed += swept.opening

    def render(self) -> str:
        """Returns the page.

        One sync writes all families, so its figures appear under the label of each family. Figures that differ by
        family are separate.
        """
        each = [{"ip_family": family} for family in self.families]
        page = Page()
        for name, histogram in (
            ("sync_proxy_rules_duration_seconds", self.all),
            ("sync_full_proxy_rules_duration_seconds", self.full),
            ("sync_partial_proxy_rules_duration_seconds", self.partial),
            ("network_programming_duration_seconds", self.programming),
            ("conntrack_reconciler_sync_duration_seconds", self.conntrack),
        ):
            series = [(labels, histogram.counts, histogram.total) for labels in each]
            page.histogram(f"kubeproxy_{name}", "", histogram.bounds, series)
        for kind, name, value in (
            ("gauge", "kubeproxy_sync_proxy_rules_last_timestamp_seconds", self.last_sync),
            ("gauge", "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", self.last_queued),
            ("counter", self.names.failures, self.failures),
            ("gauge", self.names.last, self.last_rules),
            ("counter", self.names.partial_failures, self.partial_failures),
            ("counter", self.names.cleanup_failures, self.cleanup_failures),
        ):
            if name:
                page.family(name, kind, "", [(labels, value) for labels in each])
        if self.names.rules:
            tables = [
                ({"ip_family": _family_name(family), "table": table}, count)
                for (family, table), count in sorted(self.rules().items())
            ]
            page.family(self.names.rules, "gauge", "", tables)
        page.family(
            "kubeproxy_conntrack_reconciler_deleted_entries_total",
            "counter",
            "",
            [({"ip_family": family}, self.stale_flows[family]) for family in self.families],
        )
        page.family(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "gauge",
            "",
            [
                ({"ip_family": family, "traffic_policy": policy}, self.no_local_endpoints.get((family, policy), 0))
                for family in self.families
                for policy in ("internal", "external")
            ],
        )
        for name, reason in (
            ("ct_state_invalid_dropped", Reason.INVALID_STATE),
            ("localhost_nodeports_accepted", Reason.LOCALHOST_NODE_PORT),
        ):
            packets = self.seen.get(reason, 0)
            page.family(f"{self.names.packets}_{name}_packets_total", "counter", "", [({}, packets)])
        for name, answers in (("proxy_healthz_total", self.healthz), ("proxy_livez_total", self.livez)):
            by_code = [({"code": str(code)}, count) for code, count in sorted(answers.items())]
            page.family(f"kubeproxy_{name}", "counter", "", by_code)
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
            page.family(name, kind, "", [({}, number)])
        by_role = [({"role": role}, count) for role, count in sorted(self.mended().items())]
        page.family("podwire_kernel_repairs_total", "counter", "", by_role)
        for own, sort, rows in self.own:
            page.family(own, sort, "", rows)
        page.family(
            "rest_client_requests_total",
            "counter",
            "",
            [
                ({"code": code, "host": host, "method": method}, count)
                for (method, code, host), count in sorted((self.api.requests or {("GET", "200", ""): 0}).items())
            ],
        )
        page.histogram(
            "rest_client_request_duration_seconds",
            "",
            self.api.bounds,
            [
                ({"host": host, "verb": method}, each.counts, each.total)
                for (method, host), each in sorted((self.api.took or {("GET", ""): Histogram(self.api.bounds)}).items())
            ],
        )
        page.process(process.figures())
        return page.text()


def _family_name(family: str) -> str:
    return "IPv6" if family == "ip6" else "IPv4"
