"""What a pod waits for, compiled (attach.c, request.c); `load` gives None where Python must do it step by step."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podwire_base import native

SOURCES = ("attach.h", "request.h", "attach.c", "request.c")  # tools/nativebuild/units.py compiles the same
DONE, REFUSED, FAILED, LOST = range(4)
ROOM = 1 << 14


@dataclass(frozen=True, slots=True)
class AttachResult:
    """status: DONE; REFUSED by the kernel, `error` (an errno) and `extack` say why, `batch` and `message` what; FAILED:
    some other system call, `error` says why; LOST: the calling thread is in the pod's namespace and cannot leave it.
    no_carrier: how many of the links that were asked for carry no packets yet."""

    status: int
    batch: int
    message: int
    error: int
    no_carrier: int
    extack: str


class AttachLibrary:
    """The compiled functions. The interpreter's lock is free while one runs. A request is a `struct request`."""

    def __init__(self, module: Any) -> None:
        self._ffi, self._lib = module.ffi, module.lib

    def run(self, sock: int, seq: int, node: int, pod: int, program: bytes) -> AttachResult | None:
        """Run a program (program.py). sock: an rtnetlink socket of the node, whose last sequence number was `seq`;
        node, pod: descriptors of the namespaces. None: all is done and every link that was asked for carries
        packets."""
        out = self._ffi.new("struct attach_result *")
        status = self._lib.attach_run(sock, seq, node, pod, program, len(program), out)
        if status == DONE and not out.no_carrier:
            return None
        extack = self._ffi.string(out.extack).decode(errors="replace")
        return AttachResult(status, out.batch, out.message, out.error, out.no_carrier, extack)

    def exchange(self, sock: int, batch: bytes) -> bytes:
        """Send one netlink batch; all answers that are there when the kernel is done with it. Raises OSError."""
        answers = self._ffi.new("uint8_t[]", ROOM)
        got = self._lib.attach_exchange(sock, batch, len(batch), answers, ROOM)
        if got < 0:
            raise OSError(-got, "netlink")
        return bytes(self._ffi.buffer(answers, got))

    def accept(self, listener: int, seconds: int) -> tuple[Any, bytes, int]:
        """The next caller's request, what came of it, and an errno. Where that is not 0 and the request has a
        connection, it is of that; `answer` ends it. seconds: how long it may keep us waiting."""
        request, buffer = self._ffi.new("struct request *"), self._ffi.new("uint8_t[]", ROOM)
        error = self._lib.request_accept(listener, buffer, ROOM, seconds, request)
        return request, bytes(self._ffi.buffer(buffer, request.size)), -error

    def abandoned(self, request: Any) -> bool:
        """Whether the caller's process has ended."""
        return bool(self._lib.request_abandoned(request.connection))

    def answer(self, request: Any, data: bytes) -> None:
        """Send `data` and close all of the caller's descriptors. Raises OSError; they are closed then, too."""
        error = self._lib.request_answer(request, data, len(data))
        if error:
            raise OSError(-error, "the caller does not take its answer")


@functools.cache
def library() -> native.Library:
    """The cffi module, or why there is none."""
    return native.load(__package__, Path(__file__).parent, "_attach", SOURCES)


@functools.cache
def load() -> AttachLibrary | None:
    module = library().module
    return None if module is None else AttachLibrary(module)
