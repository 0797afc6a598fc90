"""The server's end of the feed: connects to the feeder, then receives the zone and its changes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from pathlib import Path

from podwire_base.role import beat, logs

from . import feed, host
from .answertable import AnswerTable
from .zone import ZoneData

log = logs.get("dns")
RECONNECT_FIRST, RECONNECT_LAST = 0.05, 1.0


class _Link(asyncio.Protocol):
    """A connection to the feeder. It reads large pieces, because each wake-up takes the interpreter from queries."""

    def __init__(self, take: Callable[[feed.Message], None]) -> None:
        self.frames, self.take = feed.Frames(), take
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for message in self.frames.add(data):
                self.take(message)
        except feed.BadFeed as err:
            self._end(err)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or ConnectionResetError("the feeder closed the connection"))

    def _end(self, err: Exception) -> None:
        if not self.ended.done():
            self.ended.set_exception(err)


class Follower:
    """Calls `whole(zone)` with each complete zone and applies later changes to it. fed: the feeder is connected."""

    def __init__(
        self,
        path: Path,
        whole: Callable[[ZoneData], None],
        programmed: Callable[[float], None],
        memory: Callable[[], AnswerTable | None] = lambda: None,
    ) -> None:
        """programmed: gets the seconds from a change of a headless Service's pods to the new answers in this server.

        memory: returns the table of a new zone.
        """
        self.path, self.whole, self.programmed, self.memory = path, whole, programmed, memory
        self.fed = self.ever = False
        self.api = feed.NO_CALLS
        self.relay: Callable[[feed.Delta], None] = lambda delta: None  # gets each change of the whole zone
        self._zone: ZoneData | None = None

    def take(self, message: feed.Message) -> None:
        """Processes one message of the feeder. Raises BadFeed."""
        beat.tick("zone")
        if isinstance(message, feed.Hello):
            self._zone = ZoneData.begin(message, self.memory())
        elif self._zone is None:
            raise feed.BadFeed("feed: it does not begin with Hello")
        elif isinstance(message, feed.ApiCalls):
            self.api = message
        elif isinstance(message, feed.Delta):
            self._zone.apply(message)
            if self.fed:
                self.relay(message)
            for when in message.triggered:
                self.programmed(max(0.0, time.time() - when))
        else:
            self._zone.synced = self.fed = self.ever = True
            self.whole(self._zone)
            log.info("zone is whole", answers=len(self._zone.answers), serial=message.serial)

    async def run(self) -> None:
        """Connects again and again, with back-off (0.05 s to 1 s). Never returns."""
        delay, told = RECONNECT_FIRST, False
        while True:
            link: _Link | None = None
            try:
                loop = asyncio.get_running_loop()
                if (helper := host.helper()) is not None:
                    sock = await asyncio.to_thread(helper.call, "feed")
                    _, link = await loop.create_unix_connection(lambda: _Link(self.take), sock=sock)
                else:
                    _, link = await loop.create_unix_connection(lambda: _Link(self.take), str(self.path))
                await link.ended
            except (OSError, feed.BadFeed) as err:
                if self.fed or not told:
                    tell = log.warn if self.ever else log.info
                    tell(
                        "no feeder, answering from the last zone" if self.ever else "waits for the feeder",
                        socket=str(self.path),
                        error=str(err),
                    )
                    told, delay = True, RECONNECT_FIRST
            finally:
                self.fed, self._zone = False, None
                if link is not None and link.transport is not None:
                    with contextlib.suppress(OSError):
                        link.transport.close()
            await asyncio.sleep(delay * random.uniform(0.7, 1.3))
            delay = min(delay * 2, RECONNECT_LAST)
