"""A probe that fails says what went wrong."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from podwire_base.kube.meta import Object
from podwire_node import grpchealth, probes


async def _run(words: list[str], _limit: float) -> int:
    if words == ["sleep"]:
        await asyncio.sleep(5)
    return int(words[0]) if words[0].isdecimal() else 0


def one(probe: Any) -> str:
    return asyncio.run(probes.attempt(probe, {"ports": [{"name": "web", "containerPort": 1}]}, "127.0.0.1", _run))


@pytest.fixture
def closed() -> Iterator[int]:
    """A port on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def test_commands_and_connections(closed: int) -> None:
    assert one({"exec": {"command": ["0"]}}) == ""
    assert one({"exec": {"command": ["3"]}}) == "the command ended with status 3"
    assert one({"exec": {"command": ["sleep"]}, "timeoutSeconds": 0.05}) == "no answer within 0.05 s"
    assert "refused" in one({"tcpSocket": {"port": closed}}).lower() or "Connect" in one(
        {"tcpSocket": {"port": closed}}
    )
    assert "invalid literal" in one({"tcpSocket": {"port": "nope"}})
    assert one({"httpGet": {"port": closed}})


@pytest.mark.parametrize(
    ("status", "words"), [(200, ""), (399, ""), (503, "HTTP status 503"), (404, "HTTP status 404")]
)
def test_the_status_of_an_http_probe(status: int, words: str) -> None:
    async def work() -> str:
        app = web.Application()

        async def answer(_: web.Request) -> web.Response:
            return web.Response(status=status)

        app.router.add_get("/ready", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            return await probes.attempt({"httpGet": {"path": "/ready", "port": port}}, {}, "127.0.0.1", _run)
        finally:
            await runner.cleanup()

    assert asyncio.run(work()) == words


def test_the_last_error_is_handed_on_when_the_health_changes() -> None:
    heard: list[tuple[bool, str]] = []

    async def work() -> None:
        results = iter(["0", "7", "7", "0"])

        async def run(_words: list[str], _limit: float) -> int:
            if (status := next(results, "")) == "":
                raise asyncio.CancelledError
            return int(status)

        probe = {"exec": {"command": ["x"]}, "periodSeconds": 0.001, "failureThreshold": 2}
        await probes.watch(probe, {}, "127.0.0.1", run, lambda healthy, why: heard.append((healthy, why)))

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(work())
    assert heard == [(True, ""), (False, "the command ended with status 7"), (True, "")]


# ---- gRPC


def _answer(message: bytes, *, data: bool = True) -> bytes:
    """Return the frames of a server's answer; without `data` the call failed, and there are trailers alone."""
    settings, headers = grpchealth.frame(4, 0, 0, b""), grpchealth.frame(1, 4, 1, b"\x88")
    body = grpchealth.frame(0, 0, 1, b"\0" + len(message).to_bytes(4, "big") + message) if data else b""
    return settings + grpchealth.frame(6, 0, 0, b"12345678") + headers + body + grpchealth.frame(1, 5, 1, b"\x88")


async def _grpc(answer: bytes, probe: Object) -> tuple[str, bytes]:
    got, done = bytearray(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await reader.readuntil(b"Check"))
        writer.write(answer)
        await writer.drain()
        got.extend(await reader.read())  # the client closes
        writer.close()
        done.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        said = await probes.attempt({"grpc": {"port": port, **probe}}, {}, "127.0.0.1", _run)
        await done.wait()
    return said, bytes(got)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_answer(b"\x08\x01"), ""),
        (_answer(b"\x08\x02"), "service unhealthy (responded with 'NOT_SERVING')"),
        (_answer(b""), "service unhealthy (responded with 'UNKNOWN')"),
        (_answer(b"", data=False), "the server knows no such service, or has no health service"),
        (grpchealth.frame(7, 0, 0, bytes(8)), "the server broke off the call"),
    ],
    ids=["serving", "not serving", "unknown", "no service", "goaway"],
)
def test_a_grpc_probe_asks_the_health_service(answer: bytes, words: str) -> None:
    """It counted as healthy, whatever the server said."""
    said, got = asyncio.run(_grpc(answer, {"service": "s" * 200}))
    assert said == words
    assert b"/grpc.health.v1.Health/Check" in got and b"\x0a\xc8\x01" + b"s" * 200 in got


def test_a_server_that_speaks_no_grpc_is_unhealthy() -> None:
    said, _ = asyncio.run(_grpc(b"", {"timeoutSeconds": 1}))
    assert said == "no answer within 1 s"


def test_a_probe_without_a_known_action_is_unhealthy() -> None:
    assert "no action" in asyncio.run(probes.attempt({}, {}, "127.0.0.1", _run))


def test_a_startup_probe_ends_with_its_first_success() -> None:
    heard: list[bool] = []

    async def work() -> None:
        results = iter([7, 0])

        async def run(_words: list[str], _limit: float) -> int:
            return next(results)

        probe = {"exec": {"command": ["x"]}, "periodSeconds": 0.001, "failureThreshold": 5}
        await probes.watch(probe, {}, "127.0.0.1", run, lambda healthy, _why: heard.append(healthy), once=True)

    asyncio.run(work())
    assert heard == [True]
