"""A container runtime's CRI socket for tests, which knows some pod sandboxes."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path


def _field(number: int, content: bytes) -> bytes:
    return bytes((number << 3 | 2, len(content))) + content


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """Returns an HTTP/2 frame."""
    return struct.pack(">I", len(body))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + body


def answer_of(sandboxes: Iterable[str]) -> bytes:
    """Returns the gRPC message of a ListPodSandboxResponse."""
    body = b"".join(
        _field(1, _field(1, ident.encode()) + _field(2, b"\x0a\x01x") + b"\x18\x01" + b"\x20\xff\xff\x03")
        for ident in sandboxes
    )
    return bytes(1) + struct.pack(">I", len(body)) + body


def listing(sandboxes: Iterable[str]) -> bytes:
    """Returns the frames of a whole answer."""
    message = frame(0, 0, 1, answer_of(sandboxes))
    return frame(4, 0, 0, b"") + frame(1, 4, 1, b"\x88") + message + frame(1, 5, 1, b"\x88")


@contextlib.contextmanager
def runtime(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Serve a unix socket that answers each connection with `answer`. Yields what the clients sent."""
    got = list[bytes]()

    def serve() -> None:
        while True:
            try:
                peer = server.accept()[0]
            except OSError:
                return
            with peer, contextlib.suppress(OSError):  # the client may be gone before it has read everything
                got.append(peer.recv(4096))
                peer.sendall(answer)
                peer.shutdown(socket.SHUT_WR)
                while more := peer.recv(4096):
                    got.append(more)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield got
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
