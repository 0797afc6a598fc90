"""Feeder and server connected by their socket, without root: the server answers from the feed, and survives a lost
feeder.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.message
import dns.rcode
import pytest

from podwire_base.kube.client.reflector import Event
from podwire_base.patience import patient
from podwire_base.role.status import RoleStatus, read_all
from podwire_base.testing.ports import free_port
from podwire_dns.cache import Cache
from podwire_dns.config import DnsConfig
from podwire_dns.feeder import Feeder
from podwire_dns.forward import ROUNDS, Route
from podwire_dns.server import Server
from podwire_dns.testing import builders, cases
from podwire_dns.testing.cases import SVC
from podwire_dns.upstream import Forwarder


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(patient(10)):
        while not check():
            await asyncio.sleep(0.01)


async def feed(config: DnsConfig) -> tuple[Feeder, asyncio.Server]:
    feeder = Feeder(config)
    for kind, objects in (
        ("Namespace", cases.NAMESPACES),
        ("Service", cases.SERVICES),
        ("EndpointSlice", cases.SLICES),
    ):
        handle = feeder.handler(kind)
        for obj in objects:
            handle(Event("ADDED", "", obj))
    config.socket_path.unlink(missing_ok=True)
    return feeder, await asyncio.start_unix_server(feeder.serve, str(config.socket_path))


def run(tmp_path: Path, work: Callable[[DnsConfig, Server], Awaitable[Any]]) -> None:
    config = dataclasses.replace(builders.CONFIG, run_dir=tmp_path, listen=("127.0.0.1",), port=free_port())

    async def body() -> None:
        async with Server(config) as server:
            await work(config, server)

    asyncio.run(body())


async def ask(config: DnsConfig, name: str, rtype: str = "A", *, tcp: bool = False) -> dns.message.Message:
    send = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    return await send(dns.message.make_query(name, rtype), "127.0.0.1", port=config.port, timeout=patient(5))


def test_a_server_answers_when_it_has_the_zone(tmp_path: Path) -> None:
    """A restarted server would answer SERVFAIL for a moment, which clients take for an end."""
    config = dataclasses.replace(builders.CONFIG, run_dir=tmp_path, listen=("127.0.0.1",), port=free_port())

    async def body() -> None:
        feeder, listener = await feed(config)
        feeder.start_feeding()
        async with Server(config) as server:
            assert (await ask(config, f"svc1.{SVC}")).answer and server.fed
            listener.close()
            for writer in list(feeder.servers):
                writer.transport.abort()

    asyncio.run(body())


def test_a_wildcard_stands_for_addresses_that_come_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket of the wildcard alone would answer from another address, which the client does not take."""
    here = ["127.0.0.1"]
    monkeypatch.setattr("podwire_dns.host.beside", lambda _: list(here))
    monkeypatch.setattr("podwire_dns.server.OWN_SECONDS", 0.1)
    monkeypatch.setattr("podwire_dns.server.OLD_SOCKET_SECONDS", 0.1)
    config = dataclasses.replace(builders.CONFIG, run_dir=tmp_path, listen=("0.0.0.0",), port=free_port())

    def answered(address: str) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.3)
            sock.connect((address, config.port))
            sock.send(dns.message.make_query(f"svc1.{SVC}", "A").to_wire())
            try:
                return bool(sock.recv(4096))
            except OSError:
                return False

    async def body() -> None:
        feeder, listener = await feed(config)
        feeder.start_feeding()
        async with Server(config) as server:
            assert await asyncio.to_thread(answered, "127.0.0.1")
            assert not await asyncio.to_thread(answered, "127.0.0.7")
            here.append("127.0.0.7")
            await until(lambda: len(server.sockets()) == 4)
            assert await asyncio.to_thread(answered, "127.0.0.7")
            renewed = server.mended
            here.remove("127.0.0.7")
            await until(lambda: len(server.sockets()) == 3)
            assert server.mended > renewed, "the spare does not keep the old socket"
            assert await asyncio.to_thread(answered, "127.0.0.1")
            listener.close()
            for writer in list(feeder.servers):
                writer.transport.abort()

    asyncio.run(body())


def test_a_server_follows_its_feeder(tmp_path: Path) -> None:
    async def work(config: DnsConfig, server: Server) -> None:
        status = RoleStatus(tmp_path, "dns")
        server.report(status)
        assert read_all(tmp_path)["dns"]["reason"] == "NotSynced"
        assert (await ask(config, f"svc1.{SVC}")).rcode() == dns.rcode.SERVFAIL

        feeder, listener = await feed(config)
        await asyncio.sleep(0.2)
        assert (await ask(config, f"svc1.{SVC}")).rcode() == dns.rcode.SERVFAIL, "the feeder's lists are not whole yet"
        feeder.start_feeding()
        await until(lambda: server.fed)
        for tcp in (False, True):
            assert (await ask(config, f"svc1.{SVC}", tcp=tcp)).answer
        server.report(status)
        feeder.report(RoleStatus(tmp_path, "dns-feeder"))
        told = read_all(tmp_path)
        assert (told["dns"]["ready"], told["dns-feeder"]["ready"]) == (True, True)
        assert (
            told["dns"]["figures"]["answers"] == told["dns-feeder"]["figures"]["answers"] == len(feeder.builder.answers)
        )

        handle = feeder.handler("Service")
        before = server.answerer.data.serial
        handle(Event("ADDED", "", cases.service("fresh", ip="10.96.0.77")))
        await until(lambda: server.answerer.data.serial > before)
        assert (await ask(config, f"fresh.{SVC}")).answer
        served = server.answerer.data.answers
        assert {key: served.get(key) for key in feeder.builder.answers} == feeder.builder.answers
        assert len(served) == len(feeder.builder.answers)
        assert all(name in server.answerer.data.names for name in feeder.builder.names)

        listener.close()
        for writer in list(feeder.servers):
            writer.transport.abort()
        await until(lambda: not server.fed)
        server.report(status)
        assert read_all(tmp_path)["dns"]["reason"] == "Stale"
        assert (await ask(config, f"fresh.{SVC}")).answer, "the last zone stays in use"

        another, listener = await feed(config)
        another.start_feeding()
        await until(lambda: server.fed)
        assert (await ask(config, f"fresh.{SVC}")).rcode() == dns.rcode.NXDOMAIN, "the new feeder's zone replaces it"
        listener.close()

    run(tmp_path, work)


def test_a_feeder_that_talks_garbage_is_left_and_the_old_zone_stays(tmp_path: Path) -> None:
    async def work(config: DnsConfig, server: Server) -> None:
        feeder, listener = await feed(config)
        feeder.start_feeding()
        await until(lambda: server.fed)
        listener.close()
        config.socket_path.unlink(missing_ok=True)
        seen = 0

        async def garbage(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal seen
            seen += 1
            writer.write((b"\xff\xff\xff\xff", b"\0\0\0\x04abcd", b"\0\0\0\x01")[seen % 3])
            writer.close()

        bad = await asyncio.start_unix_server(garbage, str(config.socket_path))
        for writer in list(feeder.servers):
            writer.transport.abort()
        await until(lambda: seen >= 4)
        assert (await ask(config, f"svc1.{SVC}")).answer
        bad.close()

    run(tmp_path, work)


def test_burst_of_changes_is_one_delta(tmp_path: Path) -> None:
    async def work(config: DnsConfig, server: Server) -> None:
        feeder, listener = await feed(config)
        feeder.start_feeding()
        await until(lambda: server.fed)
        pushed: list[int] = []
        plain = feeder.push
        feeder.push = lambda: (pushed.append(1), plain())[1]  # type: ignore[method-assign,func-returns-value]  # counts
        handle = feeder.handler("EndpointSlice")
        for count in range(50):
            addresses = [cases.endpoint(f"10.244.7.{i}") for i in range(1, count + 2)]
            handle(Event("MODIFIED", "", cases.endpoint_slice("nobody", addresses)))
        await until(lambda: len(server.answerer.data.answers) == len(feeder.builder.answers) and bool(pushed))
        assert len(pushed) == 1
        answer = await ask(config, f"nobody.{SVC}", tcp=True)
        assert {r.address for r in answer.answer[0]} == {f"10.244.7.{i}" for i in range(1, 51)}
        listener.close()

    run(tmp_path, work)


@pytest.mark.parametrize("batches", [True, False])
def test_upstreams_that_refuse_are_given_up_at_once_and_counted_as_down(batches: bool) -> None:
    async def work() -> None:
        closed = tuple(f"127.0.0.1#{free_port()}" for _ in range(2))
        forwarder = Forwarder({b"\0": Route(closed)}, Cache(), batches=batches)
        key = (dns.message.make_query("www.example.com.", "A").to_wire()[12:], False, False)
        answers = await asyncio.gather(*(forwarder.resolve(key) for _ in range(20)))
        assert answers == [None] * 20
        assert forwarder.asked == len(closed) * ROUNDS, "twenty callers share one query"
        assert all(forwarder.down()[address] for address in closed)

    asyncio.run(work())
