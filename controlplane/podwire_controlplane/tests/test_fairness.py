"""Fairness between clients, and the limits that keep one client from stopping the server."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube.errors import StatusError
from podwire_base.testing.builders import pod, run
from podwire_controlplane.server import bodies
from podwire_controlplane.server.fairness import Fairness

from ..testing.servers import AUTHORITY, Server

PODS = "/api/v1/namespaces/default/pods"


def test_users_take_turns() -> None:
    """A user with a hundred requests does not delay another's one by more than a turn."""

    async def body() -> None:
        fairness, order = Fairness(seats=2, most=1), list[str]()

        async def ask(user: str) -> None:
            async with fairness.seat(user):
                order.append(user)
                await asyncio.sleep(0)

        loud = [asyncio.create_task(ask("loud")) for _ in range(100)]
        await asyncio.sleep(0)
        await asyncio.gather(ask("quiet"), *loud)
        assert order.index("quiet") < 3 and len(order) == 101
        assert (fairness.busy, fairness.waiting) == (0, 0)

    run(body())


def test_a_full_queue_is_429() -> None:
    async def body() -> None:
        fairness = Fairness(seats=1, most=1, queue=2)
        async with fairness.seat("a"):
            waiting = [asyncio.create_task(fairness._take("a")) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(StatusError) as caught:
                await fairness._take("a")
            assert (caught.value.code, caught.value.retry_after) == (429, 1) and fairness.refused == 1
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        assert (fairness.busy, fairness.waiting) == (0, 0)

    run(body())


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["serve", "cancel", "watch"])), max_size=30))
def test_no_seat_is_lost(requests: list[tuple[str, str]]) -> None:
    async def body() -> None:
        fairness = Fairness(seats=3, most=2, queue=4)

        async def ask(user: str, how: str) -> None:
            async with fairness.seat(user) as seat:
                assert fairness.busy <= 3 and fairness.taken[user] <= 2
                if how == "watch":
                    seat.leave()
                await asyncio.sleep(0)

        tasks = []
        for user, how in requests:
            tasks.append(asyncio.create_task(ask(user, how)))
            if how == "cancel":
                await asyncio.sleep(0)
                tasks[-1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (fairness.busy, fairness.waiting) == (0, 0)

    run(body())


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as own:
        yield own


def test_nobody_without_rights_has_a_body_read(server: Server) -> None:
    """The answer comes while the body is still on its way."""
    context = ssl.create_default_context(cadata=AUTHORITY.certificate)
    for token, code in (("reader-token", b"403"), ("", b"403"), ("wrong", b"401")):
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as link,
        ):
            sender = f"Authorization: Bearer {token}\r\n" if token else ""
            link.sendall(
                f"POST {PODS} HTTP/1.1\r\nHost: x\r\n{sender}Content-Type: application/yaml\r\n"
                "Content-Length: 3000000\r\n\r\na: [".encode()
            )
            assert link.recv(20).startswith(b"HTTP/1.1 " + code)


def test_long_yaml_does_not_stop_others(server: Server) -> None:
    """While 1 MB of YAML are read, other requests are answered."""
    text = b"a: [" + b"x," * 500_000 + b"]"
    slow = http.client.HTTPSConnection(
        "127.0.0.1", server.port, timeout=60, context=ssl.create_default_context(cadata=AUTHORITY.certificate)
    )
    head = {"Authorization": "Bearer admin-token", "Content-Type": "application/yaml"}
    slow.request("POST", PODS, text, head)
    worst = 0.0
    for _ in range(10):
        start = time.monotonic()
        server.good("GET", "/version")
        worst = max(worst, time.monotonic() - start)
    assert slow.getresponse().status in (400, 422)
    slow.close()
    assert worst < 2, "a request takes some 10 ms; alone, the text takes seconds"


def test_a_slow_body_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.2)
    link = http.client.HTTPSConnection(
        "127.0.0.1", server.port, timeout=20, context=ssl.create_default_context(cadata=AUTHORITY.certificate)
    )
    link.putrequest("POST", PODS)
    for name, value in (("Authorization", "Bearer admin-token"), ("Content-Length", "100")):
        link.putheader(name, value)
    link.endheaders(b"{")
    assert link.getresponse().status == 408
    link.close()


def test_floods_get_429_and_others_an_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    fairness = server.fairness
    monkeypatch.setattr(fairness, "queue", 0)

    async def fill() -> None:
        for _ in range(fairness.most):
            await fairness._take("reader")

    server.do(fill())
    with server.open("GET", PODS, token="reader-token") as answer:
        assert answer.status == 429 and answer.headers["Retry-After"] == "1"
        assert b"TooManyRequests" in answer.read()
    server.good("POST", PODS, pod("other"))
    assert b"apiserver_flowcontrol_rejected_requests_total 1" in server.text("/metrics")
