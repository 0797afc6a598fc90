"""What a server says about itself: /health, /ready, /metrics, and the status of its role."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podwire_base.role import process, web
from podwire_base.role.metrics import CONTENT_TYPE
from podwire_base.role.status import RoleStatus
from podwire_base.version import VERSION

from . import metrics, metrics_page
from .config import DnsConfig
from .healing import NodeState

if TYPE_CHECKING:
    from .server import Server


def pages(server: Server, config: DnsConfig) -> Iterator[tuple[str, dict[str, web.Page]]]:
    """Yields (address, pages) for each HTTP address. Pages with the same address share a listener."""
    found: dict[str, dict[str, web.Page]] = {}
    for address, path, page in (
        (config.health_address, "/health", lambda: web.Answer(200, "OK")),
        (config.ready_address, "/ready", lambda: ready(server)),
        (config.metrics_address, "/metrics", lambda: web.Answer(200, metrics_page.render(state(server)), CONTENT_TYPE)),
    ):
        if address:
            found.setdefault(address, {})[path] = page
    yield from found.items()


def ready(server: Server) -> web.Answer:
    """Returns status 200 while the server accepts queries. The text says whether the zone is current."""
    if server.leaving:
        return web.Answer(503, "leaving\n")
    if not server.answerer.data.synced:
        return web.Answer(503, "waits for the feeder's first zone\n")
    if server.broken:
        return web.Answer(503, f"{server.broken}\n")
    return web.Answer(200, "OK\n" if server.fed else "OK: the last zone is used, the feeder is down\n")


def state(server: Server) -> metrics_page.ServerState:
    """Returns the figures for /metrics."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    forwarding = server.forwarder.state(server.waiting.turns.refused)
    spares, found = metrics_page.SpareState(), server.spares
    tallies = server.tallies()
    if found is not None:
        more = found.figures()
        forwarding = forwarding.plus(more.forwarded)
        tallies = {path: metrics.total((tally, more.tallies[path])) for path, tally in tallies.items()}
        lag = found.spare.lag(time.monotonic()) if found.spare is not None else 0.0
        spares = metrics_page.SpareState(1 + (found.spare is not None), found.ended, found.lost, lag, more.cache)
    return metrics_page.ServerState(
        VERSION,
        tallies,
        forwarding,
        server.answerer.cache,
        server.answerer.data,
        server.config,
        server.sources.digest,
        server.sources.failed,
        server.reloads,
        server.fed,
        server.observer.programming,
        server.health,
        server.health_failures,
        usage.ru_utime + usage.ru_stime,
        _memory(),
        server.started,
        (server.answerer.rules.host_entries, server.settled) if server.answerer.rules is not None else (0, 0.0),
        server.follower.api,
        process.figures(),
        spares,
    )


def report(server: Server, status: RoleStatus, node: NodeState | None = None) -> None:
    """Writes the status of the role. node: what the role repaired on its node."""
    data = server.answerer.data
    problem = server.broken or (node.problem if node is not None else "")
    figures: dict[str, Any] = node.mendings.figures() if node is not None else {}
    mended = node.mendings.words() if node is not None else ""
    if server.spares is not None and server.spares.spare is not None:
        figures["spare"] = server.spares.spare.pid
        if server.spares.ended:
            figures["spares_ended"], figures["queries_lost"] = server.spares.ended, server.spares.lost
    if server.answerer.looped:
        status.update(ready=False, message="an upstream sends queries back to this DNS", reason="ForwardingLoop")
    elif problem:
        status.update(ready=False, message=problem, reason="NotServed", **figures)
    elif not data.synced:
        status.update(ready=False, message="waits for the feeder's first zone", reason="NotSynced", **figures)
    elif not server.fed:
        message = f"{len(data.answers)} answers of the last zone; the feeder is down{mended}"
        status.update(ready=True, reason="Stale", message=message, answers=len(data.answers), **figures)
    else:
        status.update(ready=True, message=f"{len(data.answers)} answers{mended}", answers=len(data.answers), **figures)


def _memory() -> int:
    """Returns the memory of this process in bytes."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return 0
