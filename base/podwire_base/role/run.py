"""How a role's process ends, and what it says to systemd meanwhile (sd_notify(3)).

SIGTERM and SIGINT end every role in the same way: its work is cancelled, what it opened is closed, and the exit status
is 0. What a role wrote into the kernel stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
NOTIFY = "NOTIFY_SOCKET"


def notify(state: str) -> None:
    """Send "READY=1" or "STOPPING=1" to the service manager; without one (no NOTIFY_SOCKET) nothing happens."""
    path = os.environ.get(NOTIFY, "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address)


def stop_event() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set. In another thread than the main one no signal arrives, and nothing sets
    it."""
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
    """Run `work` until it ends (False; its error is raised) or `stop` is set (True). Then `leave` is called, and `work`
    is cancelled and awaited, so that everything it opened is closed."""
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
