"""The process of a spare server (spare.py): it reads the first server's sockets, with its zone.

If the first server dies, the spare goes on with the last zone, until the next server takes the sockets over
(heritage.py). Without a next server it ends after ORPHAN_SECONDS, or what the first server said at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import time
from asyncio import events
from pathlib import Path
from typing import TYPE_CHECKING

from podwire_base.role import beat, bugs, logs, waits
from podwire_base.role.helper import Connection
from podwire_base.role.run import NOTIFY, STOP_SIGNALS, stop_event
from podwire_base.role.title import set_title

from . import feed, figures, host, twins
from .cache import Cache
from .heritage import Holder
from .link import Link
from .zone import ZoneData

if TYPE_CHECKING:
    from .server import Server
    from .spare import Counts

log = logs.get("dns")
TELL_SECONDS = 1.0  # between two reports of a spare
STUCK_SECONDS = 2.0  # a thread without progress for so long ends the reports, and so the spare
ORPHAN_SECONDS = 60.0


def become(
    first: Server, link: socket.socket, listener: socket.socket, counts: Counts, helper: Connection | None
) -> None:
    """Serves in the new process. Never returns."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (*STOP_SIGNALS, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.environ.pop(NOTIFY, None)  # the service manager hears the first server only
        beat.begin(None)  # the beat is the first server's
        gc.freeze()  # what the first server made must never be destroyed here: its destructors close descriptors
        sockets = first.sockets()
        kept = {link.fileno(), listener.fileno(), *(sock.fileno() for sock in sockets)}
        if helper is not None:
            helper.adopt()
            host.use(helper)
            kept.add(helper.fileno())
        _drop_others(kept)
        name = first.config.node_name
        set_title("podwire", "dns-spare", *([name] if name else []))
        data = first.answerer.data
        if data.memory is not None:
            data.memory.lib.table_forked(data.memory.raw)
        events._set_running_loop(None)
        asyncio.run(_serve(first, sockets, link, listener, counts, data))
        status = 0
    except BaseException as err:
        bugs.report(log, "the spare server ends", err)
    finally:
        os._exit(status)


def _drop_others(kept: set[int]) -> None:
    """Replaces all other descriptors by /dev/null: a connection that the first server closes must not stay open here.

    The numbers stay in use, so that a forgotten object of the first server can never close a descriptor of this one.
    """
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for entry in list(Path("/proc/self/fd").iterdir()):
        fd = int(entry.name)
        if fd > 2 and fd != null and fd not in kept:
            with contextlib.suppress(OSError):  # the descriptor of the listing
                os.dup2(null, fd, inheritable=False)


class _Feed:
    """Applies what the first server passes on. ended: the monotonic time of the first server's end."""

    def __init__(self, sock: socket.socket, data: ZoneData, cache: Cache) -> None:
        self.data, self.cache, self.applied, self.ended = data, cache, 0, float("inf")
        self.patience = ORPHAN_SECONDS
        self._frames = twins.Frames()
        self.link = Link(sock, self._read)
        self.sharing = twins.Sharing(self.link.send, lambda: self.link.backlog, self.link.soon)

    def _read(self, received: bytes) -> None:
        if not received:
            self.ended = time.monotonic()
            log.warn("the first server is gone, going on with the last zone", answers=len(self.data.answers))
            return
        before = self.applied
        for message in self._frames.add(received):
            if isinstance(message, feed.Delta):
                self.applied += 1
                self.data.apply(message)
            elif isinstance(message, twins.Linger):
                self.patience = message.seconds
            elif isinstance(message, twins.Answers):
                twins.take(self.cache, message, time.monotonic())
        if self.applied != before:
            self.tell(twins.Applied(self.applied))

    def tell(self, message: twins.Message) -> None:
        if self.link.backlog <= twins.MOST_WAITING:  # else the next message says it
            self.link.send(twins.frame(message))


async def _serve(
    first: Server,
    sockets: list[socket.socket],
    link: socket.socket,
    listener: socket.socket,
    counts: Counts,
    data: ZoneData,
) -> None:
    stop = stop_event()
    async with first.spare(sockets, counts, data, stop) as server:
        source, holder = _Feed(link, data, server.answerer.cache), Holder(listener, sockets, stop)
        server.forwarder.sharing = source.sharing
        holding = asyncio.create_task(holder.run())
        while not stop.is_set():
            now = time.monotonic()
            if source.ended == float("inf"):
                if server.stuck(now) < STUCK_SECONDS:
                    looped = server.answerer.looped
                    source.tell(figures.report(source.applied, server.own_figures(), looped=looped))
            elif not holder.asked and now - max(source.ended, holder.idle) > source.patience:
                log.warn("no server took the sockets over, ending", seconds=now - source.ended)
                break
            await waits.until_set(stop, TELL_SECONDS)
        holding.cancel()
