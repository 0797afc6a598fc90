"""Drives a Reflector over an ApiClient: a live copy of one resource that survives restarts of the API server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import NoReturn

from ..api.meta import Object
from . import logs
from .http import ApiClient, ApiError
from .reflector import Event, Reflector, State

log = logs.get("informer")
WATCH_SECONDS = 300
BACKOFF_FIRST, BACKOFF_LAST = 0.05, 5.0


class Informer:
    """`on_event` is called in the event loop for each change; `on_synced` once, after the first full list.

    `objects` maps "namespace/name" (or "name") to the object and is changed before `on_event` is called. An exception in
    `on_event` is logged with the object's key; the copy and the watch go on. `keep`: see Reflector, for copies that are many.
    """

    def __init__(self, api: ApiClient, path: str, *, label_selector: str = "", field_selector: str = "",
                 on_event: Callable[[Event], None] | None = None, on_synced: Callable[[], None] | None = None,
                 keep: Callable[[Object], Object] | None = None) -> None:
        self.api, self.path = api, path
        self.params = {k: v for k, v in (("labelSelector", label_selector), ("fieldSelector", field_selector)) if v}
        self.on_event, self.on_synced = on_event, on_synced
        self.reflector = Reflector() if keep is None else Reflector(keep)
        self.synced = asyncio.Event()

    @property
    def objects(self) -> dict[str, Object]:
        return self.reflector.objects

    def _emit(self, event: Event) -> None:
        if self.on_event is None:
            return
        try:
            self.on_event(event)
        except Exception as err:  # one bad object must never stop a watch
            log.error("event handler failed", path=self.path, object=event.key, type=event.type, error=repr(err))

    async def _list(self) -> None:
        answer = await self.api.get(self.path, **self.params)
        version = (answer.get("metadata") or {}).get("resourceVersion") if isinstance(answer, dict) else None
        if not version:
            raise ApiError(0, "NoList", f"GET {self.path}: the answer is no list with a resourceVersion")
        for event in self.reflector.listed(answer.get("items") or [], str(version)):
            self._emit(event)
        if not self.synced.is_set():
            self.synced.set()
            if self.on_synced:
                self.on_synced()

    async def _watch(self) -> None:
        params = {**self.params, "resourceVersion": self.reflector.version, "allowWatchBookmarks": "true",
                  "timeoutSeconds": str(WATCH_SECONDS + random.randint(0, WATCH_SECONDS))}
        async for frame in self.api.watch(self.path, params):
            event = self.reflector.watched(frame)
            if event is not None:
                self._emit(event)
            if self.reflector.state is State.LIST:
                return

    async def run(self) -> NoReturn:
        """Forever: list, watch, and again with back-off (0.05 s to 5 s) while the server does not answer."""
        delay, told = BACKOFF_FIRST, False
        while True:
            begin = asyncio.get_running_loop().time()
            try:
                if self.reflector.state is State.LIST:
                    await self._list()
                else:
                    await self._watch()
                    if asyncio.get_running_loop().time() - begin < BACKOFF_FIRST:
                        await asyncio.sleep(BACKOFF_FIRST)  # a server that ends every stream at once must not be hammered
                if told:
                    log.info("API server answers again", path=self.path)
                delay, told = BACKOFF_FIRST, False
            except ApiError as err:
                if not told:
                    log.warn("API server does not answer, the last known state stays", path=self.path, code=err.code,
                             error=err.message)
                    told = True
                self.reflector.failed(err.code)
                await asyncio.sleep(delay * random.uniform(0.7, 1.3))
                delay = min(delay * 2, BACKOFF_LAST)
