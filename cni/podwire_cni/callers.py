"""Callers of the agent. A caller is one connection of the plugin binary: the agent reads one request from it and sends
one answer.

There are two implementations. The compiled library accepts a connection and reads the request in one call. Without the
library, Python does the same in several steps. The top of native/client.c describes the protocol.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Any, Protocol

from .native.attach import AttachLibrary
from .netnsid import is_netns, netns_id

HEAD = struct.Struct("=4s4I")
MAX_INPUT = 8 << 20
SECONDS = 10  # the time limit for a caller to send its request
_LIMIT = struct.pack("ll", SECONDS, 0)  # struct timeval
POD_NETNS = 1


class BrokeOff(Exception):
    """A caller connected but did not send a complete request."""


class Request:
    """A caller's request. error: the errno of the caller's attempt to open the pod's namespace; 0 if the attempt
    succeeded.
    """

    __slots__ = ("env", "error", "flags", "size", "stdin")

    def __init__(self, data: bytes) -> None:
        """Raises ValueError if `data` is not a request. `env` and `stdin` are complete if `data` has `size` bytes."""
        magic, self.flags, self.error, env_len, stdin_len = HEAD.unpack_from(data)
        if magic != b"PWC1" or env_len + stdin_len > MAX_INPUT:
            raise ValueError("not a request of podwire-cni, or one of another version")
        end = HEAD.size + env_len
        self.size = end + stdin_len
        self.stdin, self.env = data[end : self.size], dict[str, str]()
        for entry in data[HEAD.size : end].decode(errors="replace").split("\0"):
            key, equals, value = entry.partition("=")
            if equals:
                self.env[key] = value


class Caller(Protocol):
    """One caller. node: the id (netns_id) of the network namespace in which the caller runs, None if unknown. pod: a
    descriptor of the pod's namespace, None if there is none. Call `answer` or `close` at the end.
    """

    request: Request
    node: tuple[int, int] | None
    pod: int | None
    pod_id: tuple[int, int] | None
    pod_is_netns: bool

    def gone(self) -> bool:
        """Whether the caller no longer waits for the answer."""

    def answer(self, data: bytes) -> None:
        """Raises OSError."""

    def close(self) -> None: ...


class SocketCaller:
    """A caller whose request Python reads, without the compiled library."""

    def __init__(self, connection: socket.socket) -> None:
        """Raises BrokeOff after closing the connection."""
        self._connection, self._fds = connection, list[int]()
        try:
            for way in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                connection.setsockopt(socket.SOL_SOCKET, way, _LIMIT)
            data, self._fds, _, _ = socket.recv_fds(connection, 65536, 4)
            self.request = read(connection, data)
        except (OSError, ValueError) as err:
            self.close()
            raise BrokeOff(str(err) or type(err).__name__) from err
        self.node = netns_id(self._fds[0]) if self._fds else None
        self.pod = self._fds[1] if self.request.flags & POD_NETNS and len(self._fds) > 1 else None
        self.pod_id = None if self.pod is None else netns_id(self.pod)
        self.pod_is_netns = self.pod is not None and is_netns(self.pod)

    def gone(self) -> bool:
        # The caller sends nothing after its request, and its connection closes only when it exits.
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def answer(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        finally:
            self.close()

    def close(self) -> None:
        self._connection.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = []


def read(connection: socket.socket, data: bytes) -> Request:
    """Read the rest of the request that begins with `data`. Returns the request. Raises OSError or ValueError."""
    buffer = bytearray(data)
    _fill(connection, buffer, HEAD.size)
    size = Request(bytes(buffer)).size
    if len(buffer) < size:
        _fill(connection, buffer, size)
    return Request(bytes(buffer))


def _fill(connection: socket.socket, buffer: bytearray, size: int) -> None:
    while len(buffer) < size:
        more = connection.recv(size - len(buffer))
        if not more:
            raise ConnectionResetError("the caller went away")
        buffer += more


class LibraryCaller:
    """A caller whose request the compiled library read. accepted: the library's `struct request`."""

    def __init__(self, library: AttachLibrary, accepted: Any, data: bytes) -> None:
        """Raises BrokeOff after closing the connection."""
        self._library, self._accepted = library, accepted
        try:
            self.request = Request(data) if len(data) >= HEAD.size else self._rest(data)
            if len(data) < self.request.size:
                self.request = self._rest(data)
        except (OSError, ValueError) as err:
            self.close()
            raise BrokeOff(str(err) or type(err).__name__) from err
        own, pod = accepted.ids
        self.node = (own.dev, own.ino) if accepted.count else None
        self.pod = accepted.fds[1] if self.request.flags & POD_NETNS and accepted.count > 1 else None
        self.pod_id = None if self.pod is None else (pod.dev, pod.ino)
        self.pod_is_netns = bool(accepted.is_netns)

    def _rest(self, data: bytes) -> Request:
        connection = socket.socket(fileno=self._accepted.connection)
        try:
            return read(connection, data)
        finally:
            connection.detach()

    def gone(self) -> bool:
        return self._library.abandoned(self._accepted)

    def answer(self, data: bytes) -> None:
        self._library.answer(self._accepted, data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._library.answer(self._accepted, b"")


def take(listener: socket.socket, library: AttachLibrary | None) -> Caller:
    """Wait for the next caller. Raises OSError if accepting a connection fails, BrokeOff if the caller did not send a
    complete request.
    """
    if library is None:
        return SocketCaller(listener.accept()[0])
    accepted, data, error = library.accept(listener.fileno(), SECONDS)
    if error and accepted.connection < 0:
        raise OSError(error, os.strerror(error))
    if error:
        library.answer(accepted, b"")
        raise BrokeOff(os.strerror(error))
    return LibraryCaller(library, accepted, data)
