"""The client with several API servers: which server gets a request, which requests may be repeated, and how a dead
server is noticed."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from podwire_base.kube.client import http as client_http
from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import BadAnswer, Refused, Unreachable

from ..testing import recorded
from ..testing.builders import run
from ..testing.following import SERVICES, VERSION, WEB, following, hold, kinds, until
from ..testing.scripted import Link, Request, Scripted


@pytest.fixture
def dead() -> Iterator[str]:
    """An address on which nothing listens, and which no other process can take meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def test_the_next_server_is_asked_when_one_is_away(dead: str) -> None:
    async def good(asked: Request, link: Link) -> None:
        await link.answer(200, {"method": asked.method})

    async def body() -> None:
        async with Scripted(good) as live, ApiClient(ClientConfig(dead, others=(dead, live.url))) as api:
            for method in (
                "GET",
                "POST",
                "PATCH",
                "DELETE",
            ):  # nothing was sent to the dead server: even writes may be sent to another one
                assert await api.request(method, "/x") == {"method": method}
            assert api.server == live.url and len(live.asked) == 4
        async with ApiClient(ClientConfig(dead, others=(dead,))) as api:
            with pytest.raises(Unreachable) as caught:
                await api.get("/x")
            assert dead in caught.value.message
            assert caught.value.message.endswith(
                f": cannot connect to {dead.removeprefix('http://')}: Connection refused"
            )

    run(body())


def test_a_server_that_shuts_down_is_left_but_a_write_is_never_repeated() -> None:
    async def going(_asked: Request, link: Link) -> None:
        await link.answer(503, recorded.status(503, "ServiceUnavailable", "apiserver is shutting down"))

    async def cut(_asked: Request, link: Link) -> None:
        link.writer.transport.abort()

    async def good(_asked: Request, link: Link) -> None:
        await link.answer(201, {"kind": "Event"})

    async def body() -> None:
        for first in (going, cut):
            async with (
                Scripted(first) as one,
                Scripted(good) as two,
                ApiClient(ClientConfig(one.url, others=(two.url,))) as api,
            ):
                # the first may have done it: only the caller knows whether to say it again
                with pytest.raises((Refused, Unreachable)):
                    await api.create("/api/v1/namespaces/d/events", {})
                assert (await api.create("/api/v1/namespaces/d/events", {}))["kind"] == "Event"
                assert len(one.asked) == len(two.asked) == 1

    run(body())


def test_a_watch_goes_on_at_the_next_server() -> None:
    async def handler(asked: Request, link: Link) -> None:
        if asked.kind == "list":
            await link.answer(200, recorded.listed("Service", [WEB], VERSION))
        else:
            await hold(link)

    async def second(asked: Request, link: Link) -> None:
        assert asked.kind == "watch" and asked.query["resourceVersion"] == str(VERSION), "no new list is needed"
        await hold(link, recorded.frame("ADDED", recorded.service("late", "10.96.7.8", VERSION + 1)))

    async def body() -> None:
        async with contextlib.AsyncExitStack() as stack:
            one, two = await Scripted(handler).__aenter__(), await stack.enter_async_context(Scripted(second))
            api = await stack.enter_async_context(ApiClient(ClientConfig(one.url, others=(two.url,))))
            informer, events = await stack.enter_async_context(following(api, stream=False))
            await until(lambda: one.kinds() == ["list", "watch"])
            await one.__aexit__()
            await until(lambda: len(informer.objects) == 2)
            assert kinds(events) == [("ADDED", "web"), ("ADDED", "late")]

    run(body())


def test_connections_notice_that_the_other_end_lost_its_power(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    make = client_http._socket

    def noted(address: tuple[Any, ...]) -> socket.socket:
        made.append(make(address))
        return made[-1]

    async def handler(_asked: Request, link: Link) -> None:
        await hold(link, recorded.bookmark(VERSION))

    async def body() -> None:
        monkeypatch.setattr(client_http, "_socket", noted)
        async with (
            Scripted(handler) as server,
            ApiClient(server.config()) as api,
            contextlib.aclosing(api.watch(SERVICES, {})) as frames,
        ):
            await anext(frames)
            (sock,) = made
            assert sock.getpeername()[1] == server.port
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == client_http.DEAD_SECONDS * 1000
            idle, again, count = (
                sock.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + again * count == client_http.DEAD_SECONDS

    run(body())


def test_no_answer_a_refusal_and_a_strange_answer_are_three_types(dead: str) -> None:
    """Any other exception is a bug of ours, and is not caught with these."""

    async def strange(asked: Request, link: Link) -> None:
        if asked.path == "/refused":
            status = {"kind": "Status", "reason": "TooManyRequests", "message": "later"}
            await link.answer(429, status, {"Retry-After": "3"})
        else:
            await link.answer(200, b"{", {"Content-Type": "application/json"})

    async def body() -> None:
        async with Scripted(strange) as server, ApiClient(ClientConfig(server.url)) as api:
            with pytest.raises(Refused, match="later") as caught:
                await api.get("/refused")
            assert (caught.value.code, caught.value.reason, caught.value.retry_after) == (429, "TooManyRequests", 3)
            with pytest.raises(BadAnswer, match="cannot be read"):
                await api.get("/strange")
            with pytest.raises(TypeError):
                await api.create("/x", {"not JSON": object()})
        async with ApiClient(ClientConfig(dead)) as api:
            with pytest.raises(Unreachable):
                await api.get("/x")

    run(body())
