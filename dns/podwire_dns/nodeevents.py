"""Sends the Events about what the server mended on its node. The feeder sends them, because the server has no
credentials for the API; the server's status file tells what it mended. I/O.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError
from podwire_base.kube.meta import Object
from podwire_base.role import logs
from podwire_base.role.upkeep import node_event

log = logs.get("dns-feeder")
LOOK_SECONDS = 2.0


class Told:
    """What was told already. A server that starts again counts from 0."""

    def __init__(self, node_name: str) -> None:
        self._node, self._count = node_name, 0

    def news(self, status: Object, now: float) -> Object | None:
        """Returns the Event about the last mending that `status` has, or None if it is told or there is none."""
        figures = status.get("figures") or {}
        count, before = int(figures.get("repairs") or 0), self._count
        self._count = count
        if count in (0, before):
            return None
        what = str(figures.get("repaired", "")).rpartition(", ")[0]  # the end is the time
        return node_event(self._node, "podwire-dns", what, now)


async def follow(api: ApiClient, run_dir: Path, node_name: str) -> None:
    """Look and send, until cancelled. An Event that the API server does not take is lost; the log has its text."""
    if not node_name:
        return
    path, told = run_dir / "status" / "dns.json", Told(node_name)
    while True:
        try:
            event = told.news(json.loads(path.read_text()), time.time())
        except (OSError, ValueError):  # no server has written it yet
            event = None
        if event is not None:
            try:
                await api.create("/api/v1/namespaces/default/events", event)
            except ApiError as err:
                log.debug("event not stored", reason=event["reason"], error=str(err))
        await asyncio.sleep(LOOK_SECONDS)
