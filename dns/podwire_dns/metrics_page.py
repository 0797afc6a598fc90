"""Renders the page of /metrics. Pure.

The page has the names and labels that CoreDNS's dashboards expect; for upstreams, both the older and the newer names.
Figures that CoreDNS lacks have names podwire_dns_*.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from dnslib import RCODE

from podwire_base.role.metrics import Histogram, Page, ProcessFigures

from .cache import Cache
from .config import DnsConfig
from .feed import NO_CALLS, ApiCalls
from .figures import CacheFigures, Forwarded, of_cache
from .metrics import API_BOUNDS, BOUNDS, KNOWN_TYPES, SIZE_BOUNDS, Tally, known_types, total
from .zone import ZoneData

ZONE = "."


@dataclass(frozen=True, slots=True)
class Forwarding:
    """The figures of forwarding.

    exchanges: (upstream "IP:port", rcode or "none") -> number. took: (upstream, rcode) -> seconds, in BOUNDS. reused,
    opened: queries over a kept connection (or socket), and connections, by upstream and transport ("udp", "tcp").
    """

    exchanges: Mapping[tuple[str, str], int]
    took: Mapping[tuple[str, str], Histogram]
    failures: Mapping[str, int]
    down: Mapping[str, bool]
    reused: Mapping[tuple[str, str], int]
    opened: Mapping[tuple[str, str], int]
    all_down: int
    rejected: int

    def counts(self) -> Forwarded:
        return Forwarded(
            Counter(self.exchanges),
            dict(self.took),
            Counter(self.failures),
            Counter(self.reused),
            Counter(self.opened),
            self.all_down,
            self.rejected,
        )

    def plus(self, spares: Forwarded) -> Forwarding:
        """Returns the sum of these figures and those of the spare servers."""
        found = Forwarded()
        found.add(self.counts())
        found.add(spares)
        return Forwarding(
            found.exchanges,
            found.took,
            found.failures,
            self.down,
            found.reused,
            found.opened,
            found.all_down,
            found.rejected,
        )


@dataclass(frozen=True, slots=True)
class SpareState:
    """servers: the processes that answer. lost, ended: as in spares.Spares. lag: seconds. cache: of the spares."""

    servers: int = 1
    ended: int = 0
    lost: int = 0
    lag: float = 0.0
    cache: CacheFigures = field(default_factory=CacheFigures)


@dataclass(frozen=True, slots=True)
class ServerState:
    """A server's state at one moment.

    tallies: by path (metrics.PATHS). hosts: the number of names and addresses of hosts rules, and the time at which the
    rules were read. api: the feeder's requests to the API server. digest: the digest of the Corefile. cpu: seconds.
    memory: bytes.
    """

    version: str
    tallies: Mapping[str, Tally]
    forwarding: Forwarding
    cache: Cache
    data: ZoneData
    config: DnsConfig
    digest: str
    reload_failed: int
    reloads: int
    fed: bool
    programming: Histogram
    health: Histogram
    health_failures: int
    cpu: float
    memory: int
    started: float
    hosts: tuple[int, float] = (0, 0.0)
    api: ApiCalls = NO_CALLS
    process: ProcessFigures | None = None
    spares: SpareState = field(default_factory=SpareState)


def plugins(config: DnsConfig) -> list[str]:
    """Returns the names of the CoreDNS plugins whose functions are active."""
    found = ["errors", "kubernetes", "loop"]
    found += [
        name
        for name, on in (
            ("autopath", config.autopath),
            ("forward", bool(config.forwarding())),
            ("health", bool(config.health_address)),
            ("ready", bool(config.ready_address)),
            ("prometheus", bool(config.metrics_address)),
            ("log", config.log_queries),
            ("loadbalance", config.shuffle),
            ("reload", bool(config.corefile and config.reload)),
            ("cache", any(each.cache_positive or each.cache_negative for each in config.forwarding())),
            ("hosts", any(block.hosts for block in config.blocks)),
            ("rewrite", any(block.rewrites for block in config.blocks)),
            ("template", any(block.templates for block in config.blocks)),
        )
        if on
    ]
    return sorted(found)


def render(state: ServerState) -> str:
    """Returns the text of the page."""
    page, server = Page(), f"dns://:{state.config.port}"
    page.family(
        "coredns_build_info",
        "gauge",
        "The version of podwire, under the name that dashboards look for.",
        [({"version": state.version, "goversion": "", "revision": "podwire"}, 1)],
    )
    base = {"server": server, "zone": ZONE, "view": ""}
    page.family(
        "coredns_plugin_enabled",
        "gauge",
        "CoreDNS plugins whose function is active here.",
        [({**base, "name": name}, 1) for name in plugins(state.config)],
    )
    _queries(page, state, base)
    _forwarding(page, state.forwarding)
    _cache(page, of_cache(state.cache).plus(state.spares.cache), {"server": server, "zones": ZONE, "view": ""})
    _itself(page, state)
    data = state.data
    page.family("podwire_dns_answers", "gauge", "Answers of the cluster zone in memory.", [({}, len(data.answers))])
    page.family("podwire_dns_zone_serial", "gauge", "Serial of the zone.", [({}, data.serial)])
    page.family("podwire_dns_zone_synced", "gauge", "1: a whole zone was received.", [({}, int(data.synced))])
    page.family(
        "podwire_dns_feeder_connected", "gauge", "1: changes arrive; 0: the last zone is used.", [({}, int(state.fed))]
    )
    return page.text()


def _queries(page: Page, state: ServerState, base: dict[str, str]) -> None:
    every = total(state.tallies.values())
    tallies = [
        (proto, total(tally for path, tally in state.tallies.items() if path.startswith(proto)))
        for proto in ("udp", "tcp")
    ]
    page.family(
        "coredns_dns_requests_total",
        "counter",
        "Queries.",
        [
            (
                {
                    **base,
                    "proto": path.removesuffix("6"),
                    "family": "2" if path.endswith("6") else "1",
                    "type": KNOWN_TYPES.get(number, "other"),
                },
                count,
            )
            for path, tally in state.tallies.items()
            for number, count in known_types(tally.types).items()
        ],
    )
    page.family(
        "coredns_dns_responses_total",
        "counter",
        "Responses by status code.",
        [
            ({**base, "rcode": str(RCODE.forward.get(number, number)), "plugin": plugin}, count)
            for (number, plugin), count in sorted(every.rcodes.items())
        ],
    )
    page.histogram(
        "coredns_dns_request_duration_seconds",
        "From a query's arrival to its answer's departure.",
        BOUNDS,
        [(base, every.took, every.took_seconds)],
    )
    page.histogram(
        "coredns_dns_request_size_bytes",
        "Sizes of queries.",
        SIZE_BOUNDS,
        [({**base, "proto": proto}, tally.query_sizes, tally.query_bytes) for proto, tally in tallies],
    )
    page.histogram(
        "coredns_dns_response_size_bytes",
        "Sizes of responses.",
        SIZE_BOUNDS,
        [({**base, "proto": proto}, tally.answer_sizes, tally.answer_bytes) for proto, tally in tallies],
    )
    page.family(
        "coredns_dns_do_requests_total",
        "counter",
        "Queries with the DO bit.",
        [(base, every.dnssec_ok)],
    )
    page.family(
        "coredns_panics_total",
        "counter",
        "Queries that an error in this program left unanswered.",
        [({}, every.errors)],
    )
    page.family(
        "coredns_kubernetes_rest_client_requests_total",
        "counter",
        "Requests of the feeder to the API server.",
        [({"code": code, "method": method, "host": host}, count) for method, code, host, count in state.api.requests],
    )
    page.histogram(
        "coredns_kubernetes_rest_client_request_duration_seconds",
        "Time until the API server answered.",
        API_BOUNDS,
        [({"verb": verb, "host": host}, counts, seconds) for verb, host, counts, seconds in state.api.took],
    )
    page.histogram(
        "coredns_kubernetes_dns_programming_duration_seconds",
        "From a change of a headless Service's pods to its answers.",
        state.programming.bounds,
        [({"service_kind": "headless_with_selector"}, state.programming.counts, state.programming.total)],
    )


def _forwarding(page: Page, state: Forwarding) -> None:
    by_upstream: Counter[str] = Counter()
    for (to, _), count in state.exchanges.items():
        by_upstream[to] += count
    page.family(
        "coredns_forward_requests_total",
        "counter",
        "Questions to upstreams.",
        [({"to": to}, count) for to, count in sorted(by_upstream.items())],
    )
    page.family(
        "coredns_forward_responses_total",
        "counter",
        "Answers of upstreams.",
        [
            ({"to": to, "rcode": rcode}, count)
            for (to, rcode), count in sorted(state.exchanges.items())
            if rcode != "none"
        ],
    )
    for name, more in (
        ("coredns_forward_request_duration_seconds", {}),
        ("coredns_proxy_request_duration_seconds", {"proxy_name": "forward"}),
    ):
        page.histogram(
            name,
            "Response time of upstreams.",
            BOUNDS,
            [
                ({**more, "to": to, "rcode": rcode}, took.counts, took.total)
                for (to, rcode), took in sorted(state.took.items(), key=lambda item: item[0])
            ],
        )
    for name, more in (
        ("coredns_forward_healthcheck_failures_total", {}),
        ("coredns_proxy_healthcheck_failures_total", {"proxy_name": "forward"}),
    ):
        page.family(
            name,
            "counter",
            "Queries that an upstream did not answer.",
            [({**more, "to": to}, state.failures.get(to, 0)) for to in sorted(state.down)],
        )
    page.family(
        "coredns_forward_healthcheck_broken_total",
        "counter",
        "Queries forwarded while every upstream was down.",
        [({}, state.all_down)],
    )
    page.family(
        "coredns_forward_max_concurrent_rejects_total",
        "counter",
        "Queries refused because too many were waiting.",
        [({}, state.rejected)],
    )
    for name, counts in (("hits", state.reused), ("misses", state.opened)):
        page.family(
            f"coredns_proxy_conn_cache_{name}_total",
            "counter",
            "Queries over a kept (hits) or a new connection.",
            [({"proxy_name": "forward", "to": to, "proto": by}, count) for (to, by), count in sorted(counts.items())],
        )
    page.family(
        "podwire_dns_upstream_down",
        "gauge",
        "1: the upstream does not answer.",
        [({"to": to}, int(down)) for to, down in sorted(state.down.items())],
    )


def _cache(page: Page, cache: CacheFigures, base: dict[str, str]) -> None:
    kinds = (("success", cache.success, cache.hits - cache.denials), ("denial", cache.denial, cache.denials))
    page.family(
        "coredns_cache_entries",
        "gauge",
        "Answers of upstreams in memory.",
        [({**base, "type": kind}, entries) for kind, entries, _ in kinds],
    )
    page.family(
        "coredns_cache_hits_total",
        "counter",
        "Queries answered from the cache.",
        [({**base, "type": kind}, hits) for kind, _, hits in kinds],
    )
    page.family(
        "coredns_cache_misses_total", "counter", "Queries that the cache could not answer.", [(base, cache.misses)]
    )
    page.family(
        "coredns_cache_requests_total",
        "counter",
        "Lookups in the cache.",
        [(base, cache.hits + cache.misses)],
    )
    page.family(
        "coredns_cache_evictions_total",
        "counter",
        "Answers evicted from the cache.",
        [({**base, "type": "success"}, cache.evicted)],
    )
    page.family(
        "coredns_cache_drops_total",
        "counter",
        "Answers of upstreams to another question. Such answers are ignored before the cache.",
        [(base, 0)],
    )
    page.family(
        "coredns_cache_served_stale_total",
        "counter",
        "Expired answers given because no upstream answered.",
        [(base, cache.stale_hits)],
    )
    page.family(
        "coredns_cache_prefetch_total",
        "counter",
        "Answers fetched again before they expired.",
        [(base, cache.prefetched)],
    )


def _itself(page: Page, state: ServerState) -> None:
    page.histogram(
        "coredns_health_request_duration_seconds",
        "Time of a request to the server's own /health.",
        state.health.bounds,
        [({}, state.health.counts, state.health.total)],
    )
    page.family(
        "coredns_health_request_failures_total",
        "counter",
        "Failed requests to the server's own /health.",
        [({}, state.health_failures)],
    )
    entries, loaded = state.hosts
    page.family("coredns_hosts_entries", "gauge", "Names and addresses of hosts rules.", [({}, entries)])
    page.family(
        "coredns_hosts_reload_timestamp_seconds",
        "gauge",
        "The time at which the hosts rules were read.",
        [({}, loaded)] if loaded else [],
    )
    page.family(
        "coredns_reload_failed_total", "counter", "Changed settings that were invalid.", [({}, state.reload_failed)]
    )
    page.family(
        "coredns_reload_version_info",
        "gauge",
        "The Corefile that is in force.",
        [({"hash": "sha512", "value": state.digest}, 1)] if state.digest else [],
    )
    page.family("podwire_dns_reloads_total", "counter", "Changed settings that were applied.", [({}, state.reloads)])
    for name, kind, text, value in (
        ("servers", "gauge", "Server processes that read the same sockets.", state.spares.servers),
        ("spares_ended_total", "counter", "Spare servers that ended without being told.", state.spares.ended),
        ("queries_lost_total", "counter", "Queries that these had read and not answered.", state.spares.lost),
        ("spare_lag_seconds", "gauge", "Age of the oldest change that the spare has not applied.", state.spares.lag),
    ):
        page.family(f"podwire_dns_{name}", kind, text, [({}, value)])
    page.process(state.process or ProcessFigures(state.cpu, resident=state.memory, started=state.started))
