"""Sends one query to one upstream and receives the answer: over a UDP socket, or over a shared TCP or TLS connection.

forward.py decides what to send and which answer to accept; upstream.py decides which upstream to use and when.
Everything runs in one event loop.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from podwire_base.numerals import decimal

from . import forward
from .cache import Upstreamed
from .wire import SERVFAIL, Malformed

LARGEST = 4096
CONNECT_SECONDS = 4.0
OnReply = Callable[["Upstreamed | OSError | None"], None]  # None: the answer is truncated; repeat the query over TCP


def socket_address(host: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """Returns the socket address of an IP address. Raises OSError.

    `connect` and `bind` lose a scope that stands in the address, as in "fe80::1%eth0" or "fe80::1%2".
    """
    address, _, link = host.partition("%")
    if not link:
        return host, port
    index = decimal(link, 2**31 - 1)
    return address, port, 0, socket.if_nametoindex(link) if index is None else index


class UdpExchange:
    """One query on a connected UDP socket: the port is random, and the kernel accepts only datagrams of the peer."""

    __slots__ = ("fd", "ident", "loop", "on_reply", "question", "sock")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        host: str,
        port: int,
        question: bytes,
        ident: int,
        message: bytes,
        on_reply: OnReply,
    ) -> None:
        self.loop, self.question, self.ident, self.on_reply = loop, question, ident, on_reply
        self.sock: socket.socket | None = socket.socket(
            socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        )
        try:
            self.sock.connect(socket_address(host, port))
            self.sock.send(message)
            self.fd = self.sock.fileno()  # asyncio would need two more system calls for the socket itself
            loop.add_reader(self.fd, self._readable)
        except OSError as err:
            self.sock.close()
            self.sock = None
            loop.call_soon(on_reply, err)

    def _readable(self) -> None:
        if self.sock is None:
            return
        try:
            data = self.sock.recv(LARGEST)
            answer = forward.read_answer(self.question, self.ident, data)
        except (BlockingIOError, InterruptedError, Malformed):
            return  # not an answer to our question: the right one may still arrive
        except OSError as err:
            self.close()
            self.on_reply(err)
            return
        self.close()
        self.on_reply(answer)

    def close(self) -> None:
        """Receive nothing more."""
        if self.sock is not None:
            self.loop.remove_reader(self.fd)
            self.sock.close()
            self.sock = None


class UpstreamExchange:
    """Sends many queries over UDP with exchange.c: one call sends many queries, one call receives many answers.

    A socket has one query at a time. After an answer, the socket serves a few more queries, for at most a second. The
    queries of one iteration of the event loop leave together.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, module: Any) -> None:
        self.loop, self._lib, self._ffi = loop, module.lib, module.ffi
        made = self._lib.exchange_new()
        if made == self._ffi.NULL:
            raise OSError("no memory or descriptor for queries to upstreams")
        self._exchange = self._ffi.gc(made, self._lib.exchange_free)
        self._size = self._exchange.packet_size
        self._packets = self._ffi.buffer(self._exchange.packets, self._lib.BATCH * self._size)
        self._fds = self._ffi.new("int32_t[]", self._lib.BATCH)
        self._open: dict[int, Sent] = {}
        self.opened: Counter[tuple[bytes, int]] = Counter()  # (packed address, port) -> sockets
        self.reused: Counter[tuple[bytes, int]] = Counter()  # the same -> queries over a socket that was open
        self._queue: list[Sent] = []
        loop.add_reader(self._exchange.epoll, self._receive)

    def ask(self, address: bytes, port: int, question: bytes, ident: int, message: bytes, on_reply: OnReply) -> Sent:
        """Sends one query. address: packed."""
        sent = Sent(self, address, port, question, ident, message, on_reply)
        if not self._queue:
            self.loop.call_soon(self._flush)
        self._queue.append(sent)
        return sent

    def _flush(self) -> None:
        queue, self._queue = [sent for sent in self._queue if not sent.closed], []
        for at in range(0, len(queue), self._lib.BATCH):
            some = queue[at : at + self._lib.BATCH]
            self._lib.exchange_send(
                self._exchange,
                len(some),
                b"".join([sent.address for sent in some]),
                [len(sent.address) for sent in some],
                [sent.port for sent in some],
                b"".join([sent.message for sent in some]),
                [len(sent.message) for sent in some],
                self._fds,
            )
            fds, fresh = self._ffi.unpack(self._fds, len(some)), self._exchange.fresh
            for index, (sent, fd) in enumerate(zip(some, fds, strict=True)):
                sent.fd = fd
                if fd >= 0:
                    (self.opened if fresh[index] else self.reused)[sent.address, sent.port] += 1
                    self._open[fd] = sent
                else:
                    self.loop.call_soon(sent.fail, -fd)

    def _receive(self) -> None:
        exchange, size = self._exchange, self._size
        count = self._lib.exchange_receive(exchange)
        if not count:
            return
        fds, lengths = self._ffi.unpack(exchange.fds, count), self._ffi.unpack(exchange.lengths, count)
        on_reply: list[tuple[OnReply, Upstreamed | OSError | None]] = []
        done, failed = [], []
        for index in range(count):
            fd, length = fds[index], lengths[index]
            sent = self._open[fd]
            if length < 0:
                on_reply.append((sent.on_reply, OSError(-length, os.strerror(-length))))
                failed.append(fd)
            else:
                try:
                    at = index * size
                    on_reply.append(
                        (sent.on_reply, forward.read_answer(sent.question, sent.ident, self._packets[at : at + length]))
                    )
                except Malformed:
                    continue  # not an answer to our question: the right one may still arrive
                done.append(fd)
            del self._open[fd]
        self._lib.exchange_reuse(exchange, done, len(done))
        self._lib.exchange_close(failed, len(failed))
        for hear, result in on_reply:
            hear(result)

    def forget(self, sent: Sent) -> None:
        if self._open.get(sent.fd) is sent:
            del self._open[sent.fd]
            self._lib.exchange_close([sent.fd], 1)

    def close(self) -> None:
        self.loop.remove_reader(self._exchange.epoll)
        self._lib.exchange_close(list(self._open), len(self._open))
        self._lib.exchange_close_idle(self._exchange)
        self._open.clear()
        self._queue.clear()


class Sent:
    """A query of an UpstreamExchange. fd: the file descriptor of the socket; -1 before sending."""

    __slots__ = ("address", "closed", "exchange", "fd", "ident", "message", "on_reply", "port", "question")

    def __init__(
        self,
        exchange: UpstreamExchange,
        address: bytes,
        port: int,
        question: bytes,
        ident: int,
        message: bytes,
        on_reply: OnReply,
    ) -> None:
        self.exchange, self.address, self.port, self.question, self.ident = exchange, address, port, question, ident
        self.message, self.on_reply, self.fd, self.closed = message, on_reply, -1, False

    def fail(self, error: int) -> None:
        if not self.closed:
            self.on_reply(OSError(error, os.strerror(error)))

    def close(self) -> None:
        """Cancels the query. Call `close` at most once, and only before an answer arrives."""
        self.closed = True
        self.exchange.forget(self)


@dataclass(slots=True, eq=False)
class StreamQuery:
    """A query on a stream. again: the stream may send the query once more, on a new connection."""

    stream: Stream
    question: bytes
    ident: int
    message: bytes
    on_reply: OnReply
    again: bool

    def close(self) -> None:
        """Receive nothing more."""
        self.stream.forget(self)


@dataclass(slots=True, eq=False)
class Stream:
    """The TCP or TLS connection to one upstream. Many queries can be pending; answers arrive in any order.

    Sources: RFC 7766, RFC 7858. The connection closes `expire` seconds after the last answer. If a reused connection
    ends, the stream sends each pending query again, once.
    """

    address: str
    host: str
    port: int
    context: ssl.SSLContext | None
    servername: str
    expire: float
    opened: int = 0
    sent: int = 0
    _waiting: dict[int, StreamQuery] = field(default_factory=dict)
    _link: _Link | None = None
    _connecting: asyncio.Task[None] | None = None
    _idle: asyncio.TimerHandle | None = None

    def ask(
        self, question: bytes, *, dnssec_ok: bool, checking_disabled: bool, on_reply: OnReply, edns: bool = True
    ) -> StreamQuery:
        """Sends a query when the stream is connected. The stream calls `on_reply` once."""
        ident = secrets.randbits(16)
        while ident in self._waiting:
            ident = secrets.randbits(16)
        message = forward.build_ask(
            question, ident, dnssec_ok=dnssec_ok, checking_disabled=checking_disabled, edns=edns
        )
        asked = StreamQuery(self, question, ident, len(message).to_bytes(2) + message, on_reply, self._link is not None)
        self._waiting[ident] = asked
        self.sent += 1
        self._stop_idle()
        if self._link is not None:
            self._link.send(asked.message)
        else:
            self._connect()
        return asked

    def forget(self, asked: StreamQuery) -> None:
        if self._waiting.get(asked.ident) is asked:
            del self._waiting[asked.ident]
            self._rest()

    def close(self) -> None:
        for asked in list(self._waiting.values()):
            self._settle(asked, OSError("the settings changed"))
        self._stop_idle()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._link is not None:
            self._link.transport.close()

    # The connection

    def _connect(self) -> None:
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._open())

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        name = self.servername or self.host.partition("%")[0]  # certificates have addresses without a scope
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await loop.create_connection(
                    lambda: _Link(self),
                    self.host,
                    self.port,
                    ssl=self.context,
                    server_hostname=name if self.context else None,
                )
        except TimeoutError:
            self._fail(OSError("no connection in time"))
        except OSError as err:  # includes ssl.SSLError: the certificate does not match the upstream
            self._fail(err)
        finally:
            self._connecting = None
        if self._waiting and self._link is None:
            self._connect()

    def _fail(self, err: OSError) -> None:
        for asked in list(self._waiting.values()):
            self._settle(asked, err)

    def connected(self, link: _Link) -> None:
        self.opened += 1
        self._link = link
        for asked in self._waiting.values():
            link.send(asked.message)

    def ended(self, link: _Link, err: Exception | None) -> None:
        if self._link is link:
            self._link = None
        self._stop_idle()
        for asked in list(self._waiting.values()):
            if asked.again:
                asked.again = False
            else:
                self._settle(asked, OSError(f"the upstream closed the connection: {err or 'without an answer'}"))
        if self._waiting:
            self._connect()

    def received(self, data: bytes) -> None:
        asked = self._waiting.get(int.from_bytes(data[:2]))
        if asked is None:
            return  # the answer to a query whose caller no longer waits
        try:
            self._settle(
                asked, forward.read_answer(asked.question, asked.ident, data) or Upstreamed(SERVFAIL, b"\0" * 6)
            )
        except Malformed as err:
            self._settle(asked, OSError(f"the upstream's answer is unreadable: {err}"))
        self._rest()

    def _settle(self, asked: StreamQuery, result: Upstreamed | OSError) -> None:
        if self._waiting.pop(asked.ident, None) is not None:
            asked.on_reply(result)

    def _rest(self) -> None:
        if not self._waiting and self._link is not None and self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(self.expire, self._link.transport.close)

    def _stop_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None


class _Link(asyncio.Protocol):
    """Splits the stream into messages."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.buffer = stream, bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.stream.connected(self)

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while len(self.buffer) >= 2 and len(self.buffer) >= (end := 2 + int.from_bytes(self.buffer[:2])):
            message = bytes(self.buffer[2:end])
            del self.buffer[:end]
            self.stream.received(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self.stream.ended(self, exc)
