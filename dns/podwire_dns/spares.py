"""Keeps one spare server beside the first one: starts it, renews it for a new zone or new settings, replaces it when it
dies or stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

from podwire_base.role import logs

from . import feed, metrics
from .spare import AGAIN_SECONDS, LEAVE_SECONDS, SILENT_SECONDS, Spare

if TYPE_CHECKING:
    from .server import Server

log = logs.get("dns")
LOOK_SECONDS = 0.1


class Spares:
    """lost: the queries that spares had read when they were killed. ended: the spares that ended without being told."""

    def __init__(self, server: Server, listener: socket.socket) -> None:
        self.server, self.listener = server, listener
        self.spare: Spare | None = None
        self.lost = self.ended = 0
        self._old: list[Spare] = []
        self._of: tuple[object, ...] = ()  # the zone and the settings that the spare has
        self._due = 0.0
        self._retired = {path: metrics.Tally() for path in metrics.PATHS}

    async def follow(self) -> None:
        """Looks after the spare, for ever."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)

    def relay(self, message: feed.Message) -> None:
        """Passes a change of the zone to the spare."""
        if self.spare is not None and self._of == self._wanted():
            self.spare.send(message)

    def _wanted(self) -> tuple[object, ...]:
        server = self.server
        return id(server.answerer.data), server.reloads, server.mended

    def look(self) -> None:
        self._reap()
        now, wanted = time.monotonic(), self._wanted()
        for spare in (*self._old, *([self.spare] if self.spare is not None else [])):
            limit = spare.heard + (LEAVE_SECONDS if spare.leaving else SILENT_SECONDS)
            if now > limit:
                log.error("a spare server does not answer, killing it", pid=spare.pid)
                spare.kill()
        if self.server.leaving or not self.server.answerer.data.synced or now < self._due:
            return
        if self.spare is None or self._of != wanted:
            self._due = now + AGAIN_SECONDS
            try:
                fresh = Spare(self.server, self.listener, self.server.udp_paths())
            except OSError as err:
                log.error("no spare server", error=str(err))
                return
            if self.spare is not None:
                self.spare.leave()
                self._old.append(self.spare)
            self.spare, self._of = fresh, wanted
            log.info("spare server started", pid=fresh.pid)

    def _reap(self) -> None:
        for spare in (*self._old, *([self.spare] if self.spare is not None else [])):
            try:
                pid, status = os.waitpid(spare.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = spare.pid, 0
            if not pid:
                continue
            if not spare.leaving:
                lost = spare.counts.taken
                self.lost, self.ended = self.lost + lost, self.ended + 1
                log.warn("a spare server ended, starting another", status=os.waitstatus_to_exitcode(status), lost=lost)
            self._retire(spare)

    def _retire(self, spare: Spare) -> None:
        for path, tally in self._of_spare(spare).items():
            self._retired[path] = metrics.total((self._retired[path], tally))
        spare.close()
        if spare is self.spare:
            self.spare = None
        else:
            self._old.remove(spare)

    def _of_spare(self, spare: Spare) -> dict[str, metrics.Tally]:
        found = {path: metrics.total((spare.tallies.get(path, metrics.Tally()),)) for path in metrics.PATHS}
        for path, counts in zip(spare.paths, spare.counts.all, strict=False):
            found[path].add_native(counts)
        return found

    def tallies(self) -> dict[str, metrics.Tally]:
        """Returns the counts of all spares since the start, by path."""
        every = [self._of_spare(spare) for spare in (*self._old, *([self.spare] if self.spare is not None else []))]
        return {path: metrics.total((self._retired[path], *(each[path] for each in every))) for path in metrics.PATHS}

    async def leave(self) -> None:
        """Ends the spares. Returns when they have ended, after at most LEAVE_SECONDS."""
        for spare in (*self._old, *([self.spare] if self.spare is not None else [])):
            spare.leave()
        end = time.monotonic() + 2.0
        while (self.spare is not None or self._old) and time.monotonic() < end:
            self._reap()
            await asyncio.sleep(0.02)
        for spare in (*self._old, *([self.spare] if self.spare is not None else [])):
            spare.kill()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(spare.pid, 0)
