"""Open flows between the pods of a PolicyWorld, seen from both ends."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from podwire_policy.testing import table

from .policyworld import PolicyWorld


@dataclass
class Open:
    """An open flow, seen from both ends."""

    client: socket.socket
    server: socket.socket
    peer: Any = None

    def close(self) -> None:
        self.client.close()
        self.server.close()

    def says(self, who: str, seconds: float = 10) -> bool:
        """Whether a word arrives at the other end. seconds: until it counts as lost."""
        sender, reader = (self.client, self.server) if who == "client" else (self.server, self.client)
        try:
            if who == "server" and self.peer is not None:
                sender.sendto(b"word", self.peer)
            else:
                sender.send(b"word")
            reader.settimeout(seconds)
            return reader.recv(16) == b"word"
        except (TimeoutError, OSError):
            return False

    @staticmethod
    def reset(end: socket.socket) -> bool:
        """Whether this end was reset."""
        try:
            return end.recv(16, socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:  # ECONNRESET, or EPIPE afterwards
            return True


def dial(world: PolicyWorld, src: str, dst: str, kind: str, family: str, port: int) -> Open:
    """Opens a flow of x/SRC to an address. The answer comes from x/a."""
    host, target = (world.by_address[table.address(key, family)] for key in (src, "x/a"))
    inet = socket.AF_INET6 if family == "ip6" else socket.AF_INET
    sort = socket.SOCK_STREAM if kind == "TCP" else socket.SOCK_DGRAM

    def listen() -> socket.socket:
        sock = socket.socket(inet, sort)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((table.address("x/a", family), port))
        if kind == "TCP":
            sock.listen()
        return sock

    def connect() -> socket.socket:
        sock = socket.socket(inet, sort)
        sock.settimeout(5)
        sock.bind((table.address(src, family), 0))
        sock.connect((dst, port))
        return sock

    server = target.ns.call(listen)
    server.settimeout(5)
    client = host.ns.call(connect)
    if kind == "TCP":
        accepted, _ = server.accept()
        server.close()
        return Open(client, accepted)
    client.send(b"hello")
    _, peer = server.recvfrom(16)
    server.sendto(b"hello", peer)
    assert client.recv(16) == b"hello"
    return Open(client, server, peer)
