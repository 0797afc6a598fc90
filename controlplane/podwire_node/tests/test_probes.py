"""A probe that fails says what went wrong."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from podwire_node import probes


async def _run(words: list[str], _limit: float) -> int:
    if words == ["sleep"]:
        await asyncio.sleep(5)
    return int(words[0]) if words[0].isdecimal() else 0


def one(probe: Any) -> str:
    return asyncio.run(probes.once(probe, {"ports": [{"name": "web", "containerPort": 1}]}, "127.0.0.1", _run))


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
            return await probes.once({"httpGet": {"path": "/ready", "port": port}}, {}, "127.0.0.1", _run)
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
