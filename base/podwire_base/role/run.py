"""Starts a role's process, ends it in order, and sends messages to systemd (sd_notify(3)).

SIGTERM and SIGINT end every role in the same way: the role's work is cancelled, its files and sockets are closed, and
the exit status is 0. The role's state in the kernel stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from . import beat, capture, limits, logs

T = TypeVar("T")
WATCHDOG, WATCHDOG_PID = "WATCHDOG_USEC", "WATCHDOG_PID"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
NOTIFY = "NOTIFY_SOCKET"


def main(role: str, work: Coroutine[Any, Any, T]) -> T:
    """Run a role's coroutine to its end, with what every role needs: as many open files as are allowed, and one
    `key=value` line for whatever Python or a library would write. Returns or raises as `work` does.
    """
    capture.everything()
    limits.raise_and_tell(logs.get(role))

    async def inner() -> T:
        asyncio.get_running_loop().set_exception_handler(capture.of_loop)
        ticking = asyncio.ensure_future(_ticking())
        try:
            return await work
        finally:
            ticking.cancel()

    return asyncio.run(inner())


async def _ticking() -> None:
    """The progress of the event loop itself."""
    told, each = float("-inf"), manager_seconds()
    while True:
        beat.tick()
        now = time.monotonic()
        if each and now - told >= each:
            told = now
            notify("WATCHDOG=1")
        await asyncio.sleep(min(beat.SECONDS, each or beat.SECONDS))


def manager_seconds() -> float | None:
    """Returns the seconds after which the service manager expects the next WATCHDOG=1, half of its limit
    (sd_watchdog_enabled(3)); None if it expects none from this process.
    """
    limit, pid = os.environ.get(WATCHDOG, ""), os.environ.get(WATCHDOG_PID, "")
    if not limit.isdecimal() or not int(limit[:18]) or (pid and pid != str(os.getpid())):
        return None
    return int(limit[:18]) / 2e6


def notify(state: str) -> None:
    """Send "READY=1" or "STOPPING=1" to the service manager. Does nothing without a service manager (NOTIFY_SOCKET is
    not set).
    """
    path = os.environ.get(NOTIFY, "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address)


def stop_event() -> asyncio.Event:
    """Returns an event that SIGTERM and SIGINT set. Only the main thread receives signals, so no signal sets an event
    that another thread made.
    """
    stop = asyncio.Event()

    def stopping() -> None:
        notify("STOPPING=1")
        stop.set()

    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, stopping)
    return stop


async def until_stopped(
    stop: asyncio.Event, work: Coroutine[Any, Any, object], leave: Callable[[], object] = lambda: None
) -> bool:
    """Run `work` until it ends or `stop` is set. If `work` ends, returns False or raises the error of `work`. If `stop`
    is set, calls `leave`, then cancels `work` and waits for its end, so that it can close what it opened; returns True.
    """
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return False
        leave()
        return True
    finally:
        stopped.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
