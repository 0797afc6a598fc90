"""Sends queries to upstreams and collects their answers; what to send and believe is forward.py's."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress

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

    def __init__(self, addresses: tuple[str, ...], cache: Cache) -> None:
        self.upstreams = forward.Upstreams(addresses)
        self.cache = cache
        self.asked = 0
        self._flights: dict[CacheKey, asyncio.Task[Upstreamed | None]] = {}
        self._told: set[str] = set()

    async def resolve(self, key: CacheKey) -> Upstreamed | None:
        """The answer, kept in the cache; None where no upstream gave one within forward.DEADLINE."""
        flight = self._flights.get(key)
        if flight is None:
            known = self.cache.get(key, time.monotonic())  # a flight may have landed since the caller looked
            if known is not None:
                return known
            flight = self._flights[key] = asyncio.create_task(self._fly(key))
            flight.add_done_callback(lambda _: self._flights.pop(key, None))
        return await asyncio.shield(flight)

    async def _fly(self, key: CacheKey) -> Upstreamed | None:
        begin = time.monotonic()
        waiting: set[asyncio.Task[Upstreamed]] = set()
        fallback: Upstreamed | None = None
        try:
            for address, patience in self.upstreams.attempts(begin):
                left = forward.DEADLINE - (time.monotonic() - begin)
                if left <= 0:
                    break
                waiting.add(asyncio.create_task(self._ask(address, key)))
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

    async def _ask(self, address: str, key: CacheKey) -> Upstreamed:
        """Ask one upstream; raises OSError or TimeoutError. Its health is kept here, also when the answer comes late."""
        begin = time.monotonic()
        silent = asyncio.get_running_loop().call_later(
            max(self.upstreams.patience(address), forward.PATIENCE_LEAST), self._silent, address)
        try:
            answer = await self._exchange(address, key)
        except OSError as err:
            silent.cancel()
            self._silent(address, str(err))
            raise
        finally:
            silent.cancel()
        self.upstreams.answered(address, time.monotonic() - begin)
        if address in self._told:
            self._told.discard(address)
            log.info("upstream answers again", upstream=address)
        return answer

    def _silent(self, address: str, why: str = "no answer in time") -> None:
        self.upstreams.silent(address)
        if self.upstreams.is_down(address) and address not in self._told:
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
