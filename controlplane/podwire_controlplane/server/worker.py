"""One worker of the API server's own controllers: keys that changes of the store touch are handled one after another,
each again after a failure. `handle` is idempotent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from podwire_base.role import logs

from ..store.base import Store, StoredChange

log = logs.get("apiserver")
RETRY_SECONDS = 5.0


class Worker:
    """touched: the keys that a change of the store touches. handle: takes the next step for a key. what: names the
    worker in the log. `run` first handles the keys of `first`.
    """

    def __init__(
        self,
        what: str,
        store: Store,
        touched: Callable[[StoredChange], Iterable[str]],
        handle: Callable[[str], Awaitable[None]],
        first: Callable[[], Awaitable[Iterable[str]]],
    ) -> None:
        self.what, self.store, self._touched, self._handle, self._first = what, store, touched, handle, first
        self._due: dict[str, None] = {}  # an ordered set
        self._wake = asyncio.Event()

    def _changed(self, change: StoredChange) -> None:
        for key in self._touched(change):
            self.enqueue(key)

    def enqueue(self, key: str) -> None:
        self._due[key] = None
        self._wake.set()

    async def run(self) -> None:
        """Handle keys forever."""
        leave = self.store.subscribe(self._changed)
        try:
            for key in await self._first():
                self.enqueue(key)
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._due:
                    key = next(iter(self._due))
                    del self._due[key]
                    await self._try(key)
        finally:
            leave()

    async def _try(self, key: str) -> None:
        try:
            await self._handle(key)
        except Exception as err:  # one malformed object must not stop the others
            log.warn("will try again", worker=self.what, key=key, error=str(err) or repr(err), again_s=RETRY_SECONDS)
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self.enqueue, key)
