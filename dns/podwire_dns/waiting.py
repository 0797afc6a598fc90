"""The queries that wait for upstreams. They start in the event loop, one client after the other (shares.py)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from podwire_base.role import waits

from .answer import Answerer, Pending
from .cache import Upstreamed
from .observer import Observer
from .shares import Turns
from .udp import Send, Waiting
from .upstream import Forwarder

MAX_PENDING = 2000  # queries that wait for upstreams, shared as in shares.py; further queries get SERVFAIL at once
AT_ONCE = 32  # queries that start in one turn of the event loop


class WaitingQueries:
    """forwarder: returns the forwarder in use. Everything runs in the event loop."""

    def __init__(self, answerer: Answerer, observer: Observer, forwarder: Callable[[], Forwarder]) -> None:
        self.answerer, self.observer, self.forwarder = answerer, observer, forwarder
        self.turns: Turns[tuple[Pending, Send]] = Turns(MAX_PENDING)
        self._scheduled = False
        self._idle = asyncio.Event()

    def add(self, waiting: Waiting) -> None:
        """Starts queries, or queues them until it is their client's turn. A query without a place gets SERVFAIL."""
        for pending, send, source in waiting:
            if not self.turns.add(source, (pending, send)):
                with contextlib.suppress(OSError):  # the client left
                    send(self.answerer.finish(pending, None))
        if not self._scheduled:
            self._start()

    def add_one(self, pending: Pending, send: Send, source: bytes) -> None:
        self.add([(pending, send, source)])

    async def settle(self, seconds: float) -> None:
        """Waits up to `seconds` until no query waits."""
        if self.turns.total:
            self._idle.clear()
            await waits.until_set(self._idle, seconds)

    def _start(self) -> None:
        self._scheduled = False
        for _ in range(AT_ONCE):
            turn = self.turns.take()
            if turn is None:
                return
            source, (pending, send) = turn
            self._forward(pending, send, source)
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._start)

    def _forward(self, pending: Pending, send: Send, source: bytes) -> None:
        def done(answer: Upstreamed | None) -> None:
            self.turns.done(source)
            if not self.turns.total:
                self._idle.set()
            try:
                response = self.answerer.finish(pending, answer)
            except Exception as err:  # other clients wait for this answer and for the next answers
                self.observer.failed("udp", ("",), pending.query.question, err)
                response = self.answerer.finish(pending, None)
            with contextlib.suppress(OSError):  # the client left
                send(response)

        self.forwarder().ask(pending.cache_key, done, source)
