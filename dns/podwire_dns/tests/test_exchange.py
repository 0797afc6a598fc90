"""Sockets to upstreams: one query at a time on each, a few in a row; an answer to another question is ignored."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

from podwire_base.patience import patient
from podwire_dns import native
from podwire_dns.cache import Upstreamed
from podwire_dns.exchange import UpstreamExchange
from podwire_dns.forward import build_ask
from podwire_dns.names import to_wire
from podwire_dns.tests.test_batches import need_module

USES = 16  # of exchange.c


class World:
    """An UpstreamExchange, and an upstream that answers on command."""

    def __init__(self) -> None:
        need_module()
        self.exchange = UpstreamExchange(asyncio.get_running_loop(), native.load())
        self.asked = self.port = 0
        self.open()

    def open(self) -> None:
        """The upstream; the second time at the same port."""
        self.upstream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.upstream.bind(("127.0.0.1", self.port))
        self.upstream.setblocking(False)
        self.port = self.upstream.getsockname()[1]

    def ask(self) -> asyncio.Future[Upstreamed | OSError | None]:
        answer: asyncio.Future[Upstreamed | OSError | None] = asyncio.get_running_loop().create_future()
        self.asked += 1
        question, ident = to_wire(f"n{self.asked}.example.") + b"\0\1\0\1", self.asked
        message = build_ask(question, ident, dnssec_ok=False, checking_disabled=False)
        self.exchange.ask(socket.inet_aton("127.0.0.1"), self.port, question, ident, message, answer.set_result)
        return answer

    async def hear(self) -> tuple[bytes, tuple[str, int]]:
        found: tuple[bytes, tuple[str, int]] = await asyncio.get_running_loop().sock_recvfrom(self.upstream, 4096)
        return found

    def answer(self, data: bytes, peer: tuple[str, int], rcode: int = 0) -> None:
        end = data.index(b"\0", 12) + 5
        self.upstream.sendto(data[:2] + bytes((0x81, 0x80 | rcode)) + b"\0\1\0\0\0\0\0\0" + data[12:end], peer)


def run(work: Callable[[World], Awaitable[None]]) -> None:
    async def body() -> None:
        world = World()
        try:
            async with asyncio.timeout(patient(60)):
                await work(world)
        finally:
            world.exchange.close()
            world.upstream.close()

    asyncio.run(body())


def test_queries_under_way_have_a_port_each() -> None:
    async def work(world: World) -> None:
        waiting = [world.ask() for _ in range(100)]
        on_reply = [await world.hear() for _ in waiting]
        assert len({peer for _, peer in on_reply}) == 100
        assert len({data[:2] for data, _ in on_reply}) == 100
        for data, peer in reversed(on_reply):
            world.answer(data, peer)
        assert [await answer for answer in waiting] == [Upstreamed(0, b"\0" * 6)] * 100

    run(work)


def test_a_socket_serves_a_few_queries_in_a_row() -> None:
    async def work(world: World) -> None:
        ports = Counter[int]()
        for _ in range(5 * USES):
            answer = world.ask()
            data, peer = await world.hear()
            ports[peer[1]] += 1
            for _ in range(2):  # the second one arrives at a socket that waits for nothing, or for another answer
                world.answer(data, peer)
            assert await answer == Upstreamed(0, b"\0" * 6)
        assert max(ports.values()) <= USES

    run(work)


def test_a_socket_of_which_the_answer_never_came_is_not_used_again() -> None:
    async def work(world: World) -> None:
        silent = world.ask()
        late, (_, port) = await world.hear()
        world.exchange.forget(next(iter(world.exchange._open.values())))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", port))  # it is closed
        answer = world.ask()
        data, peer = await world.hear()
        world.answer(late, peer)  # to an earlier question
        world.answer(data[:1] + bytes((data[1] ^ 1,)) + data[2:], peer, rcode=3)  # another id
        world.answer(data, peer)
        assert await answer == Upstreamed(0, b"\0" * 6)
        assert not silent.done()

    run(work)


def test_a_closed_port_is_an_error_and_the_next_query_leaves() -> None:
    async def work(world: World) -> None:
        first = world.ask()
        world.answer(*await world.hear())
        await first
        world.upstream.close()
        assert isinstance(await world.ask(), ConnectionRefusedError), (
            "the first query's socket is used again and receives it"
        )
        world.open()
        again = world.ask()
        world.answer(*await world.hear())
        assert await again == Upstreamed(0, b"\0" * 6)

    run(work)
