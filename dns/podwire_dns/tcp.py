"""Serves DNS over TCP. A connection may have several pending queries; answers may be out of order (RFC 7766).

One client cannot take all connections: each source has a share of the places (shares.py). When a share or all places
are in use, the connection that has been idle for the longest time makes room (RFC 7766 section 6.2.3). The fewer places
are free, the sooner an idle connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from podwire_base.role.accept import Acceptor

from .answer import Answerer, Pending, forwarded_by
from .observer import Observer
from .shares import OWN_SHARE, SHARE, packed
from .udp import Send

MAX_CONNECTIONS = 1000
TCP_IDLE_SECONDS, TCP_IDLE_LEAST = 10.0, 1.0
IN_A_ROW = 8  # queries of one connection before the other connections have their turn


@dataclass(slots=True, eq=False)
class _Connection:
    """waiting: the number of queries without an answer yet; a connection without such a query is idle."""

    writer: asyncio.StreamWriter
    source: bytes
    waiting: int = 0


class TcpService:
    """Accepts TCP connections and answers their queries. `wait(pending, send, source)` sends the question to an
    upstream.
    """

    def __init__(
        self, answerer: Answerer, observer: Observer, wait: Callable[[Pending, Send, bytes], None], most: int
    ) -> None:
        """most: the maximum number of connections.

        own: the addresses with the larger share, see shares.py. refused: connections that found no place.
        """
        self.answerer, self.observer, self._wait, self.most = answerer, observer, wait, most
        self.own: frozenset[bytes] = frozenset()
        self.refused = 0
        self.listeners: list[Acceptor] = []
        self.connections: dict[asyncio.StreamWriter, _Connection] = {}  # the last one was the last to become active
        self._late: set[asyncio.Task[None]] = set()

    def listen(self, sock: socket.socket) -> None:
        self.listeners.append(Acceptor(sock, self._accepted))

    def replace(self, listener: Acceptor, sock: socket.socket) -> None:
        """Listens on `sock` instead of a listener that failed."""
        self.listeners[self.listeners.index(listener)] = Acceptor(sock, self._accepted)
        listener.close()

    def close_listeners(self, listeners: list[Acceptor]) -> None:
        """Closes the listeners after accepting the connections in their queues; closing alone would reset these."""
        for listener in listeners:
            listener.pause()
            listener.drain()
            listener.close()

    def _accepted(self, sock: socket.socket, _: Any) -> None:
        task = asyncio.get_running_loop().create_task(self._taken(sock))
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _taken(self, sock: socket.socket) -> None:
        try:
            streams = await asyncio.open_connection(sock=sock)
        except OSError:
            sock.close()  # the client left
            return
        await self._connection(*streams)

    async def leave(self, seconds: float) -> None:
        """Waits up to `seconds` for connections to end, then closes the rest. No answer is truncated."""
        end = time.monotonic() + seconds
        while (self.connections or self._late) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        open_still = list(self.connections)
        for writer in open_still:
            writer.close()  # sends its buffer first
        if open_still:
            await asyncio.wait([asyncio.create_task(_closed(writer)) for writer in open_still], timeout=seconds)

    @property
    def idle_seconds(self) -> float:
        """The time after which an idle connection ends: shorter while more than half of the places are in use."""
        free = 1 - len(self.connections) / self.most
        return max(TCP_IDLE_LEAST, TCP_IDLE_SECONDS * min(1.0, 2 * free))

    def _admit(self, writer: asyncio.StreamWriter, source: bytes) -> _Connection | None:
        """Returns the new connection; None if it has no place. An idle connection may have to make room for it."""
        mine = [each for each in self.connections.values() if each.source == source]
        share = max(1, self.most // (OWN_SHARE if source in self.own else SHARE))
        if len(mine) >= share or len(self.connections) >= self.most:
            among = mine if len(mine) >= share else list(self.connections.values())
            idle = next((each for each in among if not each.waiting), None)
            if idle is None:
                self.refused += 1
                return None
            self.connections.pop(idle.writer).writer.transport.abort()
        found = self.connections[writer] = _Connection(writer, source)
        return found

    def _touch(self, connection: _Connection) -> None:
        """Makes this connection the last one to be closed for others."""
        if self.connections.pop(connection.writer, None) is not None:
            self.connections[connection.writer] = connection

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername") or ("",)
        connection = self._admit(writer, packed(peer[0]))
        if connection is None:
            writer.close()
            return
        none_left, queries = asyncio.Event(), 0
        try:
            while True:
                queries += 1
                if not queries % IN_A_ROW:  # neither reading nor writing waits while a client sends without a pause
                    await asyncio.sleep(0)
                async with asyncio.timeout(self.idle_seconds):
                    data = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                self._touch(connection)
                try:
                    answer = self.answerer.handle(data, udp=False)
                except Exception as err:  # one message must never stop the service
                    self.observer.failed(path_of(peer), peer, data, err)
                    return
                if isinstance(answer, Pending):
                    connection.waiting += 1
                    send = self._sender(writer, peer, data, None)

                    def answered(late: bytes, send: Send = send) -> None:
                        send(late)
                        connection.waiting -= 1
                        none_left.set()

                    self._wait(answer, answered, connection.source)
                elif answer is None:
                    return
                else:
                    self._sender(writer, peer, data, self.answerer.answered_by(answer))(answer)
                async with asyncio.timeout(TCP_IDLE_SECONDS):
                    await writer.drain()
        except asyncio.IncompleteReadError:
            while connection.waiting:  # the client sends no more queries; its last answers are outstanding
                none_left.clear()
                await none_left.wait()
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the client left or is too slow, or the server ends, which asyncio would log as an error
        finally:
            self.connections.pop(writer, None)
            writer.close()

    def _sender(self, writer: asyncio.StreamWriter, peer: tuple[Any, ...], query: bytes, plugin: str | None) -> Send:
        """plugin: as in metrics.Tally; None: an upstream answers."""
        began = time.monotonic()

        def send(answer: bytes) -> None:
            by = forwarded_by(answer) if plugin is None else plugin
            self.observer.answered(path_of(peer), peer, query, answer, began, by)
            if not writer.is_closing():
                writer.write(len(answer).to_bytes(2) + answer)

        return send


def path_of(peer: tuple[Any, ...]) -> str:
    return "tcp6" if ":" in str(peer[0]) else "tcp"


def listens(sock: socket.socket) -> bool:
    """Whether the kernel still accepts connections on the socket."""
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


async def _closed(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        await writer.wait_closed()
