"""Keeps one spare server beside the first one: starts it, renews it for a new zone or new settings, replaces it when it
dies, stops or falls behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from podwire_base.role import logs

from . import feed, figures
from .figures import Figures
from .spare import LAG_SECONDS, SILENT_SECONDS, Spare

if TYPE_CHECKING:
    from .server import Server

log = logs.get("dns")
LOOK_SECONDS = 0.1
LEAVE_SECONDS = 10.0  # of a spare that another one replaces
END_SECONDS = 2.0  # of a spare at the end of the role
AGAIN_SECONDS = 1.0  # before the next try, if a spare ends right after its start


class Spares:
    """lost: the queries that spares had read when they were killed. ended: the spares that ended without being told.
    dismissed: the next server took the sockets over.
    """

    def __init__(self, server: Server, listener: socket.socket) -> None:
        self.server, self.listener = server, listener
        self.spare: Spare | None = None
        self.lost = self.ended = 0
        self.dismissed = self.lingering = False  # lingering: no spare follows one that was dismissed
        self._old: list[Spare] = []
        self._of: tuple[object, ...] = ()  # the zone and the settings that the spare has
        self._due = 0.0
        self._retired = Figures()

    def _every(self) -> Iterator[Spare]:
        yield from list(self._old)
        if self.spare is not None:
            yield self.spare

    async def follow(self) -> None:
        """Looks after the spare, for ever."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)

    def relay(self, message: feed.Delta) -> None:
        """Passes a change of the zone to the spare."""
        if self.spare is not None and self._of == self._wanted():
            self.spare.send(message, time.monotonic())

    def _wanted(self) -> tuple[object, ...]:
        server = self.server
        return server.zones, server.reloads, server.mended

    def look(self) -> None:
        self._reap()
        now, wanted = time.monotonic(), self._wanted()
        for spare in self._every():
            silent = now - spare.heard > (LEAVE_SECONDS if spare.leaving else SILENT_SECONDS)
            if silent or (spare.lag(now) > LAG_SECONDS and not spare.leaving):
                log.error("a spare server does not follow, killing it", pid=spare.pid, lag_s=spare.lag(now))
                spare.kill()
        if self.server.leaving or not self.server.answerer.data.synced or now < self._due:
            return
        if self.lingering and (self.dismissed or self.spare is not None):
            return  # the next server waits for this very spare
        if self.spare is None or self._of != wanted:
            self._due = now + AGAIN_SECONDS
            try:
                fresh = Spare(self.server, self.listener, self.server.udp_paths())
            except OSError as err:
                log.error("no spare server", error=str(err))
                return
            if self.spare is not None:
                self.spare.leave()
                self.spare.heard = now  # from now on, it has LEAVE_SECONDS
                self._old.append(self.spare)
            self.spare, self._of, self.dismissed = fresh, wanted, False
            self.server.forwarder.sharing = fresh.sharing
            log.info("spare server started", pid=fresh.pid)

    def _reap(self) -> None:
        for spare in self._every():
            try:
                pid, status = os.waitpid(spare.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = spare.pid, 0
            if not pid:
                continue
            self.dismissed = self.dismissed or (not status and not spare.leaving)
            if not spare.leaving:
                lost = spare.counts.taken
                self.lost, self.ended = self.lost + lost, self.ended + 1
                log.warn("a spare server ended", status=os.waitstatus_to_exitcode(status), lost=lost)
            self._retire(spare)

    def _retire(self, spare: Spare) -> None:
        self._retired = figures.summed((self._retired, spare.figures().ended()))
        spare.close()
        if self.server.forwarder.sharing is spare.sharing:
            self.server.forwarder.sharing = None
        if spare is self.spare:
            self.spare = None
        else:
            self._old.remove(spare)

    def figures(self) -> Figures:
        """Returns the counts of all spares since the start."""
        return figures.summed((self._retired, *(spare.figures() for spare in self._every())))

    def linger(self, seconds: float) -> None:
        """Lets the spare serve until the next server takes over, at most so many seconds."""
        if self.spare is not None:
            self.spare.linger(seconds)
            self.spare = None

    async def leave(self) -> None:
        """Ends the spares. Returns when they have ended, after at most END_SECONDS."""
        for spare in self._every():
            spare.leave()
        end = time.monotonic() + END_SECONDS
        while any(self._every()) and time.monotonic() < end:
            self._reap()
            await asyncio.sleep(0.01)
        for spare in self._every():
            spare.kill()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(spare.pid, 0)
            self._retire(spare)
