"""The API server's TLS sockets: the handshakes and the connections without a known user are bounded, per peer.

Everybody who reaches the port can open connections. Such a connection costs a file descriptor until its handshake is
done and its first request is authenticated. So these connections have a limit of time, a limit for each peer, and a
limit for all peers (`peers.Waiting`). A connection whose user is known has none of these limits: it may watch for
hours.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

from podwire_base.role.accept import Acceptor, peer_of
from podwire_base.role.peers import Waiting

PER_PEER, MOST = 64, 1024
HANDSHAKE_SECONDS = 10.0
FIRST_SECONDS = 32.0  # from the handshake to the first authenticated request, as kube-apiserver's ReadHeaderTimeout
KEEPALIVE_SECONDS = 120.0  # an idle connection; client-go closes its idle connections after 90 s
Pending = asyncio.Task[None] | asyncio.Transport


class Guard:
    """The connections of all sockets of one server that wait for a handshake or for a user. `settled(transport)` tells
    that the user of a connection is known.
    """

    def __init__(self) -> None:
        self.waiting: Waiting[Pending] = Waiting(PER_PEER, MOST)
        self._loop = asyncio.get_running_loop()

    def add(self, peer: str, one: Pending) -> None:
        if self.waiting.of(peer) >= self.waiting.per_peer or len(self.waiting) >= self.waiting.most:
            for old in self.waiting.all():
                if isinstance(old, asyncio.Transport) and old.is_closing():
                    self.waiting.remove(old)  # this connection has ended without a request
        if (late := self.waiting.add(peer, one)) is not None:
            _end(late)
        if isinstance(one, asyncio.Transport):
            self._loop.call_later(FIRST_SECONDS, self._late, one)

    def settled(self, transport: asyncio.BaseTransport | None) -> None:
        if isinstance(transport, asyncio.Transport):
            self.waiting.remove(transport)

    def _late(self, one: Pending) -> None:
        if self.waiting.remove(one):
            _end(one)


def _end(one: Pending) -> None:
    if isinstance(one, asyncio.Transport):
        if not one.is_closing():  # before Python 3.11.4, a TLS transport that is closed cannot be aborted
            one.abort()
    else:
        one.cancel()


class Listening:
    """One listening socket. `factory` makes the protocol of a connection (aiohttp's `runner.server`)."""

    def __init__(
        self, factory: Callable[[], asyncio.Protocol], listener: socket.socket, tls: ssl.SSLContext, guard: Guard
    ) -> None:
        self._factory, self._tls, self._guard = factory, tls, guard
        self._tasks: set[asyncio.Task[None]] = set()
        self._acceptor = Acceptor(listener, self._taken)

    def close(self) -> None:
        self._acceptor.close()
        for task in self._tasks:
            task.cancel()

    def _taken(self, connection: socket.socket, address: Any) -> None:
        peer = peer_of(address)
        task = asyncio.get_running_loop().create_task(self._shake(connection, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._guard.add(peer, task)

    async def _shake(self, connection: socket.socket, peer: str) -> None:
        task = asyncio.current_task()
        try:
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                self._factory, connection, ssl=self._tls, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except OSError:
            connection.close()  # no TLS, no more patience, or the peer left: nothing to tell, the peer is unknown
            return
        finally:
            assert task is not None
            self._guard.waiting.remove(task)
        self._guard.add(peer, transport)
