"""Carries bytes between a port of the machine and sockets that another network namespace has.

A relay knows nothing of Services: `dial` makes a connected socket, or raises OSError. TCP keeps half-closed connections
and passes on resets; UDP keeps a socket for each client until it was idle for a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from .publications import LOOPBACK, Place

Dial = Callable[[], Awaitable[socket.socket]]
BUFFER = 262144  # bytes; 64 KiB carried a third less
IDLE_SECONDS = 60.0  # of a UDP client; conntrack forgets an unanswered flow after 30 s, an answered one after 120 s
UDP_CLIENTS = 1024
BACKLOG = 128
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with 0 s: close() sends a reset
_NO_SUCH_FAMILY = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class Relay(Protocol):
    """connections: how many clients are connected now."""

    place: Place

    @property
    def connections(self) -> int: ...
    def close(self) -> None: ...


def _bound(address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind | socket.SOCK_CLOEXEC)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _all_bound(place: Place) -> tuple[list[socket.socket], int]:
    kind = socket.SOCK_STREAM if place.protocol == "TCP" else socket.SOCK_DGRAM
    made: list[socket.socket] = []
    port = place.port
    try:
        for address in place.addresses:
            try:
                made.append(_bound(address, port, kind))
            except OSError as err:
                if address == LOOPBACK[1] and made and err.errno in _NO_SUCH_FAMILY:
                    continue  # this machine has no IPv6
                raise
            port = made[-1].getsockname()[1]
    except OSError:
        for sock in made:
            sock.close()
        raise
    return made, port


def bind(place: Place) -> tuple[list[socket.socket], Place]:
    """Listen at every address of the place. Returns the sockets, and the place with its port. Raises OSError."""
    for attempt in range(10):
        try:
            made, port = _all_bound(place)
        except OSError as err:
            if place.port or err.errno != errno.EADDRINUSE or attempt == 9:
                raise
            continue  # a free port of 127.0.0.1 is taken on ::1
        return made, Place(place.address, port, place.protocol)
    raise AssertionError("the last attempt returns or raises")


class TcpRelay:
    def __init__(self, sockets: list[socket.socket], place: Place, dial: Dial) -> None:
        self.place, self._dial, self._sockets = place, dial, sockets
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = [asyncio.ensure_future(self._accept(sock)) for sock in sockets]

    @property
    def connections(self) -> int:
        return len(self._tasks)

    def close(self) -> None:
        """Close the port and all its connections."""
        for task in (*self._accepting, *self._tasks):
            task.cancel()
        for sock in self._sockets:
            sock.close()

    async def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(sock)
            except OSError:  # no more file descriptors, or the client is gone already
                await asyncio.sleep(0.1)
                continue
            task = asyncio.ensure_future(self._serve(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: socket.socket) -> None:
        with client:
            client.setblocking(False)
            try:
                inner = await self._dial()
            except OSError:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)  # as near to "refused" as it gets now
                return
            with inner:
                for sock in (client, inner):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                ways = [asyncio.ensure_future(_pump(client, inner)), asyncio.ensure_future(_pump(inner, client))]
                try:
                    await asyncio.gather(*ways)
                except OSError:
                    for sock in (client, inner):
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)


async def _pump(source: socket.socket, sink: socket.socket) -> None:
    loop, view = asyncio.get_running_loop(), memoryview(bytearray(BUFFER))
    while count := await loop.sock_recv_into(source, view):
        await loop.sock_sendall(sink, view[:count])
    with contextlib.suppress(OSError):  # the other end may have closed both halves
        sink.shutdown(socket.SHUT_WR)


class _Client:
    """A UDP client and its socket in the cluster."""

    __slots__ = ("address", "inner", "opening", "seen", "server", "waiting")

    def __init__(self, server: socket.socket, address: object) -> None:
        self.server, self.address = server, address
        self.inner: socket.socket | None = None
        self.waiting: list[bytes] = []
        self.seen = time.monotonic()
        self.opening: asyncio.Task[None] | None = None


class UdpRelay:
    def __init__(self, sockets: list[socket.socket], place: Place, dial: Dial) -> None:
        self.place, self._dial, self._sockets = place, dial, sockets
        self._clients: dict[tuple[int, object], _Client] = {}
        self._loop = asyncio.get_running_loop()
        for sock in sockets:
            self._loop.add_reader(sock, self._from_client, sock)
        self._cleaning = asyncio.ensure_future(self._clean())

    @property
    def connections(self) -> int:
        return len(self._clients)

    def close(self) -> None:
        self._cleaning.cancel()
        for key in list(self._clients):
            self._forget(key)
        for sock in self._sockets:
            self._loop.remove_reader(sock)
            sock.close()

    def _forget(self, key: tuple[int, object]) -> None:
        client = self._clients.pop(key, None)
        if client is None:
            return
        if client.opening is not None:
            client.opening.cancel()
        if client.inner is not None:
            self._loop.remove_reader(client.inner)
            client.inner.close()

    async def _clean(self) -> None:
        while True:
            await asyncio.sleep(IDLE_SECONDS / 4)
            old = time.monotonic() - IDLE_SECONDS
            for key in [key for key, client in self._clients.items() if client.seen < old]:
                self._forget(key)

    def _from_client(self, server: socket.socket) -> None:
        for _ in range(64):  # then other events have their turn
            try:
                data, address = server.recvfrom(65535)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error about an answer to a client that is gone
                continue
            key = (server.fileno(), address)
            client = self._clients.get(key)
            if client is None:
                if len(self._clients) >= UDP_CLIENTS:
                    self._forget(min(self._clients, key=lambda k: self._clients[k].seen))
                client = self._clients[key] = _Client(server, address)
                client.opening = asyncio.ensure_future(self._open(key, client))
            client.seen = time.monotonic()
            if client.inner is None:
                if len(client.waiting) < 64:
                    client.waiting.append(data)
            else:
                self._send(key, client.inner, data)

    async def _open(self, key: tuple[int, object], client: _Client) -> None:
        try:
            inner = await self._dial()
        except OSError:
            client.opening = None
            self._forget(key)
            return
        client.inner, client.opening = inner, None
        self._loop.add_reader(inner, self._from_cluster, key, client, inner)
        for data in client.waiting:
            self._send(key, inner, data)
        client.waiting = []

    def _send(self, key: tuple[int, object], inner: socket.socket, data: bytes) -> None:
        try:
            inner.send(data)
        except BlockingIOError:
            return  # UDP may lose
        except OSError:  # refused: the next datagram asks anew where the Service is
            self._forget(key)

    def _from_cluster(self, key: tuple[int, object], client: _Client, inner: socket.socket) -> None:
        for _ in range(64):
            try:
                data = inner.recv(65535)
            except BlockingIOError:
                return
            except OSError:
                self._forget(key)
                return
            client.seen = time.monotonic()
            with contextlib.suppress(OSError):
                client.server.sendto(data, client.address)  # type: ignore[call-overload]  # as recvfrom gave it


def serve(sockets: list[socket.socket], place: Place, dial: Dial) -> Relay:
    """Start to carry. Call it in an event loop."""
    return TcpRelay(sockets, place, dial) if place.protocol == "TCP" else UdpRelay(sockets, place, dial)
