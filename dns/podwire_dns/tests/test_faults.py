"""Internal faults: settings that fail half way, no room for more queries, unforeseen errors."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.exception
import dns.message
import dns.rcode
import pytest
from click.testing import CliRunner

from podwire_base.role import accept, logs, logtext
from podwire_base.role.status import RoleStatus, read_all
from podwire_base.role.web import took
from podwire_base.testing.descriptors import free_descriptors
from podwire_base.testing.ports import free_port
from podwire_dns import healing, host
from podwire_dns.cache import Cache
from podwire_dns.config import BadConfig, DnsConfig
from podwire_dns.feeder import Feeder
from podwire_dns.follow import Follower
from podwire_dns.forward import Route
from podwire_dns.healing import NodeState
from podwire_dns.main import command
from podwire_dns.rules import Rules
from podwire_dns.server import Server
from podwire_dns.sources import Sources
from podwire_dns.testing import builders
from podwire_dns.testing.cases import SVC
from podwire_dns.tests.test_server import ask, feed, until
from podwire_dns.upstream import Forwarder


def run(tmp_path: Path, work: Callable[[DnsConfig, Server], Awaitable[Any]], **more: Any) -> None:
    config = dataclasses.replace(
        builders.CONFIG, run_dir=tmp_path, listen=("127.0.0.1",), port=free_port(), notrack=False, **more
    )

    async def body() -> None:
        async with Server(config) as server:
            server.answerer.data = builders.conformance_zone()
            await work(config, server)

    asyncio.run(body())


def test_settings_that_fail_half_way_change_nothing(tmp_path: Path) -> None:
    health, ready, fresh = (f"127.0.0.1:{free_port()}" for _ in range(3))

    async def work(config: DnsConfig, server: Server) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            for changes in (
                {"health_address": "192.0.2.1:8080"},
                {"health_address": fresh, "port": taken.getsockname()[1]},
            ):
                with pytest.raises(OSError):
                    await server.reload(dataclasses.replace(config, ready_address=fresh, **changes))
                assert await took(health, "/health") is not None
                assert await took(ready, "/ready") is not None
                assert await took(fresh, "/ready") is None, "nothing of the new settings is left"
                assert (await ask(config, f"svc1.{SVC}")).answer
        assert server.reloads == 0
        await server.reload(dataclasses.replace(config, health_address=fresh))
        assert await took(fresh, "/health") is not None
        assert await took(health, "/health") is None

    run(tmp_path, work, health_address=health, ready_address=ready)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (".:99999 {\n}\n", "'99999' is not a port"),
        (". {\n health :99999\n}\n", "':99999' is not an address"),
        (". {\n kubernetes cluster.local {\n  ttl ²\n }\n}\n", "'²' is not a number"),
        (". {\n hosts /none {\n  ttl 99999999999\n  192.0.2.1 a.b\n }\n}\n", "ttl is 99999999999; it must be at most"),
    ],
)
def test_numbers_that_cannot_be_are_named(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "Corefile").write_text(text)
    with pytest.raises(BadConfig, match=r"Corefile line \d") as found:
        Sources(dataclasses.replace(builders.CONFIG, corefile=str(tmp_path / "Corefile"))).load()
    assert why in str(found.value)


@pytest.mark.parametrize("text", ["x:y", ":99999", "8080", ":", "127.0.0.1"])
def test_addresses_of_pages_that_cannot_be(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadConfig, match=r"health_address: .* is not an address; write HOST:PORT"):
        Sources(dataclasses.replace(builders.CONFIG, run_dir=tmp_path, health_address=text)).load()


def test_nobody_to_ask_is_said_with_the_address() -> None:
    port = free_port()
    done = CliRunner().invoke(command, ["query", "web", "--no-explain", "--listen", "127.0.0.1", "--port", str(port)])
    assert done.exit_code == 1
    assert f"no answer from 127.0.0.1 port {port}: Connection refused" in done.output


BROKEN = (  # a reload with any of them keeps the old settings whole
    ". {\n forward\n}\n",
    ". {\n log\n forwrd . 192.0.2.1\n}\n",
    ". {\n log\n cache {\n  succes 1\n }\n}\n",
    ". {\n log\n acl {\n  block\n }\n}\n",
    ". {\n log\n import none\n}\n",
    "2001:db8::1 {\n log\n}\n",
    ". {\n log\n}\n. {\n}\n",
    ". {\n autopath\n}\n",
)


def test_the_digest_is_that_of_the_corefile_in_force(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text(". {\n}\n")
    sources = Sources(dataclasses.replace(builders.CONFIG, corefile=str(path), follow=0.0))
    config, taken = sources.load(), list[DnsConfig]()
    good = sources.digest

    async def take(fresh: DnsConfig) -> None:
        if fresh.autopath:
            raise RuntimeError("nobody foresaw this")
        taken.append(fresh)

    async def work() -> None:
        following = asyncio.create_task(sources.follow(config, logs.get("dns"), take))
        await asyncio.sleep(0)
        for count, text in enumerate(BROKEN, 1):
            path.write_text(text)
            os.kill(os.getpid(), signal.SIGHUP)
            # mypy takes a default for an argument
            await until(lambda count=count: sources.failed == count)  # type: ignore[misc]
            assert sources.digest == good
            assert not taken
        path.write_text(". {\n log\n}\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: bool(taken))
        assert sources.digest not in ("", good)
        assert not following.done()
        following.cancel()

    asyncio.run(work())


def test_a_server_that_waits_for_a_feeder_whose_settings_change(tmp_path: Path) -> None:
    """It waits for a zone that will never be whole: it must come to the one that takes its place."""
    config = dataclasses.replace(builders.CONFIG, run_dir=tmp_path)

    async def work() -> None:
        whole = list[int]()
        follower = Follower(config.socket_path, lambda zone: whole.append(zone.ttl), lambda seconds: None)
        following = asyncio.create_task(follower.run())
        before, listener = await feed(config)
        await until(lambda: bool(before.waiting))
        listener.close()
        fresh, listener = await feed(dataclasses.replace(config, ttl=77))
        fresh.start_feeding()
        before.part()
        await until(lambda: whole == [77])
        assert not before.waiting
        assert not before.servers
        following.cancel()
        fresh.part()
        listener.close()

    asyncio.run(work())
    assert Feeder(config).waiting == set()


@pytest.mark.parametrize("batches", [True, False])
def test_a_silent_upstream_takes_only_so_many_sockets(batches: bool) -> None:
    async def work(upstream: str) -> None:
        forwarder = Forwarder({b"\0": Route((upstream,))}, Cache(), batches=batches, most=10)
        keys = [(dns.message.make_query(f"n{i}.example.com.", "A").to_wire()[12:], False, False) for i in range(50)]
        answers = [asyncio.create_task(forwarder.resolve(key)) for key in keys]
        done, waiting = await asyncio.wait(answers, timeout=0.2)
        assert {task.result() for task in done} == {None}
        assert (len(done), len(waiting), forwarder.asked) == (40, 10, 10)
        assert forwarder.state(0).rejected == 40
        forwarder.close()
        assert await asyncio.gather(*waiting) == [None] * 10

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        asyncio.run(work(f"127.0.0.1#{silent.getsockname()[1]}"))


def test_without_free_descriptors_tcp_says_so_and_answers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "AGAIN", 0.02)
    monkeypatch.setattr(logs._Settings, "repeats", logtext.Repeats())
    monkeypatch.setattr(logs._Settings, "stream", said := io.StringIO())

    async def work(config: DnsConfig, server: Server) -> None:
        wrong = list[dict[str, Any]]()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
        clients = [socket.socket() for _ in range(30)]
        with free_descriptors(2):
            for client in clients:
                client.connect(("127.0.0.1", config.port))
            await asyncio.sleep(0.2)
        for client in clients:
            client.close()
        assert (await ask(config, f"svc1.{SVC}", tcp=True)).answer
        assert not wrong

    run(tmp_path, work)
    assert 1 <= said.getvalue().count("no connection can be accepted") <= 6


@pytest.mark.parametrize("batches", [True, False])
def test_an_error_that_nobody_foresaw_costs_one_answer(
    tmp_path: Path, batches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Rules, key: bytes) -> None:
        raise KeyError("nobody foresaw this")

    async def work(config: DnsConfig, server: Server) -> None:
        server.answerer.rules = Rules(())
        monkeypatch.setattr(Rules, "find", fails)
        query = dns.message.make_query(f"missing.{SVC}", "A")
        for tcp in (False, True):
            with pytest.raises((dns.exception.Timeout, EOFError)):
                send = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
                await send(query, "127.0.0.1", port=config.port, timeout=0.3)
        assert sum(tally.errors for tally in server.state().tallies.values()) == 2
        server.answerer.rules = None
        for tcp in (False, True):
            assert (await ask(config, f"missing.{SVC}", tcp=tcp)).rcode() == dns.rcode.NXDOMAIN

    run(tmp_path, work, batches=batches)


@pytest.mark.parametrize("batches", [True, False])
def test_a_query_socket_that_fails_is_an_error_and_opened_anew(
    tmp_path: Path, batches: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    async def work(config: DnsConfig, server: Server) -> None:
        (udp,) = server._udp
        with contextlib.suppress(OSError):  # ENOTCONN; it wakes the thread. Nobody asked the thread to stop
            udp.sock.shutdown(socket.SHUT_RD)
        await until(lambda: bool(udp.failed))
        await until(lambda: server._udp != [udp])
        assert (await ask(config, f"svc1.{SVC}")).answer
        (acceptor,) = server._tcp.listeners
        acceptor.listener.shutdown(socket.SHUT_RDWR)
        await until(lambda: server._tcp.listeners != [acceptor])
        assert (await ask(config, f"svc1.{SVC}", tcp=True)).answer
        assert server.ready().status == 200

    run(tmp_path, work, batches=batches)
    told = capfd.readouterr().err
    assert told.count("a query socket failed, opening it anew") == 2


def test_a_query_socket_that_cannot_be_opened_anew_is_in_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(config: DnsConfig, server: Server) -> None:
        def fails(address: str, port: int, kind: int) -> None:
            raise OSError(98, "Address already in use")

        with monkeypatch.context() as patch:
            patch.setattr(host, "open_socket", fails)
            with contextlib.suppress(OSError):  # ENOTCONN; it wakes the thread
                server._udp[0].sock.shutdown(socket.SHUT_RD)
            await until(lambda: bool(server.broken))
            status = RoleStatus(tmp_path, "dns")
            server.report(status)
            told = read_all(tmp_path)["dns"]
            assert (told["ready"], told["reason"]) == (False, "NotServed")
            assert "no queries over UDP at 127.0.0.1" in told["message"]
            assert server.ready().status == 503
        await until(lambda: not server.broken)
        assert (await ask(config, f"svc1.{SVC}")).answer

    run(tmp_path, work)


def test_errors_of_the_node_are_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    def fails(*_: object) -> list[str]:
        raise OSError(1, "Operation not permitted")

    node = NodeState()
    monkeypatch.setattr(healing.log, "error", lambda text, **more: lines.append(str(more["error"])))
    monkeypatch.setattr(host, "ensure_addresses", fails)
    config = dataclasses.replace(builders.CONFIG, run_dir=tmp_path, notrack=False)
    for _ in range(3):
        node.look(config)
    assert len(lines) == 1
    assert "Operation not permitted" in node.problem
    monkeypatch.setattr(host, "ensure_addresses", list)
    node.look(config)
    assert (node.problem, node.mendings.count) == ("", 1)


def test_a_reload_that_keeps_an_address_keeps_its_sockets(tmp_path: Path) -> None:
    async def work(config: DnsConfig, server: Server) -> None:
        (udp,), (acceptor,) = server._udp, server._tcp.listeners
        health = f"127.0.0.1:{free_port()}"
        steps: tuple[dict[str, Any], ...] = (
            {"listen": ("127.0.0.1", "127.0.0.2")},
            {"listen": ("127.0.0.2", "127.0.0.1"), "ttl": 9},
            {"listen": ("127.0.0.1",)},
            {"health_address": health},
            {"health_address": health, "metrics_address": health},
            {"ready_address": health},
        )
        for changes in steps:
            await server.reload(dataclasses.replace(config, **changes))
            assert udp in server._udp
            assert acceptor in server._tcp.listeners
            assert len(server._udp) == len(server._tcp.listeners) == len(changes.get("listen", "1"))
            assert (await ask(config, f"svc1.{SVC}")).answer
            assert (await ask(config, f"svc1.{SVC}", tcp=True)).answer
        site, _ = server._web[health]
        assert await took(health, "/ready") is not None
        assert await took(health, "/health") is None
        assert site.addresses == [("127.0.0.1", int(health.rpartition(":")[2]))]
        other = dataclasses.replace(config, port=free_port())
        await server.reload(other)
        assert udp not in server._udp
        assert (await ask(other, f"svc1.{SVC}")).answer

    run(tmp_path, work)


def test_a_server_that_leaves_opens_no_socket_anew(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its end takes longer than a look at the sockets, because a connection is open."""
    tasks: list[asyncio.Task[None]] = []

    async def work(config: DnsConfig, server: Server) -> None:
        tasks.extend(server._tasks)
        _, writer = await asyncio.open_connection("127.0.0.1", config.port)
        await until(lambda: bool(server._tcp.connections))
        asyncio.get_running_loop().call_later(5, writer.close)

    run(tmp_path, work)
    told = capfd.readouterr().err
    assert "opening it anew" not in told
    assert all(task.cancelled() for task in tasks), "none ended by an error"
