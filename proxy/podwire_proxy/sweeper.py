"""Decides when to remove what syncs leave behind: rules that only packets in flight need, and flows that lead
nowhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from .flows import Swept
from .proxier import Proxier

SWEEP_AFTER = 0.05  # seconds: far longer than a packet is on its way through one hook
SHARE = 9  # under continuous changes, the search for flows pauses for this multiple of its duration


class Sweeper:
    """`after_sync` starts the work that is due. done: called after each check of the flows; failed: everything must be
    synced again.
    """

    def __init__(self, proxier: Proxier, done: Callable[[Swept], None], failed: Callable[[OSError], None]) -> None:
        self._proxier, self._done, self._failed = proxier, done, failed
        self._thread = ThreadPoolExecutor(1, "flows")
        self._rules = False
        self._looking: asyncio.Task[None] | None = None

    def after_sync(self) -> None:
        if self._proxier.unswept and not self._rules:
            self._rules = True
            asyncio.get_running_loop().call_later(SWEEP_AFTER, self._sweep_rules)
        if self._proxier.flows.pending and self._looking is None:
            self._looking = asyncio.ensure_future(self._look())

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self._thread.shutdown()

    def _sweep_rules(self) -> None:
        self._rules = False
        try:
            self._proxier.sweep_rules()
        except OSError as err:
            self._failed(err)

    async def _look(self) -> None:
        """Runs in a thread: each dump keeps the kernel busy for milliseconds, during which changes arrive."""
        pause = SWEEP_AFTER
        try:
            while self._proxier.flows.pending:
                await asyncio.sleep(pause)
                look = self._proxier.flows.look()
                swept = await asyncio.get_running_loop().run_in_executor(self._thread, look.run)
                self._done(swept)
                # CPU time, not wall-clock time: if many processes want the CPUs, a check takes long, and flows would
                # lead nowhere for ten times as long.
                pause = max(SWEEP_AFTER, SHARE * swept.busy)
        except OSError as err:
            self._failed(err)
        finally:
            self._looking = None
