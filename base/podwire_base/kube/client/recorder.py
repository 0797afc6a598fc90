"""Sends the Events of one process: counted, combined and limited (kube/correlation.py), and never in the way of the
work that they tell of.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from ..correlation import Correlator, Wanted
from ..errors import ApiError, Refused
from ..meta import Object
from ..registry import of
from .http import MERGE_PATCH, ApiClient

WAITING = 1000  # Events; the oldest is dropped


class Recorder:
    """`run` sends until it is cancelled. An Event that the API server cannot take is dropped, as upstream. told: is
    called with the text of each failure.
    """

    def __init__(
        self, api: ApiClient, told: Callable[[str], object] = lambda text: None, clock: Callable[[], float] = time.time
    ) -> None:
        self.api, self.told, self.clock = api, told, clock
        self._correlator, self._kind = Correlator(), of("Event")
        self._waiting: deque[Object] = deque(maxlen=WAITING)
        self._wake = asyncio.Event()

    def tell(self, event: Object) -> None:
        """Send a core/v1 Event soon."""
        self._waiting.append(event)
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._send(self._waiting.popleft())

    async def _send(self, event: Object) -> None:
        wanted = self._correlator.correlate(event, self.clock())
        if wanted is None:
            return
        try:
            await self._write(wanted)
        except ApiError as err:
            self._correlator.gone(wanted.whole)
            if not (isinstance(err, Refused) and err.reason == "AlreadyExists"):
                self.told(err.message)

    async def _write(self, wanted: Wanted) -> None:
        base = self._kind.path(wanted.namespace)
        if wanted.verb == "patch":
            try:
                await self.api.patch(self._kind.path(wanted.namespace, wanted.name), wanted.obj, MERGE_PATCH)
                return
            except Refused as err:
                if err.code != 404:
                    raise  # gone after its hour: it is told anew
        await self.api.create(base, wanted.whole)
