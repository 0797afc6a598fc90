"""Keeps a live copy of one resource: drives a Reflector with the answers of an ApiClient. The copy survives restarts of
the API server.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import NoReturn

from ...role import beat, bugs, logs
from ..errors import ApiError, BadAnswer, Refused
from ..meta import Object
from .http import ApiClient
from .reflector import Event, Phase, Reflector, is_frame, is_object, whole

log = logs.get("informer")
WATCH_SECONDS = 300
BACKOFF_FIRST, BACKOFF_LAST = 0.05, 5.0
SOON = 0.125  # the least part of a back-off, even if the server answers other requests again
PAGE = "500"  # objects per page of a list
STREAM_SILENCE = 10.0  # seconds without a frame; a server that supports WatchList would have sent one by then
# The statuses of servers without WatchList: the parameter is forbidden for a watch (422) or unknown (400); the others
# come from proxies. client-go falls back to lists in the same cases.
_NO_STREAM = (400, 405, 406, 422)


class _NoStream(Exception):
    """The server does not support WatchList."""


class Informer:
    """A live copy of one resource. It calls `on_event` in the event loop for each change, and `on_synced` once, after
    the first full list.

    `objects` maps "namespace/name" (or "name") to the object. It is changed before `on_event` is called. An exception
    in `on_event` is logged with the object's key, and the watch continues. `keep`, `cut`: see Reflector; they save
    memory for large numbers of objects.

    stream: read the first state as a stream (WatchList) if the server supports it. Then the server need not build the
    complete answer in memory for every node at once. Otherwise the informer reads lists in pages.
    """

    def __init__(
        self,
        api: ApiClient,
        path: str,
        *,
        label_selector: str = "",
        field_selector: str = "",
        on_event: Callable[[Event], None] | None = None,
        on_synced: Callable[[], None] | None = None,
        keep: Callable[[Object], Object] | None = None,
        cut: Callable[[Object], Object] = whole,
        stream: bool = True,
    ) -> None:
        self.api, self.path = api, path
        self.params = {k: v for k, v in (("labelSelector", label_selector), ("fieldSelector", field_selector)) if v}
        self.on_event, self.on_synced = on_event, on_synced
        self.reflector = Reflector(keep or whole, cut)
        self.synced = asyncio.Event()
        self.streams = stream
        self._failing = False

    @property
    def objects(self) -> dict[str, Object]:
        return self.reflector.objects

    def _emit(self, event: Event) -> None:
        beat.tick(self.path, self.reflector.version)
        if self.on_event is None:
            return
        try:
            self.on_event(event)
        except Exception as err:  # an invalid object must not stop the watch
            bugs.report(log, "event handler failed", err, path=self.path, object=event.key, type=event.type)

    def _answered(self) -> None:
        if self._failing:
            log.info("API server answers again", path=self.path)
            self._failing = False

    def _complete(self) -> None:
        if not self.synced.is_set():
            self.synced.set()
            if self.on_synced:
                self.on_synced()

    async def _list(self) -> None:
        items: list[Object] = []
        params = {**self.params, "limit": PAGE}
        while True:
            answer = await self.api.get(self.path, **params)
            metadata = (answer.get("metadata") or {}) if isinstance(answer, dict) else {}
            if not metadata.get("resourceVersion"):
                raise BadAnswer(f"GET {self.path}: the answer is not a list with a resourceVersion")
            beat.tick(f"list of {self.path}")
            found = answer.get("items") or []
            items += [self.reflector.cut(item) for item in found if is_object(item)]
            if strange := [item for item in found if not is_object(item)]:
                log.warn(
                    "items of a list are no objects; left out",
                    path=self.path,
                    count=len(strange),
                    first=str(strange[0])[:100],
                )
            if not metadata.get("continue"):
                break
            params["continue"] = str(metadata["continue"])  # an expired token leads to a 410 and a new list
        self._answered()
        for event in self.reflector.listed(items, str(metadata["resourceVersion"])):
            self._emit(event)
        self._complete()

    def _watch_params(self) -> dict[str, str]:
        return {
            **self.params,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS + random.randint(0, WATCH_SECONDS)),
        }

    async def _frames(self, params: dict[str, str]) -> AsyncGenerator[Object, None]:
        """Yields the frames of the watch. A malformed frame is logged and skipped, so that an error of the server does
        not end the watch.
        """
        async with aclosing(self.api.watch(self.path, params, self._answered)) as frames:
            async for frame in frames:
                if is_frame(frame):
                    yield frame
                else:
                    log.warn("a frame of the watch cannot be used; left out", path=self.path, frame=str(frame)[:100])

    async def _stream(self) -> None:
        """Read the state and then the changes in one stream (WatchList). Raises _NoStream if the server does not
        support WatchList.
        """
        params = {**self._watch_params(), "sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        self.reflector.arriving()
        loop, listing = asyncio.get_running_loop(), self.reflector
        try:
            async with asyncio.timeout(STREAM_SILENCE) as silence, aclosing(self._frames(params)) as frames:
                async for frame in frames:
                    if listing.state is Phase.WATCH:
                        if not self._apply(frame):
                            return
                    elif (events := listing.initial(frame)) is not None:
                        silence.reschedule(None)
                        for event in events:
                            self._emit(event)
                        self._complete()
                    elif frame.get("type") == "ERROR":
                        status = frame.get("object") or {}
                        raise Refused(
                            int(status.get("code") or 500), str(status.get("reason")), str(status.get("message"))
                        )
                    else:
                        silence.reschedule(loop.time() + STREAM_SILENCE)
        except TimeoutError:
            raise _NoStream(f"nothing came for {STREAM_SILENCE:.0f} s") from None
        except Refused as err:
            if err.code in _NO_STREAM and listing.state is Phase.LIST:
                raise _NoStream(err.message) from err
            raise
        if listing.state is Phase.LIST:
            raise _NoStream("the stream ended before the end of its initial events")

    def _apply(self, frame: Object) -> bool:
        """Apply one frame of a watch. Returns False if a new list is necessary."""
        event = self.reflector.watched(frame)
        if event is not None:
            self._emit(event)
        return self.reflector.state is Phase.WATCH

    async def _watch(self) -> None:
        params = {**self._watch_params(), "resourceVersion": self.reflector.version}
        async with aclosing(self._frames(params)) as frames:
            async for frame in frames:
                if not self._apply(frame):
                    return

    async def _step(self) -> None:
        if self.reflector.state is Phase.WATCH:
            begin = asyncio.get_running_loop().time()
            await self._watch()
            if asyncio.get_running_loop().time() - begin < BACKOFF_FIRST:
                # If the server ends every stream at once, do not flood the server with requests.
                await asyncio.sleep(BACKOFF_FIRST)
        elif self.streams:
            try:
                await self._stream()
            except _NoStream as err:
                self.streams = False
                log.debug("the server has no WatchList, listing in pages", path=self.path, why=str(err))
        else:
            await self._list()

    async def run(self) -> NoReturn:
        """List and watch forever. If the server does not answer, try again with back-off (0.05 s to 5 s, plus a random
        0 to 60 %). If the server answers another request of this process meanwhile, try again earlier. If the server
        requests a delay (429 with Retry-After), wait at least this delay.
        """
        delay, clock = BACKOFF_FIRST, asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await self._step()
                delay = BACKOFF_FIRST
            except ApiError as err:
                refused = err if isinstance(err, Refused) else None
                if not self._failing:
                    what = "refuses" if refused else "does not answer"
                    log.warn(
                        f"API server {what}, the last known state stays",
                        path=self.path,
                        **({"code": refused.code} if refused else {}),
                        error=err.message,
                    )
                if clock() - began > BACKOFF_LAST:  # a stream that ends at once does not reset the back-off
                    delay = BACKOFF_FIRST
                self._failing = True
                if refused:
                    self.reflector.failed(refused.code)
                wait = max(delay, refused.retry_after if refused else 0) * random.uniform(1, 1.6)
                await self.api.pause(wait if refused else max(BACKOFF_FIRST, wait * SOON), wait)
                delay = min(delay * 2, BACKOFF_LAST)
