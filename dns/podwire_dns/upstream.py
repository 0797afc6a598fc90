"""Sends queries for names outside the zone to upstreams. Equal questions share one exchange (a "flight").

forward.py decides what to send and which answer to believe; exchange.py has the sockets. All code here runs in
callbacks of one event loop: a query that misses the cache costs one socket and no task.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from array import array
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache, partial
from ipaddress import ip_address

from dnslib import RCODE

from podwire_base.role import logs
from podwire_base.role.metrics import Histogram

from . import forward, native, reading
from .cache import Cache, CacheKey, Upstreamed
from .exchange import Stream, UdpExchange, UpstreamExchange
from .flight import Done, Flight, Once, Request
from .forward import Route, Upstreams
from .metrics import BOUNDS
from .metrics_page import Forwarding
from .twins import Sharing
from .wire import EMPTY, REFUSED, SERVFAIL

log = logs.get("dns")
SWEEP_SECONDS, TICK_SECONDS = 0.25, 0.02
IDENTS = 512
MOST = 8192
RCODES = [*(str(RCODE.forward.get(number, number)) for number in range(16)), "BADVERS"]


@lru_cache(maxsize=256)
def packed(host: str) -> bytes:
    return ip_address(host).packed


class Forwarder:
    """Forwards questions to upstreams. `ask` and `resolve` are concurrent; equal questions share one flight."""

    def __init__(
        self,
        routes: Mapping[bytes, Route],
        cache: Cache,
        *,
        batches: bool = True,
        most: int = MOST,
        homes: Mapping[bytes, Mapping[bytes, Route]] | None = None,
    ) -> None:
        """routes: domain in wire form -> route; the longest match of a question applies.

        homes: the same for each block whose rules made a question, by the first zone of the block. most: the maximum
        number of concurrent queries to upstreams; each query needs an open socket. Raises OSError for unusable TLS
        files.
        """
        self.routes = {domain: Upstreams(route, secrets.randbelow) for domain, route in routes.items()}
        known = {upstreams.route: upstreams for upstreams in self.routes.values()}
        self.homes = {
            home: {
                domain: known.setdefault(route, Upstreams(route, secrets.randbelow)) for domain, route in own.items()
            }
            for home, own in (homes or {}).items()
        }
        self.every = {id(upstreams): upstreams for upstreams in (*self.routes.values(), *known.values())}
        self.cache, self.most = cache, most
        self.asked = self.refused = 0
        self.retired = False  # other settings apply: failures are not kept for them
        self.sharing: Sharing | None = None
        self.exchanges: Counter[tuple[str, str]] = Counter()  # (upstream, rcode or "none")
        self.took: dict[tuple[str, str], Histogram] = {}  # (upstream, rcode) -> seconds
        self.failures: Counter[str] = Counter()
        self.all_down = 0
        self._plain: Counter[str] = Counter()  # sockets that no UpstreamExchange opened, by address
        self._streams: dict[tuple[int, str], Stream] = {}
        self._contexts = {
            number: reading.tls_context(upstreams.route.tls)
            for number, upstreams in self.every.items()
            if any(address.startswith(forward.TLS) for address in upstreams.addresses)
        }
        self._flights: dict[CacheKey, Flight] = {}
        self._asks: dict[Request, None] = {}  # in the order of their start
        self._ticker: asyncio.TimerHandle | None = (
            None  # one timer for all flights: a timer per flight costs more than its query
        )
        self._swept = 0.0
        self._told: set[str] = set()
        self._idents = array("H")
        self._batches = batches
        self._exchange: UpstreamExchange | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            module = native.load() if self._batches else None
            self._exchange = UpstreamExchange(self._loop, module) if module is not None else None
        return self._loop

    def route(self, question: bytes, home: bytes = b"") -> Upstreams | None:
        """Returns the upstreams for a question key; None without a route. home: as in rewriting.Rewritten."""
        routes = self.homes.get(home, {}) if home else self.routes
        if len(routes) > 1 or b"\0" not in routes:
            name = question[:-4]
            while name[0]:
                if name in routes:
                    return routes[name]
                name = name[1 + name[0] :]
        return routes.get(b"\0")

    @property
    def full(self) -> bool:
        """Whether the forwarder has no room for another question. A new question then counts as unanswered."""
        return len(self._asks) >= self.most

    def refresh(self) -> None:
        """Fetches the answers that the cache reports as due."""
        while self.cache.due:
            key = self.cache.due.pop()
            if key not in self._flights:
                self.cache.prefetched += 1
                self._start(key)

    def down(self) -> dict[str, bool]:
        """Returns upstream -> whether the upstream is down."""
        return {
            address: upstreams.is_down(address) for upstreams in self.every.values() for address in upstreams.addresses
        }

    def state(self, rejected: int) -> Forwarding:
        """Returns the figures for /metrics."""
        opened: Counter[tuple[str, str]] = Counter()
        reused: Counter[tuple[str, str]] = Counter()
        for stream in self._streams.values():
            at = forward.shown(stream.address), "tcp"
            opened[at] += stream.opened
            reused[at] += max(0, stream.sent - stream.opened)
        for address, count in self._plain.items():
            opened[forward.shown(address), "udp"] += count
        if self._exchange is not None:
            for mine, theirs in ((opened, self._exchange.opened), (reused, self._exchange.reused)):
                for (raw, port), count in theirs.items():
                    mine[forward.shown(f"{ip_address(raw)}#{port}"), "udp"] += count
        return Forwarding(
            {(forward.shown(to), rcode): count for (to, rcode), count in self.exchanges.items()},
            {(forward.shown(to), rcode): took for (to, rcode), took in self.took.items()},
            {forward.shown(to): count for to, count in self.failures.items()},
            {forward.shown(to): down for to, down in self.down().items()},
            reused,
            opened,
            self.all_down,
            rejected + self.refused,
        )

    def retire(self) -> None:
        """Accepts no new queries, finishes the queries in progress, then closes."""
        self.retired = True
        if self._flights or self._asks:
            self.loop.call_later(SWEEP_SECONDS, self.retire)
        else:
            self.close()

    def close(self) -> None:
        """Closes idle connections. A pending query ends as if its upstream did not answer."""
        for flight in list(self._flights.values()):
            flight.cut = True
            flight.finish(flight.fallback)
        for stream in self._streams.values():
            stream.close()
        for asked in list(self._asks):
            self._drop(asked)
        if self._ticker is not None:
            self._ticker.cancel()
        if self._exchange is not None:
            self._exchange.close()

    # Callers

    def ask(self, key: CacheKey, done: Done, source: bytes = b"") -> None:
        """Forwards a question. Calls `done` once, perhaps before `ask` returns, with the answer, and caches the answer.
        source: the client, for its share of the cache.

        The answer is None if no upstream answered within forward.DEADLINE and the cache has no stale answer. The answer
        is REFUSED if the name has no upstream.
        """
        flight = self._flights.get(key)
        if flight is None:
            # A flight may have ended since the caller checked.
            known = self.cache.get(key, time.monotonic()) if key in self.cache.entries else None
            if known is not None:
                done(known)
                return
            failure = self.cache.failed(key, time.monotonic()) if key in self.cache.failures else None
            if failure is not None:
                done(self._or_stale(key, failure))
                return
            flight = self._start(key, source)
            if flight is None:
                done(Upstreamed(REFUSED, EMPTY))
                return
            if flight.done:
                done(self._or_stale(key, flight.fallback))
                return
        # an expired answer in time is better than a fresh answer too late
        if self.cache.keep_stale and key in self.cache.entries:
            done = Once(done)
            self.loop.call_later(forward.STALE_PATIENCE, self._give_stale, key, done)
        flight.waiters.append(done)

    async def resolve(self, key: CacheKey) -> Upstreamed | None:
        """Returns the answer of `ask`, as a coroutine."""
        answer: asyncio.Future[Upstreamed | None] = self.loop.create_future()
        self.ask(key, lambda found: None if answer.done() else answer.set_result(found))
        return await answer

    def _start(self, key: CacheKey, source: bytes = b"") -> Flight | None:
        upstreams = self.route(key[0], key[3] if len(key) > 3 else b"")
        if upstreams is None or not upstreams.addresses:
            return None
        if upstreams.all_down():
            self.all_down += 1
        flight = self._flights[key] = Flight(self, key, upstreams, self.loop.time(), source)
        if self._ticker is None:
            self._ticker = self.loop.call_later(TICK_SECONDS, self._tick)
        flight.next()
        return flight

    def _give_stale(self, key: CacheKey, done: Once) -> None:
        if done.called:
            return
        answer = self.cache.stale(key, time.monotonic())
        if answer is not None:
            done(answer)

    def _or_stale(self, key: CacheKey, answer: Upstreamed | None) -> Upstreamed | None:
        if answer is None or not forward.is_final(answer):
            return self.cache.stale(key, time.monotonic()) or answer
        return answer

    # Flights

    def landed(self, flight: Flight, answer: Upstreamed | None) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        flight.fallback = answer
        if not (flight.cut or self.retired) and (answer is None or not forward.is_final(answer)):
            failure = answer or Upstreamed(SERVFAIL, EMPTY)
            cap = flight.upstreams.route.failure_cap
            self.cache.fail(flight.key, failure, time.monotonic(), cap)
            if self.sharing is not None and cap:
                self.sharing.tell(flight.key, failure, (0.0, 0.0), cap, flight.source)
        answer = self._or_stale(flight.key, answer) if flight.waiters else answer
        for done in flight.waiters:
            done(answer)

    def keep(self, flight: Flight, answer: Upstreamed) -> Upstreamed:
        route = flight.upstreams.route
        caps = route.positive_cap, route.negative_cap
        if self.sharing is not None and not self.retired:
            self.sharing.tell(flight.key, answer, caps, 0.0, flight.source)
        return self.cache.put(flight.key, answer, time.monotonic(), *caps, flight.source)

    def send(self, flight: Flight, address: str) -> Request:
        """Sends the query to one upstream and records the health of the upstream.

        An answer that arrives after the end of the flight also counts for the health.
        """
        asked = Request(flight, flight.upstreams, address, self.loop.time())
        self._asks[asked] = None
        self._exchanged(asked)
        return asked

    def _exchanged(self, asked: Request) -> None:
        """Sends the message of a request, with OPT or without."""
        self.asked += 1
        question, dnssec_ok, checking_disabled = asked.flight.key[:3]
        scheme, host, port = forward.split(asked.address)
        if scheme or asked.upstreams.route.force_tcp:
            self._over_stream(asked)
            return
        ident = self._ident()
        message = forward.build_ask(
            question, ident, dnssec_ok=dnssec_ok, checking_disabled=checking_disabled, edns=asked.edns
        )
        on_reply = partial(self._heard, asked)
        exchange = self._exchange
        if exchange is None or "%" in host:
            self._plain[asked.address] += 1
        asked.exchange = (
            UdpExchange(self.loop, host, port, question, ident, message, on_reply)
            if exchange is None or "%" in host  # exchange takes packed addresses, which have no scope
            else exchange.ask(packed(host), port, question, ident, message, on_reply)
        )

    def _ident(self) -> int:
        """Returns 16 unpredictable bits. The method draws many identifiers at a time."""
        if not self._idents:
            self._idents = array("H", secrets.token_bytes(2 * IDENTS))
        return self._idents.pop()

    def _over_stream(self, asked: Request) -> None:
        upstreams = asked.upstreams
        stream = self._streams.get((id(upstreams), asked.address))
        if stream is None:
            scheme, host, port = forward.split(asked.address)
            tls = upstreams.route.tls
            context = self._contexts[id(upstreams)] if scheme else None
            stream = self._streams[id(upstreams), asked.address] = Stream(
                asked.address, host, port, context, tls.servername, upstreams.route.expire
            )
        question, dnssec_ok, checking_disabled = asked.flight.key[:3]
        asked.exchange = stream.ask(
            question,
            dnssec_ok=dnssec_ok,
            checking_disabled=checking_disabled,
            on_reply=partial(self._heard, asked),
            edns=asked.edns,
        )

    def _heard(self, asked: Request, result: Upstreamed | OSError | None) -> None:
        if asked not in self._asks:
            return
        if result is None:  # truncated: the whole answer comes over TCP
            self._over_stream(asked)
            return
        if isinstance(result, Upstreamed) and asked.edns and forward.refuses_edns(result):
            self.exchanges[asked.address, RCODES[result.rcode]] += 1
            asked.edns, asked.refused = False, True
            self._exchanged(asked)
            return
        del self._asks[asked]
        asked.exchange = None  # breaks a reference cycle, which only the garbage collector would free
        address = asked.address
        if isinstance(result, OSError):
            self.exchanges[address, "none"] += 1
            self.silent(asked, str(result))
            asked.flight.on_reply(asked, None)
            return
        now = self.loop.time()
        took = now - asked.began
        asked.upstreams.answered(address, took)
        if (asked.refused and not forward.refuses_edns(result)) or (asked.edns and forward.ignores_edns(result)):
            asked.upstreams.lacks_edns(address, now)
        result = forward.for_clients(result)
        rcode = RCODES[result.rcode]
        self.exchanges[address, rcode] += 1
        histogram = self.took.get((address, rcode))
        if histogram is None:
            histogram = self.took[address, rcode] = Histogram(BOUNDS)
        histogram.observe(took)
        if address in self._told:
            self._told.discard(address)
            log.info("upstream answers again", upstream=address)
        asked.flight.on_reply(asked, result)

    def silent(self, asked: Request, why: str = "no answer in time") -> None:
        """Counts a time-out, once per question."""
        if asked.told:
            return
        asked.told = True
        address = asked.address
        asked.upstreams.silent(address)
        self.failures[address] += 1
        if asked.upstreams.is_down(address) and address not in self._told:
            self._told.add(address)
            log.warn("upstream does not answer", upstream=address, why=why)

    def _drop(self, asked: Request) -> None:
        if asked in self._asks:
            del self._asks[asked]
            if asked.exchange is not None:
                asked.exchange.close()
                asked.exchange = None

    def _tick(self) -> None:
        """Tries the next upstream when an upstream is silent for too long. Runs while a query is in progress."""
        now = self.loop.time()
        for flight in list(self._flights.values()):
            if flight.due <= now:
                flight.impatient()
        if now - self._swept >= SWEEP_SECONDS:
            self._swept = now
            self._sweep(now - forward.DEADLINE)
        under_way = self._asks or self._flights
        self._ticker = self.loop.call_later(TICK_SECONDS, self._tick) if under_way else None

    def _sweep(self, before: float) -> None:
        """Ends the exchanges that began before the time `before`."""
        for asked in list(self._asks):
            if asked.began > before:
                break
            self.exchanges[asked.address, "none"] += 1
            self.silent(asked)
            self._drop(asked)
        for flight in list(self._flights.values()):
            if flight.began > before:
                break
            flight.finish(flight.fallback)
