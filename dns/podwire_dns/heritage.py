"""Hands the sockets of queries from one server to the next, over a unix socket in the run directory.

The process that holds the sockets (spare.py) listens there. The next server connects, gets the sockets, and tells the
holder to leave as soon as it serves itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

from podwire_base.role import logs, unixsocket

log = logs.get("dns")
PATHS = ("dns-spare-0.sock", "dns-spare-1.sock")
TITLE = b"podwire\0dns-spare"
ASK_SECONDS = 2.0
MOST_SOCKETS = 200
LEAVE = b"L"
SO_NETNS_COOKIE = 71  # socket(7); asm-generic/socket.h


@dataclass(slots=True)
class Heritage:
    """What a predecessor left: its sockets, by (address, port, type), and the connection to the process that holds
    them.
    """

    sockets: dict[tuple[str, int, int], socket.socket] = field(default_factory=dict)
    holders: list[socket.socket] = field(default_factory=list)

    def take(self, address: str, port: int, kind: int) -> socket.socket | None:
        return self.sockets.pop((address, port, kind), None)

    def alive(self) -> bool:
        """Whether a predecessor still serves."""
        for holder in list(self.holders):
            with contextlib.suppress(BlockingIOError):
                if holder.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b"":
                    self.holders.remove(holder)
                    holder.close()
        return bool(self.holders)

    def dismiss(self) -> None:
        """Tells the predecessors to leave, and closes the sockets that nobody needs any more."""
        for holder in self.holders:
            with contextlib.suppress(OSError):
                holder.send(LEAVE)
            holder.close()
        for sock in self.sockets.values():
            sock.close()
        self.holders, self.sockets = [], {}


def inherit(run_dir: Path) -> tuple[Heritage, socket.socket]:
    """Asks a predecessor for its sockets. Returns them, and the socket on which this server's own spare listens.

    Raises OSError.
    """
    found, free = _asked(run_dir)
    listener = unixsocket.listen(run_dir / free, 4)
    if found.sockets:
        log.info("took the sockets over from a predecessor", sockets=len(found.sockets))
    return found, listener


def _asked(run_dir: Path) -> tuple[Heritage, str]:
    """Returns what the predecessors gave, and the one of PATHS that is free."""
    found, free = Heritage(), PATHS[0]
    for name in PATHS:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(ASK_SECONDS)
        try:
            sock.connect(str(run_dir / name))
            data, fds, _, _ = socket.recv_fds(sock, 1, MOST_SOCKETS)
        except TimeoutError:
            _end_silent(sock)
            free = name
            sock.close()
            continue
        except OSError:
            free = name
            sock.close()
            continue
        for fd in fds:
            held = socket.socket(fileno=fd)
            if not _of_this_namespace(held):
                log.warn("an earlier server's socket is of another network namespace, not taken over", path=name)
                held.close()
                continue
            address = held.getsockname()
            if found.sockets.setdefault((address[0], address[1], held.type), held) is not held:
                held.close()
        if data:
            sock.setblocking(False)
            found.holders.append(sock)
    return found, free


def _of_this_namespace(sock: socket.socket) -> bool:
    """Whether a socket is of the caller's network namespace. The run directory outlives a namespace that is made anew,
    and a socket keeps the old one alive. Kernels before 5.14 do not tell: True.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        try:
            return sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8) == own.getsockopt(
                socket.SOL_SOCKET, SO_NETNS_COOKIE, 8
            )
        except OSError:
            return True


def end_spares(run_dir: Path) -> None:
    """Tells the spares of servers that ended to leave, if there are any."""
    _asked(run_dir)[0].dismiss()


def _end_silent(sock: socket.socket) -> None:
    """Kills a holder that accepts no connection: it stands still, and queries that reach its sockets are lost."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("@iII"))
    pid = struct.unpack("@iII", credentials)[0]
    with contextlib.suppress(OSError):
        if pid > 0 and Path(f"/proc/{pid}/cmdline").read_bytes().startswith(TITLE):
            log.warn("the spare of an earlier server stands still, killing it", pid=pid)
            os.kill(pid, signal.SIGKILL)


class Holder:
    """The holder's side: gives the sockets to each server that asks, and sets `stop` when one says so.

    idle: the monotonic time since which no heir is connected.
    """

    def __init__(self, listener: socket.socket, sockets: list[socket.socket], stop: asyncio.Event) -> None:
        self._listener, self._sockets, self._stop = listener, sockets[:MOST_SOCKETS], stop
        self._heirs: set[asyncio.Task[None]] = set()
        self.idle = time.monotonic()
        listener.setblocking(False)
        listener.listen(4)  # the kernel tells an heir the process that called `listen` last

    @property
    def asked(self) -> bool:
        """Whether an heir is connected."""
        return bool(self._heirs)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            heir, _ = await loop.sock_accept(self._listener)
            heir.setblocking(False)
            task = asyncio.create_task(self._give(heir))
            self._heirs.add(task)
            task.add_done_callback(self._given)

    def _given(self, task: asyncio.Task[None]) -> None:
        self._heirs.discard(task)
        self.idle = time.monotonic()

    async def _give(self, heir: socket.socket) -> None:
        with heir:
            try:
                socket.send_fds(heir, [b"S"], [sock.fileno() for sock in self._sockets])
                if await asyncio.get_running_loop().sock_recv(heir, 1) == LEAVE:
                    self._stop.set()
            except OSError:
                pass  # the heir is gone; another one will come
