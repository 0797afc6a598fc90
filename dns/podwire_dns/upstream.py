"""Sends queries to upstreams and collects their answers; what to send and believe is forward.py's."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

from dnslib import RCODE

from podwire_controlplane.client import logs

from . import forward
from .cache import Cache, CacheKey, Upstreamed
from .wire import SERVFAIL, Malformed

log = logs.get("dns")


class _Exchange(asyncio.DatagramProtocol):
    """One query to one upstream over a connected UDP socket of its own: a random port, and only that peer is heard."""

    def __init__(self, key: bytes, ident: int, done: asyncio.Future[Upstreamed | None]) -> None:
        self.key, self.ident, self.done = key, ident, done

    def datagram_received(self, data: bytes, addr: object) -> None:
        if self.done.done():
            return
        with suppress(Malformed):  # not an answer to our question: the right one may still come
            self.done.set_result(forward.read_answer(self.key, self.ident, data))

    def error_received(self, exc: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(exc)


class Forwarder:
    """`resolve` for any number of callers at once; callers with the same question share one flight."""

    def __init__(self, routes: Mapping[bytes, tuple[str, ...]], cache: Cache, policy: str = "sequential") -> None:
        """routes: a domain's upstreams by its name in wire form; the longest one that fits a question is asked."""
        self.routes = {domain: forward.Upstreams(addresses, policy, secrets.randbelow) for domain, addresses in routes.items()}
        self.cache = cache
        self.asked = 0
        self.exchanges: Counter[tuple[str, str]] = Counter()  # (upstream, rcode or "none")
        self.seconds: dict[str, float] = {}
        self._flights: dict[CacheKey, asyncio.Task[Upstreamed | None]] = {}
        self._told: set[str] = set()

    def route(self, question: bytes) -> forward.Upstreams | None:
        """The upstreams for a question key."""
        if len(self.routes) > 1:
            name = question[:-4]
            while name[0]:
                if name in self.routes:
                    return self.routes[name]
                name = name[1 + name[0]:]
        return self.routes.get(b"\0")

    async def refresh(self) -> None:
        """Fetch what the cache says is due."""
        while self.cache.due:
            key = self.cache.due.pop()
            if key not in self._flights:
                self.cache.prefetched += 1
                self._start(key)

    def _start(self, key: CacheKey) -> asyncio.Task[Upstreamed | None]:
        flight = self._flights[key] = asyncio.create_task(self._fly(key))
        flight.add_done_callback(lambda _: self._flights.pop(key, None))
        return flight

    async def resolve(self, key: CacheKey) -> Upstreamed | None:
        """The answer, kept in the cache; None where no upstream gave one within forward.DEADLINE, nor a stale one is left."""
        flight = self._flights.get(key)
        if flight is None:
            known = self.cache.get(key, time.monotonic())  # a flight may have landed since the caller looked
            if known is not None:
                return known
            flight = self._start(key)
        if self.cache.keep_stale and key in self.cache.entries:  # an expired answer now is worth more than a good one too late
            await asyncio.wait([flight], timeout=forward.STALE_PATIENCE)
            if not flight.done():
                return self.cache.stale(key, time.monotonic()) or await asyncio.shield(flight)
        answer = await asyncio.shield(flight)
        if answer is None or not forward.is_final(answer):
            return self.cache.stale(key, time.monotonic()) or answer
        return answer

    async def _fly(self, key: CacheKey) -> Upstreamed | None:
        upstreams = self.route(key[0])
        if upstreams is None:
            return None
        begin = time.monotonic()
        waiting: set[asyncio.Task[Upstreamed]] = set()
        fallback: Upstreamed | None = None
        try:
            for address, patience in upstreams.attempts(begin):
                left = forward.DEADLINE - (time.monotonic() - begin)
                if left <= 0:
                    break
                waiting.add(asyncio.create_task(self._ask(upstreams, address, key)))
                answer, waiting = await self._first(waiting, min(patience, left))
                if answer is not None and forward.is_final(answer):
                    self.cache.put(key, answer, time.monotonic())
                    return answer
                fallback = fallback or answer
            while waiting and fallback is None and (left := forward.DEADLINE - (time.monotonic() - begin)) > 0:
                answer, waiting = await self._first(waiting, left)
                if answer is not None and forward.is_final(answer):
                    self.cache.put(key, answer, time.monotonic())
                    return answer
                fallback = fallback or answer
            return fallback
        finally:
            for task in waiting:
                task.cancel()

    @staticmethod
    async def _first(waiting: set[asyncio.Task[Upstreamed]], patience: float,
                     ) -> tuple[Upstreamed | None, set[asyncio.Task[Upstreamed]]]:
        """The first answer within `patience` seconds, a final one where several came, and who is still waited for."""
        done, rest = await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        answers = [task.result() for task in done if task.exception() is None]
        final = [answer for answer in answers if forward.is_final(answer)]
        return next(iter(final or answers), None), rest

    async def _ask(self, upstreams: forward.Upstreams, address: str, key: CacheKey) -> Upstreamed:
        """Ask one upstream; raises OSError or TimeoutError. Its health is kept here, also when the answer comes late."""
        begin = time.monotonic()
        silent = asyncio.get_running_loop().call_later(
            max(upstreams.patience(address), forward.PATIENCE_LEAST), self._silent, upstreams, address)
        try:
            answer = await self._exchange(address, key)
        except OSError as err:
            silent.cancel()
            self._silent(upstreams, address, str(err))
            self.exchanges[address, "none"] += 1
            raise
        finally:
            silent.cancel()
        took = time.monotonic() - begin
        upstreams.answered(address, took)
        self.exchanges[address, str(RCODE.forward.get(answer.rcode, answer.rcode))] += 1
        self.seconds[address] = self.seconds.get(address, 0.0) + took
        if address in self._told:
            self._told.discard(address)
            log.info("upstream answers again", upstream=address)
        return answer

    def down(self) -> dict[str, bool]:
        """Every upstream, and whether it is down."""
        return {address: upstreams.is_down(address) for upstreams in self.routes.values() for address in upstreams.addresses}

    def _silent(self, upstreams: forward.Upstreams, address: str, why: str = "no answer in time") -> None:
        upstreams.silent(address)
        if upstreams.is_down(address) and address not in self._told:
            self._told.add(address)
            log.warn("upstream does not answer", upstream=address, why=why)

    async def _exchange(self, address: str, key: CacheKey) -> Upstreamed:
        host, _, port = address.partition("#")
        question, dnssec_ok, checking_disabled = key
        ident = secrets.randbits(16)
        message = forward.build_ask(question, ident, dnssec_ok=dnssec_ok, checking_disabled=checking_disabled)
        self.asked += 1
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Upstreamed | None] = loop.create_future()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Exchange(question, ident, done), remote_addr=(host, int(port)))
        try:
            transport.sendto(message)
            async with asyncio.timeout(forward.DEADLINE):
                answer = await done
        finally:
            transport.close()
        return answer if answer is not None else await self._exchange_tcp(host, int(port), question, ident, message)

    @staticmethod
    async def _exchange_tcp(host: str, port: int, question: bytes, ident: int, message: bytes) -> Upstreamed:
        async with asyncio.timeout(forward.DEADLINE):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(len(message).to_bytes(2) + message)
                data = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
            except asyncio.IncompleteReadError as err:
                raise OSError("the upstream closed the connection in its answer") from err
            finally:
                writer.close()
        try:
            return forward.read_answer(question, ident, data) or Upstreamed(SERVFAIL, b"\0" * 6)
        except Malformed as err:
            raise OSError(f"the upstream's answer over TCP is unreadable: {err}") from err
