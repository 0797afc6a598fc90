"""Serves a role's HTTP pages (/metrics, /healthz, /ready and others), on any number of addresses.

The server needs no web framework, because it supports only GET and HEAD, with one request per connection. It does not
use asyncio's transports: when an asyncio server closes, it loses connections that it has accepted but that have no
transport yet. Here each accepted connection has a task at once, and the kernel resets the connections that were not
accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import socket
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from . import logs
from .accept import Acceptor, peer_of
from .peers import Waiting

log = logs.get("web")
SECONDS, LARGEST = 5.0, 8192  # the time limit of a request; the greatest number of bytes of its head
LEAVING = 1.0  # seconds that a closing site waits for answers in progress
PER_PEER, MOST = 64, 256  # connections whose request has not arrived
PLAIN, JSON = "text/plain; charset=utf-8", "application/json; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: str
    content_type: str = PLAIN
    headers: Mapping[str, str] = field(default_factory=dict)


Page = Callable[[], "Answer | Awaitable[Answer]"]


async def serve(address: str, pages: Mapping[str, Page], *, shared: bool = False) -> Site:
    """Listen on "host:port" ("[::1]:8080"; ":8080" for all addresses of both families). Raises OSError, for example if
    the port is in use or the address is not an address of this machine.

    pages: path -> page; the page "" serves every other path. shared: other sockets with this flag may use the same
    port, so that a new process can start before the old process ends.
    """
    host, _, port = address.rpartition(":")
    sockets: list[socket.socket] = []
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, where in found:
            with contextlib.suppress(_NoSuchFamily):
                sockets.append(_open(family))
                _bind(sockets[-1], where, shared)
    except OSError as err:
        for sock in sockets:
            sock.close()
        raise OSError(err.errno, f"cannot listen on {address}: {err.strerror or err}") from err
    return Site(sockets, pages)


async def serve_beside(address: str, pages: Mapping[str, Page], stack: contextlib.AsyncExitStack) -> None:
    """Serves pages until the stack is left. The role's work goes on where the address cannot be listened on, and its
    log tells. address "": no pages.
    """
    if not address:
        return
    try:
        stack.push_async_callback((await serve(address, pages, shared=True)).cleanup)
    except OSError as err:
        log.error("pages are not served", pages=" ".join(pages), error=str(err))


class _NoSuchFamily(Exception):
    """The kernel does not support IPv6, or IPv4."""


def _open(family: int) -> socket.socket:
    try:
        return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as err:
        if err.errno != errno.EAFNOSUPPORT:
            raise
        raise _NoSuchFamily from err


def _bind(sock: socket.socket, where: tuple[object, ...], shared: bool) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
    sock.bind(where)
    sock.listen(128)


class Site:
    """The open sockets and the connections of one address."""

    def __init__(self, sockets: list[socket.socket], pages: Mapping[str, Page]) -> None:
        self.addresses = [sock.getsockname() for sock in sockets]
        self._pages = pages
        self._loop = asyncio.get_running_loop()
        self._talks: set[asyncio.Task[None]] = set()
        self._answering: set[asyncio.Task[None]] = set()  # connections whose request has arrived
        self._waiting: Waiting[asyncio.Task[None]] = Waiting(PER_PEER, MOST)
        self._acceptors = [Acceptor(sock, self._taken) for sock in sockets]

    def close(self) -> None:
        """Stop accepting requests. Requests in progress are still answered."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors = []

    async def cleanup(self) -> None:
        """Close the site, and wait up to a second for answers in progress. Connections without a request are closed at
        once.
        """
        self.close()
        await asyncio.sleep(0)  # let a connection that was just accepted read its request
        for talk in self._talks - self._answering:
            talk.cancel()
        if self._talks:
            _, late = await asyncio.wait(self._talks, timeout=LEAVING)
            for talk in late:
                talk.cancel()

    def _taken(self, connection: socket.socket, address: Any) -> None:
        talk = self._loop.create_task(self._talk(connection))
        self._talks.add(talk)
        talk.add_done_callback(self._ended)
        if (late := self._waiting.add(peer_of(address), talk)) is not None:
            late.cancel()

    def _ended(self, talk: asyncio.Task[None]) -> None:
        self._talks.discard(talk)
        self._answering.discard(talk)
        self._waiting.remove(talk)

    async def _talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(SECONDS):
                head = b""
                while b"\r\n\r\n" not in head:
                    piece = await self._loop.sock_recv(connection, LARGEST)
                    head += piece
                    if not piece or len(head) > LARGEST:
                        return
                task = asyncio.current_task()
                assert task is not None
                self._answering.add(task)
                self._waiting.remove(task)
                await self._loop.sock_sendall(connection, await self._response(head))

    async def _response(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split()
        method, target = (words[0], words[1]) if len(words) == 3 else ("", "")
        answer = await self._answer(method, target.partition("?")[0])
        body = answer.body.encode()
        fields = {
            "Content-Type": answer.content_type,
            "Content-Length": str(len(body)),
            "Connection": "close",
            **answer.headers,
        }
        lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}", *map(": ".join, fields.items())]
        return "\r\n".join([*lines, "", ""]).encode() + (b"" if method == "HEAD" else body)

    async def _answer(self, method: str, path: str) -> Answer:
        if method not in ("GET", "HEAD"):
            return Answer(405, "only GET and HEAD\n", headers={"Allow": "GET, HEAD"})
        page = self._pages.get(path) or self._pages.get("")
        if page is None:
            return Answer(404, f"there are {', '.join(self._pages)}\n")
        try:
            answer = page()
            return await answer if inspect.isawaitable(answer) else answer
        except Exception as err:  # a bug of podwire: the client gets an error, and the log has the traceback
            log.error("a page failed", path=path, error=repr(err), trace=traceback.format_exc(limit=-3))
            return Answer(500, "this page failed; see the log\n")


async def took(address: str, path: str) -> float | None:
    """Request one of podwire's own pages. Returns the seconds until the answer; None if the answer's
    status is not 200.
    """
    host, _, port = address.rpartition(":")
    begin = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(SECONDS):
            reader, writer = await asyncio.open_connection(host.strip("[]") or "127.0.0.1", int(port))
            writer.write(f"GET {path} HTTP/1.1\r\nHost: podwire\r\n\r\n".encode())
            answer = await reader.readline()
            writer.close()
    except (OSError, TimeoutError):
        return None
    return asyncio.get_running_loop().time() - begin if b" 200 " in answer else None
