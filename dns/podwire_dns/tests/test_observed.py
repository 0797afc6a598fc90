"""A server's own reports: /health, /ready, /metrics, a line for each query; and its shutdown."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import dns.message
import dns.rcode
import dns.rrset
import pytest

from podwire_base.role import logs
from podwire_base.role.metrics import Page
from podwire_base.testing.ports import free_port
from podwire_dns.clients import KEEP_SECONDS, Clients
from podwire_dns.metrics import BOUNDS, Tally
from podwire_dns.observer import Observer
from podwire_dns.server import Server
from podwire_dns.testing import builders
from podwire_dns.testing.cases import SVC
from podwire_dns.tests.test_server import ask


async def get(address: str, path: str, method: str = "GET") -> tuple[int, str]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


def reading(folder: Path) -> Callable[[str], str]:
    return lambda address: (folder / address).read_text()


def samples(page: str) -> dict[str, float]:
    """Metric with labels -> value; fails on a malformed line and on a duplicate."""
    found: dict[str, float] = {}
    for line in page.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            assert name not in found
            found[name] = float(value)
    return found


@pytest.mark.parametrize("batches", [True, False])
def test_health_ready_and_metrics(tmp_path: Path, batches: bool) -> None:
    address = f"127.0.0.1:{free_port()}"
    config = dataclasses.replace(
        builders.CONFIG,
        run_dir=tmp_path,
        listen=("127.0.0.1",),
        port=free_port(),
        batches=batches,
        health_address=address,
        ready_address=address,
        metrics_address=address,
    )

    async def body() -> None:
        async with Server(config) as server:
            assert await get(address, "/health") == (200, "OK")
            assert (await get(address, "/ready"))[0] == 503
            server.answerer.data = builders.conformance_zone()
            assert (await get(address, "/ready"))[0] == 200
            assert (await get(address, "/nothing"))[0] == 404
            assert (await get(address, "/health", "POST"))[0] == 405
            for name, rtype, tcp in (
                ("svc1", "A", False),
                ("svc1", "A", True),
                ("svc1", "AAAA", False),
                ("none", "A", False),
                ("hdls", "SRV", True),
                ("svc1", "TYPE65280", False),
            ):
                await ask(config, f"{name}.{SVC}", rtype, tcp=tcp)
            found = samples((await get(address, "/metrics"))[1])
            labels = f'server="dns://:{config.port}",zone=".",view=""'
            assert found[f'coredns_dns_requests_total{{{labels},proto="udp",family="1",type="A"}}'] == 2
            assert found[f'coredns_dns_requests_total{{{labels},proto="udp",family="1",type="AAAA"}}'] == 1
            assert found[f'coredns_dns_requests_total{{{labels},proto="udp",family="1",type="other"}}'] == 1
            assert found[f'coredns_dns_requests_total{{{labels},proto="tcp",family="1",type="SRV"}}'] == 1
            assert found[f'coredns_dns_responses_total{{{labels},rcode="NXDOMAIN",plugin="kubernetes"}}'] == 1
            assert found[f'coredns_dns_responses_total{{{labels},rcode="NOERROR",plugin="kubernetes"}}'] == 5
            assert found[f"coredns_dns_request_duration_seconds_count{{{labels}}}"] == 6
            assert found[f'coredns_dns_request_duration_seconds_bucket{{{labels},le="+Inf"}}'] == 6
            assert found["podwire_dns_zone_synced"] == 1
            assert found["podwire_dns_feeder_connected"] == 0
            assert found["podwire_dns_answers"] == len(server.answerer.data.answers)

    asyncio.run(body())


def test_only_the_classes_and_names_that_are_asked_for_are_logged() -> None:
    written = io.StringIO()
    observer = Observer(None)
    observer.configure(Clients(reading(Path("nowhere"))), ("denial", "error"), ("corp.example.",))
    logs.configure(json_lines=True, stream=written)
    try:
        for name, rcode in (("a.corp.example.", 0), ("a.corp.example.", 3), ("b.corp.example.", 2), ("c.example.", 3)):
            message = dns.message.make_response(dns.message.make_query(name, "A"))
            message.set_rcode(dns.rcode.Rcode(rcode))
            message.answer.append(dns.rrset.from_text(name, 5, "IN", "A", "192.0.2.1"))
            observer.answered("udp", ("192.0.2.9",), b"", message.to_wire(), time.monotonic())
    finally:
        logs.configure()
    assert [json.loads(line)["name"] for line in written.getvalue().splitlines()] == [
        "a.corp.example.",
        "b.corp.example.",
    ]


def test_a_leaving_server_is_not_ready_and_still_answers(tmp_path: Path) -> None:
    config = dataclasses.replace(
        builders.CONFIG,
        run_dir=tmp_path,
        listen=("127.0.0.1",),
        port=free_port(),
        lame_duck=1.0,
        ready_address=f"127.0.0.1:{free_port()}",
    )

    async def body() -> None:
        async with Server(config) as server:
            server.answerer.data = builders.conformance_zone()
            leaving = asyncio.create_task(server.lame_duck())
            await asyncio.sleep(0)
            assert await get(config.ready_address, "/ready") == (503, "leaving\n")
            assert (await ask(config, f"svc1.{SVC}")).answer
            assert not leaving.done()
            await leaving

    asyncio.run(body())


def test_a_line_for_each_query_names_the_clients_pod(tmp_path: Path) -> None:
    leases = tmp_path / "cni" / "leases"
    leases.mkdir(parents=True)
    (leases / "127.0.0.1").write_text(json.dumps({"address": "127.0.0.1", "pod": "default/web-1"}) + "\n")
    config = dataclasses.replace(
        builders.CONFIG, run_dir=tmp_path, listen=("127.0.0.1",), port=free_port(), log_queries=True
    )
    written = io.StringIO()

    async def body() -> None:
        async with Server(config) as server:
            server.answerer.data = builders.conformance_zone()
            await ask(config, f"svc1.{SVC}")
            await ask(config, f"none.{SVC}", "AAAA", tcp=True)

    logs.configure(json_lines=True, stream=written)
    try:
        asyncio.run(body())
    finally:
        logs.configure()
    first, second = (line for line in map(json.loads, written.getvalue().splitlines()) if line["event"] == "query")
    assert (first["pod"], first["client"], first["name"], first["type"], first["rcode"], first["protocol"]) == (
        "default/web-1",
        "127.0.0.1",
        f"svc1.{SVC}",
        "A",
        "NOERROR",
        "udp",
    )
    assert (second["pod"], second["type"], second["rcode"], second["protocol"]) == (
        "default/web-1",
        "AAAA",
        "NXDOMAIN",
        "tcp",
    )


def test_a_lease_is_read_again_after_a_while(tmp_path: Path) -> None:
    clients = Clients(reading(tmp_path))
    assert clients.pod("10.244.0.2", 0) == ""
    (tmp_path / "10.244.0.2").write_text('{"pod": "a/b"}\n')
    assert clients.pod("10.244.0.2", KEEP_SECONDS / 2) == ""
    assert clients.pod("10.244.0.2", KEEP_SECONDS) == "a/b"
    for garbage in ("", "[]\n", "{\n"):
        (tmp_path / "10.244.0.3").write_text(garbage)
        assert Clients(reading(tmp_path)).pod("10.244.0.3", 0) == ""


def test_labels_are_escaped_and_buckets_are_cumulative() -> None:
    page, tally = Page(), Tally()
    page.family("a", "gauge", "Text.", [({"x": 'q"\\\n'}, 1)])
    assert page.lines[-1] == 'a{x="q\\"\\\\\\n"} 1'
    answer = dns.message.make_response(dns.message.make_query("a.", "A")).to_wire()
    for took in (0.0001, 0.003, 99.0):
        tally.answered(answer, answer, took)
    page.histogram("h", "Text.", BOUNDS, [({}, tally.took, tally.took_seconds)])
    found = samples(page.text())
    counts = [found[name] for name in found if name.startswith("h_bucket")]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1], found["h_count"]) == (1, 3, 3)
