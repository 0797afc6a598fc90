"""A second server process on the node, which reads the same sockets, so that nobody notices when the first one dies.
This module is the first server's side; spareprocess.py is the second process.

The first server forks it when the zone is whole: the sockets are inherited, and the zone's table is shared until it
changes. Changes come over a socket pair, in the frames of feed.py; the spare tells how many it has applied, and its
figures each second. For a new zone or new settings the first server forks a new spare, and the old one leaves: it stops
reading, and answers what it has.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from podwire_base.role import logs

from . import feed, figures, host, native, spareprocess, twins
from .figures import Figures, Report
from .link import Link

if TYPE_CHECKING:
    from .server import Server

log = logs.get("dns")
SILENT_SECONDS = 30.0  # without a report, a spare counts as stopped
LAG_SECONDS = 5.0  # a spare that has not applied a change for so long is replaced
MOST_BACKLOG = 64 << 20  # bytes of changes that a spare may leave unread
STEP_SECONDS = 0.05  # between two changes whose application is timed


class Counts:
    """The counts of a spare's compiled loops, in memory that both processes share: they outlive the spare."""

    def __init__(self, loops: int) -> None:
        module = native.load()
        self.all: list[Any] = []
        if module is not None:
            size = module.ffi.sizeof("struct batch_counts")
            self._memory = mmap.mmap(-1, max(1, size * loops))
            start = module.ffi.from_buffer(self._memory)
            self.all = [module.ffi.cast("struct batch_counts *", start + size * at) for at in range(loops)]

    @property
    def taken(self) -> int:
        """Returns the queries that the spare had read and not answered."""
        return sum(int(each.taken) for each in self.all)


class Spare:
    """A spare, seen from the first server. heard: the time of its last report. leaving: it was told to end."""

    def __init__(self, server: Server, listener: socket.socket, paths: Sequence[str]) -> None:
        """Forks the spare. paths: the metrics.PATHS of the UDP sockets. Raises OSError."""
        self.counts, self.paths, self.heard = Counts(len(paths)), paths, time.monotonic()
        self.leaving = False
        self._figures = Figures()
        self._sent = self._applied = 0  # changes
        self._times: deque[tuple[int, float]] = deque()  # (number of a change, when it was sent)
        self._frames, self._server = twins.Frames(), server
        first = host.helper()
        twin = None
        if first is not None:
            with contextlib.suppress(OSError):  # then the spare's log has no names of pods
                twin = first.another()
        own, other = socket.socketpair()
        gc.freeze()
        self.pid = os.fork()
        if self.pid == 0:
            spareprocess.become(server, other, listener, self.counts, twin)
        other.close()
        if twin is not None:
            twin.close_here()
        self._link = Link(own, self._read)
        self.sharing = twins.Sharing(self._link.send, lambda: self._link.backlog, self._link.soon)

    def send(self, message: feed.Delta, now: float) -> None:
        """Passes a change of the zone on."""
        self._sent += 1
        if not self._times or now - self._times[-1][1] >= STEP_SECONDS:
            self._times.append((self._sent, now))
        self._link.send(twins.frame(message))

    def lag(self, now: float) -> float:
        """Returns the seconds since the oldest change was sent that the spare has not applied; 0.0: it has all."""
        if self._link.backlog > MOST_BACKLOG:
            return float("inf")
        return now - self._times[0][1] if self._times else 0.0

    def _read(self, data: bytes) -> None:
        with contextlib.suppress(msgspec.DecodeError):
            for message in self._frames.add(data):
                match message:
                    case twins.Applied(number):
                        self._has(number)
                    case Report():
                        self._figures, self.heard = figures.reported(message), time.monotonic()
                        self._has(message.applied)
                        if message.looped and not self.leaving and not self._server.answerer.looped:
                            self._server.tell_loop()
                    case twins.Answers() if not self.leaving:  # a leaving spare has other settings
                        twins.take(self._server.answerer.cache, message, time.monotonic())

    def _has(self, applied: int) -> None:
        self._applied = applied
        while self._times and self._times[0][0] <= applied:
            self._times.popleft()

    def figures(self) -> Figures:
        """Returns the counts of the spare; those of the compiled loops are of this moment."""
        found = figures.summed((self._figures,))
        for path, counts in zip(self.paths, self.counts.all, strict=False):
            found.tallies[path].add_native(counts)
        return found

    def linger(self, seconds: float) -> None:
        """Lets the spare serve without this server."""
        self._link.send(twins.frame(twins.Linger(seconds)))
        self.leaving = True

    def leave(self) -> None:
        self.leaving = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        self._link.close()
