"""The compiled half of what a pod waits for (wires.c), by ctypes; `load` gives None where it could not be compiled."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

LIBRARY = Path(__file__).parent / "bin" / "podwire-wires.so"
DONE, REFUSED, FAILED, LOST = range(4)
ROOM = 1 << 14


class _Outcome(ctypes.Structure):
    _fields_ = (
        ("batch", ctypes.c_int32),
        ("message", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("late", ctypes.c_int32),
        ("words", ctypes.c_char * 112),
    )


class _Id(ctypes.Structure):
    _fields_ = (("dev", ctypes.c_uint64), ("ino", ctypes.c_uint64))


class Taken(ctypes.Structure):
    """struct taken: a caller's connection and descriptors, and of the first two which files they are."""

    _fields_ = (
        ("connection", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("fds", ctypes.c_int32 * 4),
        ("size", ctypes.c_uint32),
        ("is_netns", ctypes.c_int32),
        ("ids", _Id * 2),
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """status: DONE; REFUSED by the kernel, `error` (an errno) and `words` say why, `batch` and `message` what; FAILED:
    some other system call, `error` says why; LOST: the calling thread is in the pod's namespace and cannot leave it.
    late: how many of the links that were asked for carry no packets yet."""

    status: int
    batch: int
    message: int
    error: int
    late: int
    words: str


class Wires:
    """The library's functions. The interpreter's lock is free while one runs."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._run, self._exchange = library.wires_run, library.wires_exchange
        self._take, self._gone, self._answer = library.wires_take, library.wires_gone, library.wires_answer
        number, unsigned, text, place = ctypes.c_int, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_void_p
        self._take.argtypes = (number, place, unsigned, number, place)
        self._gone.argtypes = (number,)
        self._answer.argtypes = (place, text, unsigned)
        self._run.argtypes = (number, unsigned, number, number, text, unsigned, place)
        self._exchange.argtypes = (number, text, unsigned, place, unsigned)

    def run(self, sock: int, seq: int, node: int, pod: int, program: bytes) -> Outcome | None:
        """Run a program (program.py). sock: an rtnetlink socket of the node, whose last sequence number was `seq`;
        node, pod: descriptors of the namespaces. None: all is done and every link that was asked for carries
        packets."""
        out = _Outcome()
        status = self._run(sock, seq, node, pod, program, len(program), ctypes.byref(out))
        if status == DONE and not out.late:
            return None
        return Outcome(status, out.batch, out.message, out.error, out.late, out.words.decode(errors="replace"))

    def exchange(self, sock: int, batch: bytes) -> bytes:
        """Send one netlink batch; all answers that are there when the kernel is done with it. Raises OSError."""
        answers = ctypes.create_string_buffer(ROOM)
        got = self._exchange(sock, batch, len(batch), answers, ROOM)
        if got < 0:
            raise OSError(-got, "netlink")
        return ctypes.string_at(answers, got)

    def take(self, listener: int, seconds: int) -> tuple[Taken, bytes, int]:
        """The next caller, what came of its request, and an errno. Where that is not 0 and the caller has a connection,
        it is of that; `answer` ends it. seconds: how long it may keep us waiting."""
        taken, buffer = Taken(), ctypes.create_string_buffer(ROOM)
        error = self._take(listener, buffer, ROOM, seconds, ctypes.byref(taken))
        return taken, ctypes.string_at(buffer, taken.size), -error

    def gone(self, caller: Taken) -> bool:
        """Whether the caller's process has ended."""
        return bool(self._gone(caller.connection))

    def answer(self, caller: Taken, data: bytes) -> None:
        """Send `data` and close all of the caller's descriptors. Raises OSError; they are closed then, too."""
        error = self._answer(ctypes.byref(caller), data, len(data))
        if error:
            raise OSError(-error, "the caller does not take its answer")


@functools.cache
def load() -> Wires | None:
    try:
        return Wires(ctypes.CDLL(str(LIBRARY)))
    except (OSError, AttributeError):  # not compiled, or of another version
        return None
