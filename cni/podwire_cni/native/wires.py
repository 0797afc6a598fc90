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
    _fields_ = (("batch", ctypes.c_int32), ("message", ctypes.c_int32), ("error", ctypes.c_int32), ("late", ctypes.c_int32),
                ("words", ctypes.c_char * 112))


@dataclass(frozen=True, slots=True)
class Outcome:
    """status: DONE; REFUSED by the kernel, `error` (an errno) and `words` say why, `batch` and `message` what; FAILED: some
    other system call, `error` says why; LOST: the calling thread is in the pod's namespace and cannot leave it. late: how many
    of the links that were asked for carry no packets yet."""

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
        number, unsigned, text = ctypes.c_int, ctypes.c_uint32, ctypes.c_char_p
        self._run.argtypes = (number, unsigned, number, number, text, unsigned, ctypes.c_void_p)
        self._exchange.argtypes = (number, text, unsigned, ctypes.c_void_p, unsigned)

    def run(self, sock: int, seq: int, node: int, pod: int, program: bytes) -> Outcome | None:
        """Run a program (program.py). sock: an rtnetlink socket of the node, whose last sequence number was `seq`; node, pod:
        descriptors of the namespaces. None: all is done and every link that was asked for carries packets."""
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
        return answers.raw[:got]


@functools.cache
def load() -> Wires | None:
    try:
        return Wires(ctypes.CDLL(str(LIBRARY)))
    except (OSError, AttributeError):  # not compiled, or of another version
        return None
