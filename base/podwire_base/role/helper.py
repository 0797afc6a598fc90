"""A helper keeps the privileges that a role gives up. The role forks it first, and calls a fixed table of functions.

The table is the boundary: its functions check their arguments, since the role parses what strangers send and may be in
their hands. Requests and answers are JSON over a socket pair (SOCK_SEQPACKET, one message each); an answer may carry a
descriptor. The helper ends when the role does.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, cast

from . import beat, bugs, logs
from .title import set_title

log = logs.get("helper")
LARGEST = 128 * 1024  # bytes of a message
SECONDS = 10.0  # for one call
SOCKET, FILE = "socket", "file"
ANOTHER = "another connection"
Calls = Mapping[str, Callable[..., Any]]


class Connection:
    """A connection to a helper. `call` is thread-safe. owner: the process that may call."""

    def __init__(self, sock: socket.socket, owner: int) -> None:
        sock.settimeout(SECONDS)
        self._sock, self._lock, self._owner = sock, threading.Lock(), owner
        self._number = 0  # of the last call

    @property
    def foreign(self) -> bool:
        """Whether this process is a fork of the helper's role; it has no helper, since answers would get mixed up."""
        return os.getpid() != self._owner

    def call(self, name: str, *args: Any) -> Any:
        """Returns what the helper's function returned: a JSON value, a socket or a binary file. Raises its OSError;
        EPIPE if the helper is gone.
        """
        if self.foreign:
            raise OSError(errno.EPIPE, "the privileged helper belongs to another process")
        with self._lock:
            try:
                self._number += 1
                self._sock.send(json.dumps([self._number, name, *args]).encode())
                answer, fds = self._answer(self._number)
            except OSError as err:
                raise OSError(errno.EPIPE, f"the privileged helper does not answer: {err}") from err
        if "errno" in answer:
            for fd in fds:
                os.close(fd)
            raise OSError(answer["errno"], answer["error"])
        if not fds:
            return answer["value"]
        return socket.socket(fileno=fds[0]) if answer["value"] == SOCKET else open(fds[0], "rb")

    def _answer(self, number: int) -> tuple[Any, list[int]]:
        """Returns the answer to the call of this number. An answer to a call that was given up is left out."""
        while True:
            data, fds, _, _ = socket.recv_fds(self._sock, LARGEST, 1)
            if not data:
                raise OSError(errno.EPIPE, "it has ended")
            answer = json.loads(data)
            if answer["number"] == number:
                return answer, list(fds)
            for fd in fds:
                os.close(fd)

    def another(self) -> Connection:
        """Returns a second connection to the same helper, for a fork of this process, which must `adopt` it. Raises
        OSError.
        """
        return Connection(self.call(ANOTHER), 0)

    def adopt(self) -> None:
        """Make this process the owner. Its parent calls `close_here`."""
        self._owner, self._lock = os.getpid(), threading.Lock()

    def close_here(self) -> None:
        """Close the descriptor of this process only."""
        self._sock.close()

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class Helper(Connection):
    """The helper itself, with the first connection. title: what `ps` shows after "podwire"."""

    def __init__(self, calls: Calls, title: tuple[str, ...]) -> None:
        """Fork the helper. No other thread may run yet. Raises OSError."""
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            own.close()
            _serve(other, calls, title, parent)
        other.close()
        super().__init__(own, parent)


class _Table(dict[str, Callable[..., Any]]):
    """The calls of a helper, one at a time, and the one that makes another connection."""

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls)
        self.lock = threading.Lock()
        self[ANOTHER] = self._another

    def _another(self) -> socket.socket:
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        threading.Thread(target=self.answer, args=(own,), daemon=True).start()
        return other

    def answer(self, sock: socket.socket, wanted: Callable[[], bool] = lambda: True) -> None:
        """Answer the requests of one connection until its other end is closed. Raises OSError."""
        with sock:
            while wanted():
                request = sock.recv(LARGEST)
                if not request:
                    break
                with self.lock:
                    answer, passed = answer_to(request, self)
                try:
                    socket.send_fds(sock, [answer], [passed.fileno()] if passed else [])
                except BrokenPipeError:
                    break
                finally:
                    if passed:
                        passed.close()


def _serve(sock: socket.socket, calls: Calls, title: tuple[str, ...], parent: int) -> None:
    """Serve until the role's end of the pair is closed. Never returns."""
    try:
        beat.begin(None)  # the beat is the role's
        # A copy of a role's socket would keep it open: nobody would read what arrives there.
        os.closerange(3, sock.fileno())
        os.closerange(sock.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        set_title("podwire", *title)
        _Table(calls).answer(sock, lambda: os.getppid() == parent)
    except OSError:
        pass  # the role is gone
    finally:
        os._exit(0)


def answer_to(request: bytes, calls: Calls) -> tuple[bytes, socket.socket | BinaryIO | None]:
    """Returns the answer to one request, and the socket or file that goes with it."""
    number = None
    try:
        number, name, *args = json.loads(request)
        if name not in calls:
            raise OSError(errno.EPERM, f"{name!r} is not a call of this helper")
        value = calls[name](*args)
    except OSError as err:
        return _error(number, err.errno or errno.EIO, err.strerror or str(err)), None
    except Exception as err:  # misshapen arguments, or a bug: the helper must go on
        bugs.report(log, "a call failed", err)
        return _error(number, errno.EINVAL, repr(err)), None
    if isinstance(value, socket.socket | io.IOBase):
        kind = SOCKET if isinstance(value, socket.socket) else FILE
        return json.dumps({"number": number, "value": kind}).encode(), cast("BinaryIO", value)
    return json.dumps({"number": number, "value": value}).encode(), None


def _error(number: object, error: int, text: str) -> bytes:
    return json.dumps({"number": number, "errno": error, "error": text[:1000]}).encode()
