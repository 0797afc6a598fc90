"""One client cannot take the DNS from the others: shares of pending queries, of the cache, and of TCP connections."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.message
import dns.rcode
import pytest

from podwire_base.patience import patient
from podwire_base.testing.ports import free_port
from podwire_dns import tcp, wire
from podwire_dns.cache import ZONE_SHARE, Cache, Upstreamed
from podwire_dns.config import DnsConfig
from podwire_dns.names import to_wire
from podwire_dns.pack import question
from podwire_dns.rtypes import A
from podwire_dns.server import Server
from podwire_dns.shares import FLOOR, OWN_SHARE, SHARE, Turns, packed
from podwire_dns.testing import builders
from podwire_dns.testing.cases import SVC
from podwire_dns.tests.test_server import until
from podwire_dns.waiting import AT_ONCE, MAX_PENDING

FLOOD, HONEST = "127.0.0.2", "127.0.0.3"


def test_the_turns_follow_a_model() -> None:
    """Random steps: the turns never lose or repeat a query, and hold the shares."""
    rand = random.Random(29)
    own, sources = b"own", [b"own", *(bytes([n]) for n in range(8))]
    turns: Turns[int] = Turns(80, frozenset([own]))
    waiting: dict[bytes, list[int]] = {source: [] for source in sources}
    started: list[bytes] = []
    held: Counter[bytes] = Counter()
    for step in range(20_000):
        source = rand.choice(sources[: 1 + step // 2000])
        if rand.random() < 0.5:
            share = 80 // (OWN_SHARE if source == own else SHARE)
            wanted = held.total() < 160 and (held[source] < FLOOR or (held[source] < share and held.total() < 80))
            assert turns.add(source, step) == wanted
            if wanted:
                waiting[source].append(step)
                held[source] += 1
        elif rand.random() < 0.6:
            taken = turns.take()
            if taken is None:
                assert not any(waiting.values())
            else:
                assert waiting[taken[0]].pop(0) == taken[1]
                started.append(taken[0])
        elif started:
            done = started.pop(rand.randrange(len(started)))
            turns.done(done)
            held[done] -= 1
        assert turns.total == held.total()


def test_each_source_has_its_turn() -> None:
    turns: Turns[int] = Turns(1000)
    for number in range(250):
        assert turns.add(b"flood", number)
    assert not turns.add(b"flood", 250)
    assert turns.add(b"one", 1)
    assert turns.add(b"two", 2)
    first = [taken[0] for _ in range(4) if (taken := turns.take())]
    assert set(first) == {b"flood", b"one", b"two"}, "nobody waits behind more than one query of each other client"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.0.0.1", bytes((10, 0, 0, 1))),
        ("fe80::1%eth0", socket.inet_pton(socket.AF_INET6, "fe80::1")),
        ("", b""),
        ("x", b""),
    ],
)
def test_sources(text: str, found: bytes) -> None:
    assert packed(text) == found


def nxdomain(name: str, zone: str) -> tuple[tuple[bytes, bool, bool], Upstreamed]:
    """An NXDOMAIN answer with the SOA of `zone`, whose owner is a pointer into the question."""
    key, apex = question(name, A), to_wire(zone)
    owner = (0xC000 | 12 + len(key) - 4 - len(apex)).to_bytes(2)
    soa = wire.soa(owner, b"\1a" + apex, b"\1b" + apex, 1, 60)
    return (key, False, False), Upstreamed(wire.NXDOMAIN, wire.COUNTS.pack(0, 1, 0) + soa)


def address(name: str) -> tuple[tuple[bytes, bool, bool], Upstreamed]:
    record = b"\xc0\x0c" + wire.FIXED.pack(A, wire.IN, 60, 4) + bytes(4)
    return (question(name, A), False, False), Upstreamed(wire.NOERROR, wire.COUNTS.pack(1, 0, 0) + record)


def test_made_up_names_of_a_zone_do_not_fill_the_cache() -> None:
    cache = Cache(capacity=160)
    for number in range(100):
        cache.put(*nxdomain(f"a{number}.others.test.", f"others{number}.test." if number % 2 else "test."), 0.0)
    for number in range(100):
        cache.put(*address(f"b{number}.test."), 0.0)
    before = {key for key in cache.entries if b"others" not in key[0]}
    for number in range(1000):
        cache.put(*nxdomain(f"r{number}.flood.example.", "flood.example."), 0.0, source=b"x")
    flooded = [key for key in cache.entries if b"\5flood" in key[0]]
    assert len(flooded) == 160 // ZONE_SHARE
    assert flooded[-1][0] == question("r999.flood.example.", A), "the newest are kept"
    assert before <= set(cache.entries)


def test_names_of_one_client_do_not_fill_the_cache_of_the_others() -> None:
    cache = Cache(capacity=100)
    for number in range(60):
        cache.put(*address(f"b{number}.test."), 0.0, source=b"honest")
    for number in range(1000):
        cache.put(*address(f"r{number}.example."), 0.0, source=b"flood")
    mine = [key for key in cache.entries if key[0].endswith(question("test.", A))]
    assert len(mine) == 60
    assert len(cache.entries) == 100
    alone = Cache(capacity=100)
    for number in range(1000):
        alone.put(*address(f"r{number}.example."), 0.0, source=b"only")
    assert len(alone.entries) == 100, "while the cache has room, a client may use all of it"


def test_the_quotas_hold_what_the_cache_holds() -> None:
    """Random puts, expiries and clears: the groups never keep a key that the cache lost, nor lose one that it has."""
    rand, cache, now = random.Random(4), Cache(capacity=40), 0.0
    for step in range(5000):
        now += rand.choice((0.0, 1.0, 30.0))
        name = f"n{rand.randrange(80)}.z{rand.randrange(4)}.test."
        key, answer = nxdomain(name, name.partition(".")[2]) if rand.random() < 0.5 else address(name)
        if rand.random() < 0.7:
            cache.put(key, answer, now, source=bytes([rand.randrange(3)]))
        elif rand.random() < 0.98:
            cache.get(key, now)
        else:
            cache.clear()
        if step % 50 == 0:
            cache.put(*address("probe."), now)
            known = {k for keys in cache._quotas._keys.values() for k in keys}
            assert known == set(cache.entries)
        assert len(cache.entries) <= 40


@contextlib.contextmanager
def bound(address: str, port: int, kind: int = socket.SOCK_DGRAM) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind((address, 0))
        sock.settimeout(patient(5))
        sock.connect(("127.0.0.1", port))
        yield sock


def serving(tmp_path: Path, work: Callable[[DnsConfig, Server], Awaitable[Any]], **more: Any) -> None:
    config = dataclasses.replace(
        builders.CONFIG, run_dir=tmp_path, listen=("127.0.0.1",), port=free_port(), notrack=False, **more
    )

    async def body() -> None:
        async with Server(config) as server:
            server.take_zone(builders.conformance_zone())
            await work(config, server)

    asyncio.run(body())


def made(name: str) -> bytes:
    return dns.message.make_query(name, "A").to_wire()


@pytest.mark.parametrize("batches", [True, False])
def test_slow_names_of_one_client_cost_the_others_nothing(tmp_path: Path, batches: bool) -> None:
    async def work(config: DnsConfig, server: Server) -> None:
        silent.setblocking(False)

        async def answering() -> None:
            while True:
                data, peer = await asyncio.get_running_loop().sock_recvfrom(silent, 4096)
                if b"honest" in data:
                    silent.sendto(data[:2] + b"\x81\x80" + data[4:], peer)

        answers = asyncio.create_task(answering())
        with bound(FLOOD, config.port) as flood, bound(HONEST, config.port) as honest:
            for number in range(MAX_PENDING):
                flood.send(made(f"slow{number}.example.com."))
                if not number % 100:
                    await asyncio.sleep(0.005)  # the socket's queue has room for some hundred queries
            await until(lambda: server.waiting.turns.refused > 0)
            assert server.waiting.turns.total <= MAX_PENDING // SHARE
            rcodes = []
            for number in range(20):
                honest.send(made(f"honest{number}.example.com."))
                answer = await asyncio.to_thread(honest.recv, 4096)
                rcodes.append(answer[3] & 15)
            assert rcodes == [0] * 20
        answers.cancel()

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        serving(tmp_path, work, upstreams=(f"127.0.0.1#{silent.getsockname()[1]}",), batches=batches)


def test_an_honest_query_waits_behind_one_turn_of_a_flood(tmp_path: Path) -> None:
    async def work(config: DnsConfig, server: Server) -> None:
        order: list[bytes] = []
        server.forwarder.ask = lambda key, done, source=b"": order.append(source)  # type: ignore[method-assign]
        pending = server.answerer.missed(made("www.example.com."), question("www.example.com.", A))
        assert pending is not None
        server.waiting.add([(pending, lambda answer: None, b"flood") for _ in range(400)])
        server.waiting.add([(pending, lambda answer: None, b"honest")])
        await until(lambda: order.count(b"flood") == 400)
        assert order.index(b"honest") <= AT_ONCE + 2

    serving(tmp_path, work, upstreams=("127.0.0.1#9",))


async def asked(port: int) -> dns.message.Message:
    query = dns.message.make_query(f"svc1.{SVC}", "A")
    return await dns.asyncquery.tcp(query, "127.0.0.1", port=port, source=HONEST, timeout=patient(5))


def test_idle_connections_of_one_client_leave_room(tmp_path: Path) -> None:
    async def work(config: DnsConfig, server: Server) -> None:
        service = server._tcp
        service.most = 40
        with contextlib.ExitStack() as stack:
            flood = [stack.enter_context(bound(FLOOD, config.port, socket.SOCK_STREAM)) for _ in range(60)]
            await until(lambda: len(service.connections) == 10)
            for _ in range(5):
                assert (await asked(config.port)).rcode() == dns.rcode.NOERROR
            await until(lambda: len(service.connections) == 10)
            flood[-1].sendall(len(made("svc1.")).to_bytes(2) + made("svc1."))
            assert await asyncio.to_thread(flood[-1].recv, 1) == b"\0", "the newest of its connections is served"
            flood[0].settimeout(1)
            with contextlib.suppress(ConnectionError):  # the oldest one was closed
                assert flood[0].recv(1) == b""

    serving(tmp_path, work)


def test_many_clients_with_idle_connections_leave_room(tmp_path: Path) -> None:
    async def work(config: DnsConfig, server: Server) -> None:
        service = server._tcp
        service.most = 20
        with contextlib.ExitStack() as stack:
            for number in range(30):
                stack.enter_context(bound(f"127.0.1.{number + 1}", config.port, socket.SOCK_STREAM))
            await until(lambda: len(service.connections) == 20)
            assert service.idle_seconds == tcp.TCP_IDLE_LEAST
            began = time.monotonic()
            assert (await asked(config.port)).rcode() == dns.rcode.NOERROR
            assert time.monotonic() - began < tcp.TCP_IDLE_LEAST, "it did not wait for another's time-out"
        await until(lambda: not service.connections)
        assert service.idle_seconds == tcp.TCP_IDLE_SECONDS

    serving(tmp_path, work)


def test_connections_that_wait_for_answers_are_not_closed_for_others(tmp_path: Path) -> None:
    async def work(config: DnsConfig, server: Server) -> None:
        service = server._tcp
        service.most = 8  # a share is two
        with contextlib.ExitStack() as stack:
            busy = [stack.enter_context(bound(FLOOD, config.port, socket.SOCK_STREAM)) for _ in range(2)]
            for sock in busy:
                sock.sendall(len(made("slow.example.com.")).to_bytes(2) + made("slow.example.com."))
            await until(lambda: sum(each.waiting for each in service.connections.values()) == 2)
            third = stack.enter_context(bound(FLOOD, config.port, socket.SOCK_STREAM))
            with contextlib.suppress(ConnectionError):
                assert await asyncio.to_thread(third.recv, 1) == b""
            assert service.refused == 1
            assert (await asked(config.port)).rcode() == dns.rcode.NOERROR

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        serving(tmp_path, work, upstreams=(f"127.0.0.1#{silent.getsockname()[1]}",))


def test_a_connection_that_never_pauses_lets_others_in(tmp_path: Path) -> None:
    async def work(config: DnsConfig, server: Server) -> None:
        query = made(f"svc1.{SVC}")
        with bound(FLOOD, config.port, socket.SOCK_STREAM) as flood:
            seen: list[int] = []
            handle = server.answerer.handle
            turn = 0

            def handled(data: bytes, *, udp: bool) -> Any:
                seen.append(turn)
                return handle(data, udp=udp)

            answers = {"handle": staticmethod(handled), "answered_by": staticmethod(lambda response: "")}
            server._tcp.answerer = type("Answers", (), answers)()
            flood.sendall((len(query).to_bytes(2) + query) * 400)
            async with asyncio.timeout(patient(10)):
                while len(seen) < 400:
                    turn += 1
                    await asyncio.sleep(0)
            assert max(Counter(seen).values()) <= 2 * tcp.IN_A_ROW

    serving(tmp_path, work)
