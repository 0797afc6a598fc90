"""A lean client of an HTTP/1.1 API over TLS: prepared bytes out, as little Python as possible for what comes back.

A benchmark's client shares the machine with the server. So requests are rendered before the clock starts, an answer
is read to its end without parsing its body, and one thread serves all connections with epoll.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator


def context(ca: str, certificate: str) -> ssl.SSLContext:
    """ca, certificate: paths of PEM files; the certificate's file has its key."""
    made = ssl.create_default_context(cafile=ca)
    made.check_hostname = False
    made.load_cert_chain(certificate)
    return made


def request(method: str, path: str, body: bytes = b"", kind: str = "application/json") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
    if body:
        head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


class BadAnswer(Exception):
    """The server refused a request of the benchmark. The text is its answer."""


class Link:
    """One connection."""

    def __init__(self, address: tuple[str, int], tls: ssl.SSLContext) -> None:
        raw = socket.create_connection(address, timeout=60)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = tls.wrap_socket(raw, server_hostname="localhost")
        self.buffer = bytearray()

    def ask(self, sent: bytes) -> bytes:
        """Send a request and return the body of its answer."""
        self.sock.sendall(sent)
        while (body := self.take()) is None:
            more = self.sock.recv(1 << 20)
            if not more:
                raise BadAnswer("the connection was closed")
            self.buffer += more
        return body

    def take(self) -> bytes | None:
        """Return the body of an answer that has come whole, and forget it. Raises BadAnswer for one that refuses."""
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = bytes(self.buffer[:end])
        if b"\r\nTransfer-Encoding: chunked" in head:
            return self._chunks(end + 4, head)
        at = head.lower().find(b"content-length:")
        size = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self.buffer) < end + 4 + size:
            return None
        body = bytes(self.buffer[end + 4 : end + 4 + size])
        del self.buffer[: end + 4 + size]
        self._check(head, body)
        return body

    def _chunks(self, at: int, head: bytes) -> bytes | None:
        parts = []
        while (line := self.buffer.find(b"\r\n", at)) >= 0:
            size = int(self.buffer[at:line], 16)
            if len(self.buffer) < line + 4 + size:
                return None
            parts.append(bytes(self.buffer[line + 2 : line + 2 + size]))
            at = line + 4 + size
            if not size:
                del self.buffer[:at]
                body = b"".join(parts)
                self._check(head, body)
                return body
        return None

    @staticmethod
    def _check(head: bytes, body: bytes) -> None:
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")):
            raise BadAnswer(f"{head.splitlines()[0].decode()}: {body[:300].decode(errors='replace')}")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.close()


def many(links: list[Link], requests: Iterable[bytes]) -> int:
    """Send all requests, each connection one at a time. Returns how many were answered."""
    waiting = deque(requests)
    poll, open_links, done = select.epoll(), dict[int, Link](), 0
    for link in links:
        link.sock.setblocking(False)
        poll.register(link.sock.fileno(), select.EPOLLIN)
        if waiting:
            open_links[link.sock.fileno()] = link
            _send(link, waiting.popleft())
    while open_links:
        for number, _ in poll.poll():
            link = open_links.get(number)
            if link is None:
                continue
            _receive(link)
            if link.take() is None:
                continue
            done += 1
            if waiting:
                _send(link, waiting.popleft())
            else:
                del open_links[number]
    poll.close()
    for link in links:
        link.sock.setblocking(True)
    return done


def _send(link: Link, raw: bytes) -> None:
    """Send a small request on a connection that does not block."""
    while raw:
        try:
            raw = raw[link.sock.send(raw) :]
        except ssl.SSLWantWriteError:
            select.select([], [link.sock], [])


def _receive(link: Link) -> None:
    with contextlib.suppress(ssl.SSLWantReadError):
        while True:
            more = link.sock.recv(1 << 18)
            if not more:
                raise BadAnswer("the connection was closed")
            link.buffer += more


class Watchers:
    """Watches that count the events they get. One thread serves them all. mark: the text before the sender's clock in
    each event (time.monotonic_ns as 20 digits).
    """

    def __init__(self, address: tuple[str, int], tls: ssl.SSLContext, path: str, count: int, mark: bytes) -> None:
        self.links, self.mark = list[Link](), mark
        self.delays = list[float]()  # seconds
        self.events = 0
        sent = request("GET", path)
        for _ in range(count):  # a server bounds the connections that have not asked anything yet
            link = Link(address, tls)
            self.links.append(link)
            link.sock.sendall(sent)
            while b"\r\n\r\n" not in link.buffer:
                link.buffer += link.sock.recv(4096)
            link.buffer.clear()

    def follow(self, until: Callable[[], bool]) -> None:
        """Read until a function says so, which is asked about every 50 ms."""
        poll = select.epoll()
        found = {link.sock.fileno(): link.sock for link in self.links}
        for number, sock in found.items():
            sock.setblocking(False)
            poll.register(number, select.EPOLLIN)
        while not until():
            for number, _ in poll.poll(0.05):
                with contextlib.suppress(ssl.SSLWantReadError):
                    while raw := found[number].recv(1 << 16):
                        self._count(raw)
        poll.close()

    def _count(self, raw: bytes) -> None:
        now = time.monotonic_ns()
        for number, at in enumerate(self._marks(raw)):
            self.events += 1
            if number == 0:
                self.delays.append((now - int(raw[at : at + 20])) / 1e9)

    def _marks(self, raw: bytes) -> Iterator[int]:
        at = raw.find(self.mark)
        while at >= 0:
            yield at + len(self.mark)
            at = raw.find(self.mark, at + 1)

    def close(self) -> None:
        for link in self.links:
            link.close()
