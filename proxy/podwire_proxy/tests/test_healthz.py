"""/healthz and /livez as kube-proxy answers them (pkg/proxy/healthcheck, proxy_health.go)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.client.counted import CountedClient
from podwire_base.kube.errors import ApiError
from podwire_base.kube.times import parse_time
from podwire_base.role.web import Answer
from podwire_proxy import health
from podwire_proxy.metrics import Metrics


def answer(path: str, healthy: bool, eligible: bool, metrics: Metrics) -> tuple[int, dict[str, Any]]:
    made = health.pages(metrics, lambda: health.Health(healthy, "x", eligible), "nftables", {})[path]()
    assert isinstance(made, Answer)
    return made.status, json.loads(made.body)


@pytest.mark.parametrize("healthy", [True, False])
@pytest.mark.parametrize("eligible", [True, False])
def test_healthy_and_eligible_are_told_apart(healthy: bool, eligible: bool) -> None:
    """A node that is to be deleted takes no new traffic, but its proxy is well."""
    metrics = Metrics(families=("IPv4", "IPv6"), last_sync=1000.0)
    status, body = answer("/healthz", healthy, eligible, metrics)
    assert status == (200 if healthy and eligible else 503)
    assert (body["healthy"], body["nodeEligible"]) == (healthy, eligible)
    assert {family: one["healthy"] for family, one in body["status"].items()} == dict.fromkeys(
        metrics.families, healthy
    )
    assert metrics.healthz == {status: 1}


@pytest.mark.parametrize("healthy", [True, False])
@pytest.mark.parametrize("eligible", [True, False])
def test_livez_knows_nothing_of_the_node(healthy: bool, eligible: bool) -> None:
    metrics = Metrics()
    status, body = answer("/livez", healthy, eligible, metrics)
    assert status == (200 if healthy else 503)
    assert body["healthy"] is healthy
    assert "nodeEligible" not in body
    assert metrics.livez == {status: 1}


def test_the_page_counts_what_each_role_of_the_node_mended() -> None:
    page = Metrics(mended=lambda: {"wiring": 3, "dns": 0}).render()
    assert 'podwire_kernel_repairs_total{role="dns"} 0\npodwire_kernel_repairs_total{role="wiring"} 3\n' in page


@pytest.mark.parametrize(
    ("healthy", "eligible", "recent"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_last_updated_is_recent_while_the_answer_is_200(healthy: bool, eligible: bool, recent: bool) -> None:
    _, body = answer("/healthz", healthy, eligible, Metrics(last_sync=1000.0))
    assert (body["lastUpdated"] == body["currentTime"]) is recent
    assert recent or parse_time(body["lastUpdated"]).timestamp() == 1000.0


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Log nothing."""

        def do_GET(self) -> None:
            self.send_response(404 if "missing" in self.path else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_GET

    made = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_address[1]}"
    made.shutdown()
    made.server_close()


def test_requests_to_the_api_server_are_on_the_page(server: str) -> None:
    metrics = Metrics()
    assert 'rest_client_requests_total{code="200",host="",method="GET"} 0' in metrics.render()

    async def work() -> None:
        async with CountedClient(ClientConfig(server)) as api:
            metrics.api = api.counted
            await api.get("/api/v1/nodes")
            await api.create("/api/v1/namespaces/default/events", {})
            with pytest.raises(ApiError):
                await api.get("/missing")
        async with CountedClient(ClientConfig("http://127.0.0.1:1")) as away:
            with pytest.raises(ApiError):
                await away.get("/")
            assert list(away.counted.requests.elements()) == [("GET", "<error>", "127.0.0.1:1")]

    asyncio.run(work())
    host, page = server.partition("://")[2], metrics.render()
    for code, method in (("200", "GET"), ("200", "POST"), ("404", "GET")):
        assert f'rest_client_requests_total{{code="{code}",host="{host}",method="{method}"}} 1\n' in page
    assert f'rest_client_request_duration_seconds_count{{host="{host}",verb="GET"}} 2\n' in page
    assert f'rest_client_request_duration_seconds_bucket{{host="{host}",verb="GET",le="60"}} 2\n' in page
    assert "process_resident_memory_bytes" in page and "process_start_time_seconds" in page
