"""The spare is a second server process that reads the same sockets. It answers queries after the first server's death.
This module runs in the first server; the spare runs spareprocess.py.

The first server forks the spare when the zone is complete. The spare inherits the sockets, and shares the memory of the
zone's table with the first server until the table changes. The first server sends each change (feed.Delta) over a
socket pair, in the frames of twins.py. The spare reports the number of applied changes, and its counts each second. For
a new zone or new settings, the first server forks a new spare and sends SIGTERM to the old one. The old spare stops
reading, answers the queries that it has read, and ends.
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
SILENT_SECONDS = 30.0  # the first server kills a spare that sends no report for so long
LAG_SECONDS = 5.0  # the first server replaces a spare that has not applied a change after so long
MOST_BACKLOG = 64 << 20  # bytes of changes that a spare may leave unread
STEP_SECONDS = 0.05  # minimum time between two changes in Spare._times


class Counts:
    """The counts of a spare's compiled loops. Both processes share this memory, so the counts outlive the spare."""

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
        """Returns the number of queries that the spare has read and not answered."""
        return sum(int(each.taken) for each in self.all)


class Spare:
    """The first server's handle of a spare. heard: the monotonic time of the spare's start or last report. leaving: the
    first server has told the spare to end, or to serve without it.
    """

    def __init__(self, server: Server, listener: socket.socket, paths: Sequence[str]) -> None:
        """Forks the spare. listener: the socket on which the spare waits for the next server. paths: the path of each
        UDP socket, one of metrics.PATHS. Raises OSError.
        """
        self.counts, self.paths, self.heard = Counts(len(paths)), paths, time.monotonic()
        self.leaving = False
        self._figures = Figures()
        self._sent = self._applied = 0  # changes
        self._times: deque[tuple[int, float]] = deque()  # (number of a change, monotonic time of its sending)
        self._frames, self._server = twins.Frames(), server
        first = host.helper()
        twin = None
        if first is not None:
            with contextlib.suppress(OSError):  # without a helper, the spare's log does not name pods
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
        """Sends a change of the zone to the spare. now: monotonic time."""
        self._sent += 1
        if not self._times or now - self._times[-1][1] >= STEP_SECONDS:
            self._times.append((self._sent, now))
        self._link.send(twins.frame(message))

    def lag(self, now: float) -> float:
        """Returns the age in seconds of the oldest change in `_times` that the spare has not applied, 0.0 without one,
        and infinity if more than MOST_BACKLOG bytes wait. `_times` has at most one change per STEP_SECONDS.
        """
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
        """Returns the counts of the spare: the present ones of the compiled loops, the others from the last report."""
        found = figures.summed((self._figures,))
        for path, counts in zip(self.paths, self.counts.all, strict=False):
            found.tallies[path].add_native(counts)
        return found

    def linger(self, seconds: float) -> None:
        """Tells the spare to serve after this server's end until the next server takes over, or for so many seconds."""
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
