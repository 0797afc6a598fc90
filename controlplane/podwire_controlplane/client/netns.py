"""Doing one thing in another network namespace: a thread goes there and ends, so nobody else is moved."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def setns(fd: int, kind: int = CLONE_NEWNET) -> None:
    """Move the calling thread into the namespace behind `fd`. Raises OSError."""
    if _libc.setns(fd, kind):
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))


def unshare(flags: int) -> None:
    if _libc.unshare(flags):
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))


def call_in(path: str, work: Callable[[], T]) -> T:
    """Run `work` in the network namespace at `path` (a /run/netns file or /proc/PID/ns/net); what it opens stays there."""
    box: list[Any] = []

    def body() -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                setns(fd)
            finally:
                os.close(fd)
            box.extend((True, work()))
        except BaseException as err:
            box.extend((False, err))

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    good, value = box
    if not good:
        raise value
    result: T = value
    return result
