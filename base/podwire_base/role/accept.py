"""Accepts connections in the event loop, for all roles.

asyncio's own accept loop writes a traceback for each connection that waits while the process has no free file
descriptor, as often as the listening socket's queue is long. This one writes one line (with the limit of repeated
lines), pauses, and goes on; the connections wait in the kernel's queue meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

from . import logs

AGAIN = 1.0  # seconds before the next accept, if the process has no free file descriptor
TURN = 64  # connections that one turn of the event loop accepts at most
LOST = (  # errors of the one connection (accept(2)); the listening socket is well
    errno.ECONNABORTED,
    errno.EPERM,
    errno.EPROTO,
    errno.ENOPROTOOPT,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENONET,
    errno.EOPNOTSUPP,
)
log = logs.get("accept")
Taken = Callable[[socket.socket, Any], None]


def peer_of(address: Any) -> str:
    """Returns the peer's address without port, scope and the prefix of IPv4 in IPv6; "" for a unix socket."""
    if not isinstance(address, tuple) or not address:
        return ""
    return str(address[0]).partition("%")[0].removeprefix("::ffff:")


class Acceptor:
    """Calls `taken(connection, address)` for each connection of `listener`, from the constructor's call until `close`.
    The connections do not block. `taken` owns them.
    """

    def __init__(self, listener: socket.socket, taken: Taken) -> None:
        self.listener, self._taken = listener, taken
        listener.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._again: asyncio.TimerHandle | None = None
        self._loop.add_reader(listener, self._turn)

    def close(self) -> None:
        """Stop accepting and close the listening socket. Connections in its queue are reset."""
        self.pause()
        self.listener.close()

    def pause(self) -> None:
        """Stop accepting; the listening socket stays open, and connections wait in its queue."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self.listener.fileno() >= 0:
            self._loop.remove_reader(self.listener)

    def drain(self) -> None:
        """Accept the connections in the queue now."""
        while self._one():
            pass

    def _turn(self) -> None:
        for _ in range(TURN):
            if not self._one():
                return

    def _one(self) -> bool:
        """Accept one connection. Returns whether there may be another."""
        try:
            connection, address = self.listener.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as err:
            if err.errno in LOST:
                return True
            log.error("no connection can be accepted for a moment", listener=_name(self.listener), error=err.strerror)
            self.pause()
            self._again = self._loop.call_later(AGAIN, self._go_on)
            return False
        connection.setblocking(False)
        self._taken(connection, address)
        return True

    def _go_on(self) -> None:
        self._again = None
        self._loop.add_reader(self.listener, self._turn)


def streams(listener: socket.socket, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> Acceptor:
    """Run `serve(reader, writer)` for each connection, like asyncio.start_server. `serve` closes the writer."""
    tasks: set[asyncio.Task[None]] = set()

    async def talk(connection: socket.socket) -> None:
        try:
            pair = await asyncio.open_connection(sock=connection)
        except OSError:
            connection.close()
            return
        await serve(*pair)

    def taken(connection: socket.socket, _: Any) -> None:
        task = asyncio.get_running_loop().create_task(talk(connection))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    return Acceptor(listener, taken)


def _name(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)
