"""Accept loops without free file descriptors, and connections that send nothing."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.patience import patient
from podwire_base.role import accept, logs, logtext, web
from podwire_base.role.accept import Acceptor, peer_of, streams
from podwire_base.role.peers import Waiting
from podwire_base.testing.descriptors import free_descriptors


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    monkeypatch.setattr(logs._Settings, "repeats", logtext.Repeats())
    monkeypatch.setattr(logs._Settings, "stream", stream := io.StringIO())
    return stream


def listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(100)
    return sock


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    writer.close()


def pages(sock: socket.socket) -> web.Site:
    return web.Site([sock], {"/": lambda: web.Answer(200, "OK\n")})


@pytest.mark.parametrize("serve", [lambda sock: streams(sock, echo), pages], ids=["streams", "pages"])
def test_a_full_process_says_so_and_serves_again(
    serve: Callable[[socket.socket], Any], said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio.start_server writes a traceback for each place of the queue, every second."""
    monkeypatch.setattr(accept, "AGAIN", 0.01)

    async def work() -> None:
        wrong = list[dict[str, Any]]()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
        sock = listening()
        clients = [socket.create_connection(sock.getsockname()) for _ in range(40)]
        with free_descriptors(3):
            serving = serve(sock)
            await asyncio.sleep(0.2)
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        loop = asyncio.get_running_loop()
        for client in clients:
            client.setblocking(False)
            assert await asyncio.wait_for(loop.sock_recv(client, 100), patient(20))
            client.close()
        serving.close()
        assert not wrong

    asyncio.run(work())
    lines = said.getvalue().splitlines()
    assert 1 <= len(lines) <= 6
    assert 'no connection can be accepted for a moment" listener=127.0.0.1:' in lines[0]
    assert 'error="Too many open files"' in lines[0]


@pytest.mark.parametrize("error", [errno.ECONNABORTED, errno.EPROTO, errno.ENOMEM, errno.EINVAL])
def test_an_error_of_accept_neither_ends_nor_spins_the_loop(
    error: int, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "AGAIN", 0.02)
    calls = 0

    class Failing(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            nonlocal calls
            calls += 1
            if calls <= 3:
                raise OSError(error, os.strerror(error))
            return super().accept()

    async def work() -> None:
        sock = Failing()
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        serving = streams(sock, echo)
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(b"hello\n")
        assert await asyncio.wait_for(reader.readline(), patient(20)) == b"hello\n"
        writer.close()
        serving.close()

    asyncio.run(work())
    assert calls <= 6
    assert ("no connection" in said.getvalue()) == (error in (errno.ENOMEM, errno.EINVAL))


def test_closing_while_it_waits_for_a_descriptor() -> None:
    async def work() -> None:
        sock = listening()
        with socket.create_connection(sock.getsockname()), free_descriptors(0):
            serving = Acceptor(sock, lambda *_: pytest.fail("accepted"))
            await asyncio.sleep(0.01)
            serving.close()
        assert sock.fileno() == -1
        await asyncio.sleep(0.01)

    asyncio.run(work())


def test_the_queue_of_a_socket_that_closes_is_served() -> None:
    async def work() -> None:
        sock, taken = listening(), list[socket.socket]()
        clients = [socket.create_connection(sock.getsockname()) for _ in range(3)]
        serving = Acceptor(sock, lambda connection, _: taken.append(connection))
        serving.pause()
        serving.drain()
        serving.close()
        assert len(taken) == 3
        for one in (*taken, *clients):
            one.close()

    asyncio.run(work())


def test_silent_clients_of_one_peer_do_not_keep_another_from_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "PER_PEER", 5)

    async def work() -> None:
        site = pages(sock := listening())
        address = sock.getsockname()
        honest = socket.create_connection(address, source_address=("127.0.0.2", 0))
        silent = [socket.create_connection(address) for _ in range(30)]
        loop = asyncio.get_running_loop()
        for one in silent[:25]:  # closed long before the limit of time
            one.setblocking(False)
            assert await asyncio.wait_for(loop.sock_recv(one, 1), patient(2)) == b""
        honest.setblocking(False)
        await loop.sock_sendall(honest, b"GET / HTTP/1.1\r\n\r\n")
        assert b"200 OK" in await asyncio.wait_for(loop.sock_recv(honest, 1000), patient(20))
        await site.cleanup()
        for one in (honest, *silent):
            one.close()

    asyncio.run(work())


def test_names_of_peers() -> None:
    assert peer_of(("10.0.0.1", 5)) == peer_of(("::ffff:10.0.0.1", 5, 0, 0)) == "10.0.0.1"
    assert peer_of(("fe80::1%eth0", 5, 0, 2)) == "fe80::1"
    assert peer_of("") == ""


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 30), st.booleans())))
def test_no_peer_loses_a_connection_while_another_has_more(steps: list[tuple[str, int, bool]]) -> None:
    waiting: Waiting[tuple[str, int]] = Waiting(4, 7)
    known = dict[tuple[str, int], None]()
    for peer, number, adds in steps:
        one = (peer, number)
        if not adds:
            assert waiting.remove(one) == (one in known)
            known.pop(one, None)
        elif one not in known:
            before = {p: sum(k[0] == p for k in known) for p in "abcd"}
            before[peer] += 1
            known[one] = None
            if late := waiting.add(peer, one):
                assert before[peer] > 4 or (len(known) > 7 and before[late[0]] == max(before.values()))
                assert late == next(k for k in known if k[0] == late[0]), "the oldest of its peer"
                del known[late]
            else:
                assert before[peer] <= 4 and len(known) <= 7
        assert sorted(waiting.all()) == sorted(known)
        assert {p: waiting.of(p) for p in "abcd"} == {p: sum(k[0] == p for k in known) for p in "abcd"}


LIMITS = """
import resource, asyncio, sys
from podwire_base.role.run import main
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, int(sys.argv[1])))

async def work():
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

print(main("some", work()))
"""


@pytest.mark.parametrize(("hard", "limit", "told"), [(300, "300", True), (5000, "5000", False)])
def test_a_role_raises_its_file_limit_or_says_what_it_has(hard: int, limit: str, told: bool) -> None:
    one = subprocess.run([sys.executable, "-c", LIMITS, str(hard)], check=True, capture_output=True, text=True)
    assert one.stdout.strip() == limit
    assert ("warn some" in one.stderr and f"limit={limit}" in one.stderr) == told
