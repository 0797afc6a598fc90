"""Sends Events about Services and pods to the API server, in the background. I/O."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus

from podwire_base.kube import meta
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError, Refused
from podwire_base.role import logs

from .objects import about, service_event

log = logs.get("proxy")
AT_ONCE = 4  # a start may have an Event for each of thousands of Services


class Events:
    """`send` returns at once; a failure is logged and not repeated."""

    def __init__(self, api: ApiClient, node: str) -> None:
        self.api, self.node = api, node
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Semaphore(AT_ONCE)

    def send(self, service: str, reason: str, why: str) -> None:
        now = time.time()
        self.post(about("Service", service), lambda whom: service_event(self.node, whom, reason, why, now))

    def post(self, whom: meta.Object, make: Callable[[meta.Object], meta.Object]) -> None:
        """whom: the reference to a Service or pod. make: returns the Event about it."""
        task = asyncio.ensure_future(self._post(whom, make))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _post(self, whom: meta.Object, make: Callable[[meta.Object], meta.Object]) -> None:
        path = f"/api/v1/namespaces/{whom['namespace']}"
        async with self._turn:
            try:
                # `kubectl describe` finds an Event only by the Service's uid, which the informer does not keep
                if whom["kind"] == "Service":
                    named = f"metadata.name={whom['name']}"
                    if found := (await self.api.get(f"{path}/services", fieldSelector=named))["items"]:
                        whom = {**whom, "uid": meta.uid(found[0])}
                await self.api.create(f"{path}/events", make(whom))
            except Refused as err:
                if err.code != HTTPStatus.CONFLICT:  # another node's proxy said the same (objects.claim_event)
                    log.warn("an Event could not be written", error=str(err))
            except (ApiError, OSError) as err:
                log.warn("an Event could not be written", error=str(err))
