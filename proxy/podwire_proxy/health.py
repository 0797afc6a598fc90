"""The proxy's HTTP: /healthz and /livez, /metrics, /proxyMode and /configz, and the health check ports of Services.

A Service of type LoadBalancer with externalTrafficPolicy Local has a healthCheckNodePort: a load balancer asks there
which nodes have endpoints of it. Answers are kube-proxy's: status 200 or 503, the same JSON keys, and the header
X-Load-Balancing-Endpoint-Weight.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from podwire_base.kube.times import micro_timestamp
from podwire_base.role import logs

from .dataplane import HealthCheck
from .metrics import Metrics

log = logs.get("proxy")
AGAIN = 2.0  # seconds until a listener that could not be made is tried again
LEAVING = 1.0  # seconds that a listener which goes gives to answers under way
TURNS = 3  # of the event loop, from an accepted connection to its handler


@dataclass(frozen=True, slots=True)
class Health:
    """healthy: no update waits too long; why: one line. eligible: load balancers may use the node."""

    healthy: bool
    why: str
    eligible: bool = True


def routes(metrics: Metrics, health: Callable[[], Health], mode: str, config: Mapping[str, Any]) -> list[web.RouteDef]:
    async def healthz(request: web.Request) -> web.Response:
        found, live = health(), request.path == "/livez"
        good = found.healthy and (live or found.eligible)
        code = 200 if good else 503
        (metrics.livez if live else metrics.healthz)[code] += 1
        body = {
            "lastUpdated": micro_timestamp(metrics.last_sync),
            "currentTime": micro_timestamp(time.time()),
            "healthy": good,
            "message": found.why,
            "status": {
                family: {"lastUpdated": micro_timestamp(metrics.last_sync), "healthy": found.healthy}
                for family in metrics.families
            },
            **({} if live else {"nodeEligible": found.eligible}),
        }
        return web.json_response(body, status=code, headers={"X-Content-Type-Options": "nosniff"})

    async def exposition(_: web.Request) -> web.Response:
        try:
            metrics.seen = await asyncio.to_thread(metrics.counted) or metrics.seen
        except OSError as err:  # the rules are just not there; what was counted before stays
            log.debug("packets could not be counted", error=str(err))
        return web.Response(text=metrics.render(), content_type="text/plain")

    async def proxy_mode(_: web.Request) -> web.Response:
        return web.Response(text=mode)

    async def configz(_: web.Request) -> web.Response:
        return web.json_response({"kubeproxy.config.k8s.io": config})

    return [
        web.get("/healthz", healthz),
        web.get("/livez", healthz),
        web.get("/metrics", exposition),
        web.get("/proxyMode", proxy_mode),
        web.get("/configz", configz),
    ]


class Runner(web.AppRunner):
    """Ends without leaving a client to wait for its answer."""

    async def cleanup(self) -> None:
        """Accept no more, then close what was accepted. asyncio loses a connection whose transport is not made when its
        server closes: nobody would answer it, nobody close it. Those that wait to be accepted are reset by the
        kernel."""
        loop = asyncio.get_running_loop()
        for site in self.sites:
            for sock in getattr(getattr(site, "_server", None), "sockets", ()):
                loop.remove_reader(sock.fileno())
        for _ in range(TURNS):
            await asyncio.sleep(0)
        await super().cleanup()


async def serve(address: str, found: Iterable[web.RouteDef]) -> web.AppRunner:
    """Listen on "host:port" ("[::1]:10249"). Raises OSError: port taken."""
    host, _, port = address.rpartition(":")
    app = web.Application()
    app.add_routes(found)
    runner = Runner(app, access_log=None, shutdown_timeout=LEAVING)
    await runner.setup()
    try:
        await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner


class ServiceChecks:
    """Listeners on the healthCheckNodePorts, one for each Service and address."""

    def __init__(self, healthy: Callable[[], bool], failed: Callable[[str, str], None]) -> None:
        """failed(service, why): a listener could not be made; told once, and tried on: its address or port may come
        free."""
        self._healthy, self._failed = healthy, failed
        self._checks: dict[str, HealthCheck] = {}
        self._open: dict[tuple[str, str, int], web.AppRunner] = {}
        self._missing: set[tuple[str, str, int]] = set()

    async def due(self, changed: asyncio.Event) -> None:
        """Until something changed, or a listener that is missing is to be tried again."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), AGAIN if self._missing else None)
        changed.clear()

    async def update(self, checks: Mapping[str, HealthCheck], addresses: Iterable[str]) -> None:
        """Open and close what changed."""
        self._checks = dict(checks)
        wanted = {(name, ip, check.port) for name, check in checks.items() for ip in addresses}
        for gone in self._open.keys() - wanted:
            await self._open.pop(gone).cleanup()
        self._missing &= wanted
        for name, ip, port in sorted(wanted - self._open.keys()):
            try:
                self._open[name, ip, port] = await self._listen(name, ip, port)
                self._missing.discard((name, ip, port))
            except OSError as err:
                if (name, ip, port) not in self._missing:
                    self._failed(name, f"healthCheckNodePort {port} on {ip}: {err.strerror or err}")
                self._missing.add((name, ip, port))

    async def _listen(self, name: str, ip: str, port: int) -> web.AppRunner:
        async def answer(_: web.Request) -> web.Response:
            check, healthy = self._checks.get(name), self._healthy()
            count = check.endpoints if check else 0
            namespace, _slash, service = name.partition("/")
            body = {
                "service": {"namespace": namespace, "name": service},
                "localEndpoints": count,
                "serviceProxyHealthy": healthy,
            }
            return web.Response(
                text=json.dumps(body),
                content_type="application/json",
                status=200 if count and healthy else 503,
                headers={"X-Load-Balancing-Endpoint-Weight": str(count), "X-Content-Type-Options": "nosniff"},
            )

        return await serve(f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}", [web.get("/{any:.*}", answer)])

    async def close(self) -> None:
        await self.update({}, ())
