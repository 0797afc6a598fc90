"""Waits with a limit that a cancellation ends.

asyncio.wait_for of Python 3.11 returns normally if its task is cancelled in the moment in which what it waits for is
done (bpo-37658). The cancellation is lost then: an endless loop goes on, and its role does not end at SIGTERM.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def until_set(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait until `event` is set, for at most `seconds` (None: without limit). Returns whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return event.is_set()


async def within(work: Awaitable[T], seconds: float) -> T:
    """Return what `work` returns, or raise TimeoutError after `seconds`; then `work` is cancelled."""
    async with asyncio.timeout(seconds):
        return await work
