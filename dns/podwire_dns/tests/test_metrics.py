"""/metrics after queries, forwarding and a feed: the names, labels and sums that dashboards use."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.message
from dnslib import RR, DNSRecord

from podwire_base.kube.client.config import ClientConfig
from podwire_base.patience import patient
from podwire_base.testing.ports import free_port
from podwire_dns import feed
from podwire_dns.apicalls import CountedClient
from podwire_dns.server import Server
from podwire_dns.sources import Sources
from podwire_dns.testing import builders, cases
from podwire_dns.testing.cases import SVC
from podwire_dns.tests.test_observed import get, samples
from podwire_dns.tests.test_server import ask


async def page_of_a_busy_server(tmp_path: Path) -> dict[str, float]:
    """All metrics of a server that has forwarded queries, with labels."""
    up = Answering()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: up, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    address = f"127.0.0.1:{free_port()}"
    corefile = tmp_path / "Corefile"
    corefile.write_text(
        f".:{free_port()} {{\n kubernetes cluster.local\n forward . 127.0.0.1:{port}\n cache 30\n loadbalance\n"
        f" bind 127.0.0.1\n hosts /dev/null {{\n  192.0.2.7 a.hosts.test b.hosts.test\n  fallthrough\n }}\n"
        f" health {address}\n ready {address}\n prometheus {address}\n reload\n}}\n"
    )
    sources = Sources(dataclasses.replace(builders.CONFIG, run_dir=tmp_path, corefile=str(corefile)))
    config = sources.load()
    async with Server(config, sources) as server:
        source = builders.builder(cases.SERVICES, cases.SLICES, cases.NAMESPACES)
        source.flush(1)
        server.follower.take(feed.Hello(feed.VERSION, builders.CONFIG.zones(), 5, True))
        server.follower.take(feed.Delta(1, source.answers, names=tuple(source.names), triggered=(time.time() - 1,)))
        server.follower.take(feed.ApiCalls((("GET", "200", "a:1", 3),), (("GET", "a:1", (1,) * 12, 0.5),)))
        server.follower.take(feed.Synced(1))
        for name, edns in (("www.example.com.", False), ("www.example.com.", True), (f"svc1.{SVC}", True)):
            query = dns.message.make_query(name, "A", want_dnssec=edns)
            await dns.asyncquery.udp(query, "127.0.0.1", port=config.port, timeout=patient(5))
        await ask(config, "www.example.com.")
        await ask(config, "nx.example.com.")
        await ask(config, "nx.example.com.")
        await ask(config, "a.hosts.test.")
        await ask(config, "none.test.", "ANY")
        await server.check_health()
        found = samples((await get(address, "/metrics"))[1])
    transport.close()
    return found


class Answering(asyncio.DatagramProtocol):
    """An upstream that knows one name."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = DNSRecord.parse(data)
        reply = query.reply(aa=0)
        if str(query.q.qname) != "www.example.com.":
            reply.header.rcode = 3
            reply.add_auth(*RR.fromZone("example.com. 30 IN SOA ns.example.com. me.example.com. 1 2 3 4 30"))
        else:
            reply.add_answer(*RR.fromZone(f"{query.q.qname} 60 A 198.51.100.7"))
        self.transport.sendto(bytes(reply.pack()), addr)


# The metrics that dashboards made for CoreDNS use, with the labels that they group by.
DASHBOARDS = {
    "coredns_build_info": {"version", "revision", "goversion"},
    "coredns_panics_total": set[str](),
    "coredns_plugin_enabled": {"server", "zone", "view", "name"},
    "coredns_dns_requests_total": {"server", "zone", "view", "proto", "family", "type"},
    "coredns_dns_responses_total": {"server", "zone", "view", "rcode", "plugin"},
    "coredns_dns_do_requests_total": {"server", "zone", "view"},
    **{
        f"coredns_dns_{name}_{part}": {"server", "zone", "view"} | ({"le"} if part == "bucket" else set[str]()) | more
        for name, more in (
            ("request_duration_seconds", set[str]()),
            ("request_size_bytes", {"proto"}),
            ("response_size_bytes", {"proto"}),
        )
        for part in ("bucket", "sum", "count")
    },
    "coredns_proxy_conn_cache_hits_total": {"proxy_name", "to", "proto"},
    "coredns_proxy_conn_cache_misses_total": {"proxy_name", "to", "proto"},
    "coredns_hosts_entries": set[str](),
    "coredns_hosts_reload_timestamp_seconds": set[str](),
    "coredns_cache_drops_total": {"server", "zones", "view"},
    "coredns_kubernetes_rest_client_requests_total": {"method", "code", "host"},
    "coredns_kubernetes_rest_client_request_duration_seconds_bucket": {"verb", "host", "le"},
    "coredns_kubernetes_rest_client_request_duration_seconds_count": {"verb", "host"},
    "coredns_forward_requests_total": {"to"},
    "coredns_forward_responses_total": {"to", "rcode"},
    "coredns_forward_request_duration_seconds_bucket": {"to", "rcode", "le"},
    "coredns_forward_healthcheck_failures_total": {"to"},
    "coredns_forward_healthcheck_broken_total": set[str](),
    "coredns_forward_max_concurrent_rejects_total": set[str](),
    "coredns_proxy_request_duration_seconds_bucket": {"proxy_name", "to", "rcode", "le"},
    "coredns_proxy_healthcheck_failures_total": {"proxy_name", "to"},
    "coredns_cache_entries": {"server", "type", "zones", "view"},
    "coredns_cache_hits_total": {"server", "type", "zones", "view"},
    "coredns_cache_misses_total": {"server", "zones", "view"},
    "coredns_cache_requests_total": {"server", "zones", "view"},
    "coredns_cache_evictions_total": {"server", "type", "zones", "view"},
    "coredns_cache_served_stale_total": {"server", "zones", "view"},
    "coredns_cache_prefetch_total": {"server", "zones", "view"},
    "coredns_health_request_duration_seconds_bucket": {"le"},
    "coredns_health_request_failures_total": set[str](),
    "coredns_reload_failed_total": set[str](),
    "coredns_reload_version_info": {"hash", "value"},
    "coredns_kubernetes_dns_programming_duration_seconds_bucket": {"service_kind", "le"},
    "process_cpu_seconds_total": set[str](),
    "process_resident_memory_bytes": set[str](),
    "process_start_time_seconds": set[str](),
}


def test_metrics_have_the_names_and_labels_that_dashboards_expect(tmp_path: Path) -> None:
    found = asyncio.run(page_of_a_busy_server(tmp_path))
    labels: dict[str, set[str]] = {}
    for sample in found:
        name, _, rest = sample.partition("{")
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', rest))
    assert set(DASHBOARDS) <= set(labels)
    for name, wanted in DASHBOARDS.items():
        assert labels[name] == wanted, name

    def total(name: str, *parts: str) -> float:
        return sum(
            value
            for sample, value in found.items()
            if sample.startswith(name + "{") and all(part in sample for part in parts)
        )

    assert total("coredns_dns_requests_total") == 8
    assert {
        sample.partition("rcode=")[2]: value
        for sample, value in found.items()
        if "coredns_dns_responses_total" in sample
    } == {
        '"NOERROR",plugin="cache"}': 1,
        '"NOERROR",plugin="forward"}': 2,
        '"NOERROR",plugin="hosts"}': 1,
        '"NOERROR",plugin="kubernetes"}': 1,
        '"NXDOMAIN",plugin="cache"}': 1,
        '"NXDOMAIN",plugin="forward"}': 1,
        '"REFUSED",plugin=""}': 1,
    }
    assert found["coredns_hosts_entries"] == 4, "two names with an address, one address with two names"
    assert found["coredns_hosts_reload_timestamp_seconds"] > 1e9
    assert total("coredns_proxy_conn_cache_misses_total", 'proto="udp"') >= 1
    assert total("coredns_proxy_conn_cache_hits_total", 'proto="udp"') >= 1
    assert total("coredns_dns_request_duration_seconds_bucket", 'le="8.192"') == 8
    assert total("coredns_dns_do_requests_total") == 2
    assert total("coredns_dns_request_size_bytes_count") == total("coredns_dns_response_size_bytes_count") == 8
    assert total("coredns_dns_response_size_bytes_sum") > total("coredns_dns_request_size_bytes_sum") > 6 * 17
    assert total("coredns_cache_hits_total", 'type="success"') == 1
    assert total("coredns_cache_hits_total", 'type="denial"') == 1
    assert total("coredns_cache_entries", 'type="success"') == 2, "with and without DO"
    assert total("coredns_forward_responses_total", 'rcode="NXDOMAIN"') >= 1
    assert total("coredns_forward_request_duration_seconds_count", 'rcode="NOERROR"') == 2
    assert total("coredns_kubernetes_dns_programming_duration_seconds_count") == 1
    assert found["coredns_health_request_duration_seconds_count"] >= 1
    assert {
        sample.split('name="')[1].rstrip('"}') for sample in found if sample.startswith("coredns_plugin_enabled")
    } == {
        "cache",
        "errors",
        "forward",
        "health",
        "hosts",
        "kubernetes",
        "loadbalance",
        "loop",
        "prometheus",
        "ready",
        "reload",
    }


# Queries of kube-prometheus's and the CoreDNS mixin's rules and dashboards: the metric, what they select and group by.
QUERIES: tuple[tuple[str, dict[str, str], tuple[str, ...]], ...] = (
    ("coredns_panics_total", {}, ()),
    ("coredns_dns_responses_total", {"rcode": "NXDOMAIN"}, ("server", "zone")),
    ("coredns_dns_request_duration_seconds_bucket", {}, ("server", "zone", "le")),
    ("coredns_dns_requests_total", {"proto": "udp"}, ("proto",)),
    ("coredns_dns_requests_total", {}, ("type",)),
    ("coredns_dns_requests_total", {}, ("zone", "family")),
    ("coredns_dns_do_requests_total", {}, ()),
    ("coredns_dns_request_size_bytes_bucket", {"proto": "udp"}, ("le", "proto")),
    ("coredns_dns_request_size_bytes_bucket", {"proto": "tcp"}, ("le", "proto")),
    ("coredns_dns_response_size_bytes_bucket", {"proto": "udp"}, ("le", "proto")),
    ("coredns_dns_responses_total", {}, ("rcode",)),
    ("coredns_dns_responses_total", {"plugin": "kubernetes"}, ("plugin", "rcode")),
    ("coredns_cache_entries", {"type": "denial"}, ("type",)),
    ("coredns_cache_hits_total", {}, ("type",)),
    ("coredns_cache_misses_total", {}, ()),
    ("coredns_forward_request_duration_seconds_bucket", {}, ("to", "le")),
    ("coredns_forward_responses_total", {"rcode": "NXDOMAIN"}, ("to",)),
    ("coredns_forward_healthcheck_broken_total", {}, ()),
    ("coredns_forward_healthcheck_failures_total", {}, ("to",)),
    ("coredns_proxy_request_duration_seconds_bucket", {"proxy_name": "forward"}, ("to", "le")),
    ("coredns_kubernetes_dns_programming_duration_seconds_bucket", {}, ("service_kind", "le")),
    ("coredns_kubernetes_rest_client_requests_total", {"code": "200"}, ("method", "host")),
    ("process_resident_memory_bytes", {}, ()),
    ("process_cpu_seconds_total", {}, ()),
    ("coredns_build_info", {}, ("version",)),
)


def test_queries_of_rules_and_dashboards_find_samples(tmp_path: Path) -> None:
    found = asyncio.run(page_of_a_busy_server(tmp_path))
    samples_of: dict[str, list[dict[str, str]]] = {}
    for sample in found:
        name, _, rest = sample.partition("{")
        samples_of.setdefault(name, []).append(dict(re.findall(r'(\w+)="([^"]*)"', rest)))
    for name, selected, grouped in QUERIES:
        fitting = [each for each in samples_of.get(name, []) if selected.items() <= each.items()]
        assert fitting, (name, selected)
        assert all(set(grouped) <= set(each) for each in fitting), (name, grouped)


def test_ipv6_clients_count_as_family_2(tmp_path: Path) -> None:
    async def body() -> dict[str, float]:
        address = f"127.0.0.1:{free_port()}"
        config = dataclasses.replace(
            builders.CONFIG, run_dir=tmp_path, listen=("127.0.0.1", "::1"), port=free_port(), metrics_address=address
        )
        async with Server(config) as server:
            server.take_zone(builders.conformance_zone(server.memory()))
            query = dns.message.make_query(f"svc1.{SVC}", "A")
            for send in (dns.asyncquery.udp, dns.asyncquery.tcp):
                await send(query, "::1", port=config.port, timeout=patient(5))
            await dns.asyncquery.udp(query, "127.0.0.1", port=config.port, timeout=patient(5))
            return samples((await get(address, "/metrics"))[1])

    found = asyncio.run(body())
    counted = {
        (proto, family): value
        for sample, value in found.items()
        if sample.startswith("coredns_dns_requests_total")
        for proto, family in re.findall(r'proto="(\w+)",family="(\w)"', sample)
    }
    assert counted == {("udp", "1"): 1, ("udp", "2"): 1, ("tcp", "2"): 1}


def test_requests_to_the_api_server_are_counted() -> None:
    client = CountedClient(ClientConfig("http://127.0.0.1:9"))

    async def body() -> None:
        async with client:
            with contextlib.suppress(Exception):
                await client.get("/api/v1/services")

    asyncio.run(body())
    (request,) = client.calls().requests
    assert request == ("GET", "<error>", "127.0.0.1:9", 1)
    ((verb, host, counts, _),) = client.calls().took
    assert (verb, host, sum(counts)) == ("GET", "127.0.0.1:9", 1)
    assert feed.decode(feed.frame(client.calls())[4:]) == client.calls()
