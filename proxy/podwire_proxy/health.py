"""GET /healthz and /metrics, where ProxyConfig.metrics_address asks for them."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from .metrics import Metrics


async def serve(address: str, metrics: Metrics, healthy: Callable[[], tuple[bool, str]]) -> web.AppRunner:
    """Listen on "host:port" ("[::1]:10249"). `healthy` returns (state, one line why). Raises OSError: port taken."""
    host, _, port = address.rpartition(":")

    async def healthz(_: web.Request) -> web.Response:
        good, why = healthy()
        body = {"healthy": good, "message": why, "lastUpdated": metrics.last_sync}
        return web.json_response(body, status=200 if good else 503)

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(text=metrics.render(), content_type="text/plain")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/metrics", exposition)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
    return runner
