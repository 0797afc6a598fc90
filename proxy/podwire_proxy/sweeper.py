"""Decides when to sweep after a sync.

A sweep removes rules that only packets in flight needed, and stale flows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from .flows import Swept
from .proxier import Proxier

SWEEP_AFTER = 0.05  # seconds; a packet needs far less time for one hook
SHARE = 9  # under continuous changes, the search for flows pauses for this multiple of its duration


class Sweeper:
    """Runs sweeps. Call `after_sync` after each sync.

    done: called after each check of the flows. failed: called if the next sync must be a full sync.
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
        """Checks the flows in a thread. Each dump takes milliseconds, and changes arrive meanwhile."""
        pause = SWEEP_AFTER
        try:
            while self._proxier.flows.pending:
                await asyncio.sleep(pause)
                look = self._proxier.flows.look()
                swept = await asyncio.get_running_loop().run_in_executor(self._thread, look.run)
                self._done(swept)
                # CPU time, not wall-clock time: on busy CPUs a check takes long, and a pause of nine times that
                # duration would leave flows stale.
                pause = max(SWEEP_AFTER, SHARE * swept.busy)
        except OSError as err:
            self._failed(err)
        finally:
            self._looking = None
