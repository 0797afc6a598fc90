"""Sends Events about Services to the API server, in the background. I/O."""

from __future__ import annotations

import asyncio
import time

from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError
from podwire_base.role import logs

from .objects import service_event

log = logs.get("proxy")
AT_ONCE = 4  # a start may have an Event for each of thousands of Services


class Events:
    """`send` returns at once; a failure is logged and not repeated."""

    def __init__(self, api: ApiClient, node: str) -> None:
        self.api, self.node = api, node
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Semaphore(AT_ONCE)

    def send(self, service: str, reason: str, why: str) -> None:
        task = asyncio.ensure_future(self._post(service, reason, why))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _post(self, service: str, reason: str, why: str) -> None:
        namespace, _, name = service.partition("/")
        path = f"/api/v1/namespaces/{namespace}"
        async with self._turn:
            try:
                # `kubectl describe` finds an Event only by the Service's uid, which the informer does not keep
                found = (await self.api.get(f"{path}/services", fieldSelector=f"metadata.name={name}"))["items"]
                about = found[0] if found else {"metadata": {"namespace": namespace, "name": name}}
                await self.api.create(f"{path}/events", service_event(self.node, about, reason, why, time.time()))
            except (ApiError, OSError) as err:
                log.warn("an Event could not be written", error=str(err))
