"""The proxy's HTTP: /healthz, /livez, /metrics, /proxyMode and /configz, and the health check ports of Services.

A Service of type LoadBalancer with externalTrafficPolicy Local has a healthCheckNodePort: load balancers use it to find
the nodes with endpoints. Each IP family is counted for itself, and answered at the node's addresses of that family,
because a packet goes to an endpoint of its own family only. Answers are kube-proxy's: status 200 or 503, the same JSON
keys, and the header X-Load-Balancing-Endpoint-Weight.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from podwire_base.kube.times import micro_timestamp
from podwire_base.role import logs, waits, web
from podwire_base.role.metrics import CONTENT_TYPE

from .dataplane import HealthCheck
from .metrics import Metrics

log = logs.get("proxy")
NOSNIFF = {"X-Content-Type-Options": "nosniff"}
SITE_AGAIN = 5.0  # as kube-proxy
AGAIN = 2.0  # seconds until the next attempt to open a listener that failed


@dataclass(frozen=True, slots=True)
class Health:
    """The health of the proxy.

    healthy: no update has waited too long. why: the reason in one line. eligible: load balancers may use the node.
    """

    healthy: bool
    why: str
    eligible: bool = True


def pages(metrics: Metrics, health: Callable[[], Health], mode: str, config: Mapping[str, Any]) -> dict[str, web.Page]:
    """Returns path -> page, for podwire_base.role.web."""

    def healthz(live: bool) -> web.Answer:
        found = health()
        code = 200 if found.healthy and (live or found.eligible) else 503
        (metrics.livez if live else metrics.healthz)[code] += 1
        now = time.time()
        body = {  # kube-proxy's, whose lastUpdated is the present while the answer is 200
            "lastUpdated": micro_timestamp(now if code == 200 else metrics.last_sync),
            "currentTime": micro_timestamp(now),
            "healthy": found.healthy,
            "message": found.why,
            "status": {
                family: {"lastUpdated": micro_timestamp(metrics.last_sync), "healthy": found.healthy}
                for family in metrics.families
            },
            **({} if live else {"nodeEligible": found.eligible}),
        }
        return web.Answer(code, json.dumps(body), web.JSON, NOSNIFF)

    async def exposition() -> web.Answer:
        try:
            metrics.seen = await asyncio.to_thread(metrics.counted) or metrics.seen
            metrics.own = await asyncio.to_thread(metrics.figures)
        except OSError as err:  # the rules are missing; the last counts stay
            log.debug("packet counters could not be read", error=str(err))
        return web.Answer(200, metrics.render(), CONTENT_TYPE)

    return {
        "/healthz": lambda: healthz(False),
        "/livez": lambda: healthz(True),
        "/metrics": exposition,
        "/proxyMode": lambda: web.Answer(200, mode),
        "/configz": lambda: web.Answer(200, json.dumps({"kubeproxy.config.k8s.io": config}), web.JSON),
    }


class Sites:
    """Serves the pages on several addresses. problems: address -> why it is not served.

    If another program has an address (kube-proxy during a migration), the next attempt is SITE_AGAIN seconds later.
    """

    def __init__(self, found: Mapping[str, web.Page]) -> None:
        self._pages = found
        self.problems: dict[str, str] = {}

    def told(self) -> list[str]:
        """Returns a line for each address that is not served."""
        return [f"pages are not served on {address}: {why}" for address, why in self.problems.items()]

    async def serve(self, address: str) -> None:
        """Serves until it is cancelled."""
        while True:
            try:
                site = await web.serve(address, self._pages)
            except OSError as err:
                if address not in self.problems:
                    log.warn("pages are not served; trying again", address=address, problem=err.strerror or str(err))
                self.problems[address] = err.strerror or str(err)
                await asyncio.sleep(SITE_AGAIN)
                continue
            self.problems.pop(address, None)
            try:
                await asyncio.Event().wait()
            finally:
                await site.cleanup()


class ServiceChecks:
    """The listeners on the healthCheckNodePorts, one per Service and address."""

    def __init__(self, healthy: Callable[[], bool], failed: Callable[[str, str], None]) -> None:
        """failed(service, why): called once if a listener cannot open.

        ServiceChecks repeats the attempt, because the address or port may become available.
        """
        self._healthy, self._failed = healthy, failed
        self._checks: dict[str, HealthCheck] = {}
        self._open: dict[tuple[str, str, int], web.Site] = {}
        self._missing: set[tuple[str, str, int]] = set()

    async def due(self, changed: asyncio.Event) -> None:
        """Waits for a change, or for the next attempt to open a failed listener."""
        await waits.until_set(changed, AGAIN if self._missing else None)
        changed.clear()

    async def update(self, checks: Mapping[str, HealthCheck], addresses: Iterable[str]) -> None:
        """Opens and closes listeners after changes."""
        self._checks = dict(checks)
        places = tuple(addresses)
        wanted = {(name, ip, check.port) for name, check in checks.items() for ip in places if check.at(ip) is not None}
        for gone in self._open.keys() - wanted:
            await self._open.pop(gone).cleanup()
        self._missing &= wanted
        for name, ip, port in sorted(wanted - self._open.keys()):
            try:
                self._open[name, ip, port] = await self._listen(name, ip, port)
                self._missing.discard((name, ip, port))
            except OSError as err:
                if (name, ip, port) not in self._missing:
                    self._failed(name, f"healthCheckNodePort {port}: {err.strerror}")
                self._missing.add((name, ip, port))

    async def _listen(self, name: str, ip: str, port: int) -> web.Site:
        def answer() -> web.Answer:
            check, healthy = self._checks.get(name), self._healthy()
            count = (check.at(ip) if check else None) or 0
            namespace, _slash, service = name.partition("/")
            body = {
                "service": {"namespace": namespace, "name": service},
                "localEndpoints": count,
                "serviceProxyHealthy": healthy,
            }
            headers = {"X-Load-Balancing-Endpoint-Weight": str(count), **NOSNIFF}
            return web.Answer(200 if count and healthy else 503, json.dumps(body), web.JSON, headers)

        return await web.serve(f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}", {"": answer})

    async def close(self) -> None:
        await self.update({}, ())
