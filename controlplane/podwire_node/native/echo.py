#!/usr/bin/env python3
"""podwire-echo in Python, for hosts without a compiled echo.c: the same arguments, answers and exit codes.

This file uses only the standard library. A pod has it as a read-only file and runs it with the machine's python3.
"""

from __future__ import annotations

import contextlib
import errno
import json
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

KINDS = {"--http": socket.SOCK_STREAM, "--tcp": socket.SOCK_STREAM, "--udp": socket.SOCK_DGRAM}
REQUEST = 4095  # the maximum number of bytes of an HTTP request
DATAGRAM = 1024
Ready = Callable[[socket.socket], None]


def describe(sock: socket.socket, peer: tuple[Any, ...] | None = None) -> bytes:
    """Return one JSON line: the server's host name, the client's address, and the port."""
    if peer is None:
        try:
            peer = sock.getpeername()
        except OSError:
            peer = ("::", 0)
    found = {
        "host": socket.gethostname(),
        "peer": peer[0].removeprefix("::ffff:") if "." in peer[0] else peer[0],
        "port": peer[1],
        "local_port": sock.getsockname()[1],
    }
    return json.dumps(found, separators=(",", ":")).encode() + b"\n"


def listen(kind: int, port: int) -> socket.socket:
    """Return a dual-stack socket, or an IPv4 socket on a host with ipv6.disable=1. Raises OSError."""
    try:
        sock = socket.socket(socket.AF_INET6, kind)
    except OSError:
        sock = socket.socket(socket.AF_INET, kind)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("", port))
    if kind == socket.SOCK_STREAM:
        sock.listen(1024)
    return sock


class Server:
    """One thread and one selector. Each socket is registered with the function to call when it is readable."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.requests: dict[socket.socket, bytes] = {}

    def watch(self, sock: socket.socket, ready: Ready) -> None:
        self.selector.register(sock, selectors.EVENT_READ, ready)

    def drop(self, sock: socket.socket) -> None:
        self.selector.unregister(sock)
        self.requests.pop(sock, None)
        sock.close()

    def serve(self, option: str, port: int) -> None:
        """Listen on a port. option: --http, --tcp or --udp. Raises OSError."""
        ready: dict[str, Ready] = {
            "--http": partial(self.accept, self.http),
            "--tcp": partial(self.accept, self.tcp),
            "--udp": self.udp,
        }
        self.watch(listen(KINDS[option], port), ready[option])

    def accept(self, ready: Ready, listener: socket.socket) -> None:
        try:
            while True:
                sock, _ = listener.accept()
                sock.setblocking(False)
                self.watch(sock, ready)
                if ready == self.tcp:
                    self.send(sock, describe(sock))
        except OSError as err:
            if err.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(0.01)  # the selector reports the listener at once again

    def send(self, sock: socket.socket, data: bytes) -> None:
        """Send data. Close the connection if the peer does not accept all of the data at once."""
        try:
            if sock.send(data) == len(data):
                return
        except OSError:
            pass
        self.drop(sock)

    def http(self, sock: socket.socket) -> None:
        have = self.requests.get(sock, b"")
        try:
            data = sock.recv(REQUEST - len(have))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        have += data
        self.requests[sock] = have
        if data and b"\r\n\r\n" not in have and len(have) < REQUEST:
            return
        if data:
            body = describe(sock)
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            with contextlib.suppress(OSError):
                sock.send(head.encode() + b"Connection: close\r\n\r\n" + body)
                sock.shutdown(socket.SHUT_WR)
        self.drop(sock)

    def tcp(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.send(sock, data)
        else:
            self.drop(sock)

    def udp(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, peer = sock.recvfrom(DATAGRAM)
                sock.sendto(describe(sock, peer) + data, peer)

    def run(self) -> NoReturn:
        while True:
            for key, _ in self.selector.select():
                key.data(key.fileobj)


def wrong(words: str) -> NoReturn:
    print(f"podwire-echo: {words}: expected --http, --tcp or --udp and a port", file=sys.stderr)
    raise SystemExit(2)


def wanted(words: list[str]) -> list[tuple[str, int]]:
    """Return the (option, port) pairs of the command line. Exits with status 2 for an invalid command line."""
    found = []
    for option, port in zip(words[::2], words[1::2], strict=False):
        if option not in KINDS or not port.isdecimal() or not 0 < int(port) < 65536:
            wrong(f"{option} {port}")
        found.append((option, int(port)))
    if words and not found:
        wrong(words[0])
    return found or [("--http", 8080)]


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    server = Server()
    for option, port in wanted(sys.argv[1:]):
        try:
            server.serve(option, port)
        except OSError as err:
            print(f"podwire-echo: port {port}: {err.strerror}", file=sys.stderr)
            raise SystemExit(1) from None
    server.run()


if __name__ == "__main__":
    main()
