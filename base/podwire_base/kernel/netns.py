"""Calls a function in another network namespace. A new thread enters the namespace and ends after the call, so no other
thread changes its namespace.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))


def setns(fd: int, kind: int = CLONE_NEWNET) -> None:
    """Move the calling thread into the namespace behind `fd`. Raises OSError."""
    _check(_libc.setns(fd, kind))


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces. Raises OSError."""
    _check(_libc.unshare(flags))


def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a new thread and wait for the result. If `work` changes its thread's namespaces, other threads are
    not affected.
    """
    box: list[Any] = []

    def body() -> None:
        try:
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


def within(fd: int | None, work: Callable[[], T]) -> T:
    """Run `work` in the network namespace behind `fd` (None: the caller's namespace). Sockets that `work` opens stay in
    this namespace.
    """
    if fd is None:
        return work()

    def body() -> T:
        setns(fd)
        return work()

    return in_thread(body)


def call_in(path: str, work: Callable[[], T]) -> T:
    """Run `work` in the network namespace at `path` (a /run/netns file or /proc/PID/ns/net). Sockets that `work` opens
    stay in this namespace.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return within(fd, work)
    finally:
        os.close(fd)
