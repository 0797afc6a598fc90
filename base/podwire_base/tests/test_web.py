"""The page server, with requests over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import socket
from collections.abc import AsyncIterator, Mapping

import pytest

from podwire_base.patience import patient
from podwire_base.role import accept, logs, web
from podwire_base.role.web import Answer, Page, serve


async def exchange(port: int, request: bytes, host: str = "127.0.0.1") -> tuple[int, dict[str, str], str]:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request)
    head, _, body = (await asyncio.wait_for(reader.read(), patient(20))).decode().partition("\r\n\r\n")
    writer.close()
    status, *fields = head.split("\r\n")
    return int(status.split()[1]), dict(field.split(": ", 1) for field in fields), body


@contextlib.asynccontextmanager
async def site(pages: Mapping[str, Page], address: str = "127.0.0.1:0", shared: bool = False) -> AsyncIterator[int]:
    made = await serve(address, pages, shared=shared)
    try:
        yield made.addresses[0][1]
    finally:
        await made.cleanup()


def request(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: n1\r\n\r\n".encode()


async def slowly() -> Answer:
    await asyncio.sleep(0.01)
    return Answer(200, "späť", web.JSON, {"X-Weight": "3"})


def broken() -> Answer:
    raise KeyError("ours")


PAGES: dict[str, Page] = {"/health": lambda: Answer(200, "OK"), "/slow": slowly, "/broken": broken}


def test_pages_and_what_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs._Settings, "stream", said := io.StringIO())

    async def work() -> None:
        async with site(PAGES) as port:
            status, fields, body = await exchange(port, request("/health?verbose"))
            assert (status, body, fields["Content-Type"], fields["Connection"]) == (200, "OK", web.PLAIN, "close")
            status, fields, body = await exchange(port, request("/slow"))
            assert (status, body, fields["X-Weight"], fields["Content-Length"]) == (200, "späť", "3", "6")
            assert (await exchange(port, request("/slow", "HEAD")))[2] == ""
            assert (await exchange(port, request("/none")))[::2] == (404, "there are /health, /slow, /broken\n")
            status, fields, _ = await exchange(port, request("/health", "POST"))
            assert (status, fields["Allow"]) == (405, "GET, HEAD")
            assert (await exchange(port, b"nonsense\r\n\r\n"))[0] == 405
            assert (await exchange(port, request("/broken")))[0] == 500
            assert (await exchange(port, request("/health")))[0] == 200, "and it goes on"

    asyncio.run(work())
    assert "KeyError('ours')" in said.getvalue()


def test_one_page_for_every_path() -> None:
    async def work() -> None:
        async with site({"": lambda: Answer(503, "none here")}) as port:
            assert (await exchange(port, request("/whatever/it/is")))[::2] == (503, "none here")

    asyncio.run(work())


def test_a_head_that_is_too_long_or_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "SECONDS", 0.05)

    async def work() -> None:
        async with site(PAGES) as port:
            for said in (b"GET /" + b"x" * 2 * web.LARGEST, b"GET /health HTTP/1.1\r\n"):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(said)
                with contextlib.suppress(ConnectionResetError):  # the server has not read all data
                    assert await asyncio.wait_for(reader.read(), patient(20)) == b""
                writer.close()

    asyncio.run(work())


def test_both_families_and_a_port_that_is_taken() -> None:
    async def work() -> None:
        async with site(PAGES, "[::1]:0") as port:
            assert (await exchange(port, request("/health"), "::1"))[0] == 200
            async with site(PAGES, f"127.0.0.1:{port}"):
                with pytest.raises(OSError, match=rf"cannot listen on :{port}: Address already in use") as taken:
                    await serve(f":{port}", PAGES)
                assert taken.value.errno == errno.EADDRINUSE
        async with site(PAGES, f":{port}"):
            for host in ("127.0.0.1", "::1"):
                assert (await exchange(port, request("/health"), host))[0] == 200
        with pytest.raises(OSError, match=r"192\.0\.2\.1:80"):
            await serve("192.0.2.1:80", PAGES)

    asyncio.run(work())


def test_a_shared_port_goes_from_one_to_the_next() -> None:
    async def work() -> None:
        async with site(PAGES, shared=True) as port:
            second = await serve(f"127.0.0.1:{port}", {"/health": lambda: Answer(200, "second")}, shared=True)
        assert await web.took(f"127.0.0.1:{port}", "/health") is not None
        assert (await exchange(port, request("/health")))[2] == "second"
        assert await web.took(f"127.0.0.1:{port}", "/none") is None
        await second.cleanup()
        assert await web.took(f"127.0.0.1:{port}", "/health") is None

    asyncio.run(work())


def test_what_goes_answers_who_has_asked_and_waits_for_nobody_else() -> None:
    async def work() -> None:
        made = await serve("127.0.0.1:0", PAGES)
        port = made.addresses[0][1]
        asked = asyncio.create_task(exchange(port, request("/slow")))
        with socket.create_connection(("127.0.0.1", port)) as silent:
            await asyncio.sleep(0.005)
            began = asyncio.get_running_loop().time()
            await made.cleanup()
            assert asyncio.get_running_loop().time() - began < web.LEAVING
            assert (await asked)[0] == 200
            silent.settimeout(patient(20))
            assert silent.recv(1) == b""

    asyncio.run(work())


def test_without_free_descriptors_it_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "AGAIN", 0.01)
    refused: list[int] = []

    class Full(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            if not refused:
                refused.append(1)
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    async def work() -> None:
        listening = Full(socket.AF_INET, socket.SOCK_STREAM)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        made = web.Site([listening], PAGES)
        assert (await exchange(made.addresses[0][1], request("/health")))[0] == 200
        await made.cleanup()

    asyncio.run(work())
    assert refused
