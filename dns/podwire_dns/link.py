"""The socket pair between a server and its spare: frames of a 4-byte length and a body, in both directions."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

PIECE = 1 << 18


class Link:
    """One end. Everything runs in the event loop. received: gets what arrived; b"" at the end of the peer.

    backlog: the bytes that the peer has not taken yet.
    """

    def __init__(self, sock: socket.socket, received: Callable[[bytes], object]) -> None:
        sock.setblocking(False)
        self.sock, self._received = sock, received
        self._loop = asyncio.get_running_loop()
        self._backlog = bytearray()
        self.soon: Callable[[Callable[[], None]], object] = self._loop.call_soon
        self._loop.add_reader(sock, self._read)

    @property
    def backlog(self) -> int:
        return len(self._backlog)

    def send(self, frame: bytes) -> None:
        self._backlog += frame
        self._write()

    def _write(self) -> None:
        try:
            while self._backlog:
                del self._backlog[: self.sock.send(self._backlog[:PIECE])]
        except BlockingIOError:
            self._loop.add_writer(self.sock, self._write)
            return
        except OSError:  # the peer is gone, which `_read` tells
            self._backlog.clear()
        self._loop.remove_writer(self.sock)

    def _read(self) -> None:
        try:
            data = self.sock.recv(PIECE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self.sock)
        self._received(data)

    def close(self) -> None:
        self._loop.remove_reader(self.sock)
        self._loop.remove_writer(self.sock)
        self.sock.close()
