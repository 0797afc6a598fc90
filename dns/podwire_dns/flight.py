"""One question on its way to the upstreams. Pure: upstream.py sends the queries and calls back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import forward
from .cache import CacheKey, Upstreamed
from .forward import Upstreams

if TYPE_CHECKING:
    from .exchange import Sent, StreamQuery, UdpExchange
    from .upstream import Forwarder

Done = Callable[["Upstreamed | None"], None]
NEVER = float("inf")


class Request:
    """One query to one upstream, in progress. flight: the flight of the query. told: the time-out is counted.

    edns: the query has OPT. refused: the upstream refused it with OPT, and gets it without.
    """

    __slots__ = ("address", "began", "edns", "exchange", "flight", "refused", "told", "upstreams")

    def __init__(self, flight: Flight, upstreams: Upstreams, address: str, began: float) -> None:
        self.flight, self.upstreams, self.address, self.began, self.told = flight, upstreams, address, began, False
        self.edns, self.refused = upstreams.knows_edns(address, began), False
        self.exchange: UdpExchange | Sent | StreamQuery | None = None


class Flight:
    """One question in progress, for all clients that wait for its answer."""

    __slots__ = (
        "began",
        "current",
        "cut",
        "done",
        "due",
        "failed",
        "fallback",
        "forwarder",
        "key",
        "live",
        "plan",
        "source",
        "upstreams",
        "waiters",
    )

    def __init__(self, forwarder: Forwarder, key: CacheKey, upstreams: Upstreams, now: float, source: bytes) -> None:
        self.forwarder, self.key, self.upstreams, self.began, self.source = forwarder, key, upstreams, now, source
        self.plan = iter(upstreams.attempts(now))
        self.waiters: list[Done] = []
        self.fallback: Upstreamed | None = None
        self.due = NEVER  # the time at which the next upstream gets the query too
        self.current: Request | None = None
        self.live, self.done = 0, False
        self.failed: set[str] = set()  # upstreams that answered with a failure: they are not asked again
        self.cut = False  # there was no room to ask all upstreams

    def next(self) -> None:
        """Sends the query to the next upstream. After the last upstream, waits for late answers."""
        self.due = NEVER
        if self.forwarder.full:
            self.forwarder.refused += not self.live
            self.plan, self.cut = iter(()), True
        for address, patience in self.plan:
            if address in self.failed:
                continue
            self.live += 1
            asked = self.forwarder.send(self, address)
            if patience:
                self.current = asked
                self.due = asked.began + patience
                return
        if not self.live or self.fallback is not None:
            self.finish(self.fallback)

    def impatient(self) -> None:
        if self.current is not None:
            self.forwarder.silent(self.current)
        self.next()

    def on_reply(self, asked: Request, answer: Upstreamed | None) -> None:
        """Handles the reply of one upstream. answer: None if the upstream is unreachable."""
        self.live -= 1
        if answer is not None and forward.is_final(answer):
            if not self.done or self.key in self.forwarder.cache.failures:  # a late answer ends a failure
                answer = self.forwarder.keep(self, answer)
            if not self.done:
                self.finish(answer)
            return
        if self.done:
            return
        if answer is not None:
            self.failed.add(asked.address)
        self.fallback = self.fallback or answer
        if asked is self.current or not self.live:
            self.next()

    def finish(self, answer: Upstreamed | None) -> None:
        self.done, self.current = True, None
        self.forwarder.landed(self, answer)


class Once:
    """A Done callback. Only its first call has an effect."""

    def __init__(self, done: Done) -> None:
        self.done, self.called = done, False

    def __call__(self, answer: Upstreamed | None) -> None:
        if not self.called:
            self.called = True
            self.done(answer)
