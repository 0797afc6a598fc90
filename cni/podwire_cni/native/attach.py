"""The compiled part of attaching a pod (attach.c, request.c). `load` returns None if it is not compiled; then Python
does the same work step by step.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podwire_base import native

SOURCES = ("attach.h", "request.h", "attach.c", "request.c")  # tools/nativebuild/units.py compiles the same sources
DONE, REFUSED, FAILED, LOST = range(4)
ROOM = 1 << 14


@dataclass(frozen=True, slots=True)
class AttachResult:
    """The outcome of a program. status DONE: every message was accepted. REFUSED: the kernel refused the message number
    `message` of the batch number `batch`, with `error` (an errno) and `extack`. FAILED: another system call failed with
    `error`. LOST: the calling thread is in the pod's namespace and cannot leave it. no_carrier: the number of watched
    links that carry no packets yet.
    """

    status: int
    batch: int
    message: int
    error: int
    no_carrier: int
    extack: str


class AttachLibrary:
    """The compiled functions. Each function releases the interpreter lock while it runs. `request` is a `struct
    request`.
    """

    def __init__(self, module: Any) -> None:
        self._ffi, self._lib = module.ffi, module.lib

    def run(self, sock: int, seq: int, node: int, pod: int, program: bytes) -> AttachResult | None:
        """Run a program (see program.py). sock: an rtnetlink socket of the node; its last sequence number was `seq`.
        node, pod: descriptors of the two namespaces. Returns None if the program is done and every watched link carries
        packets.
        """
        out = self._ffi.new("struct attach_result *")
        status = self._lib.attach_run(sock, seq, node, pod, program, len(program), out)
        if status == DONE and not out.no_carrier:
            return None
        extack = self._ffi.string(out.extack).decode(errors="replace")
        return AttachResult(status, out.batch, out.message, out.error, out.no_carrier, extack)

    def exchange(self, sock: int, batch: bytes) -> bytes:
        """Send one netlink batch. Returns all answers of the kernel. Raises OSError."""
        answers = self._ffi.new("uint8_t[]", ROOM)
        got = self._lib.attach_exchange(sock, batch, len(batch), answers, ROOM)
        if got < 0:
            raise OSError(-got, "netlink")
        return bytes(self._ffi.buffer(answers, got))

    def accept(self, listener: int, seconds: int) -> tuple[Any, bytes, int]:
        """Accept the next caller. Returns the request, the bytes read, and an errno. If the errno is not 0 and the
        request has a connection, reading from this connection failed; call `answer` to close it. seconds: the time
        limit for the caller to send its request.
        """
        request, buffer = self._ffi.new("struct request *"), self._ffi.new("uint8_t[]", ROOM)
        error = self._lib.request_accept(listener, buffer, ROOM, seconds, request)
        return request, bytes(self._ffi.buffer(buffer, request.size)), -error

    def abandoned(self, request: Any) -> bool:
        """Whether the caller's process has ended."""
        return bool(self._lib.request_abandoned(request.connection))

    def answer(self, request: Any, data: bytes) -> None:
        """Send `data` and close all of the caller's descriptors, also if sending fails. Raises OSError."""
        error = self._lib.request_answer(request, data, len(data))
        if error:
            raise OSError(-error, "the caller does not read its answer")


@functools.cache
def library() -> native.Library:
    """Returns the cffi module, or the reason why the module is missing."""
    return native.load(__package__, Path(__file__).parent, "_attach", SOURCES)


@functools.cache
def load() -> AttachLibrary | None:
    module = library().module
    return None if module is None else AttachLibrary(module)
