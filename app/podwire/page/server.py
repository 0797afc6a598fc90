"""The page's server, on loopback addresses of this machine. It holds no rights, see link.py. I/O."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from . import guard
from .link import Gone

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
BEAT = 5.0  # seconds after which an idle stream says that it is there
MOST_STREAMS = 16
ATTEMPTS = 20  # ports that are tried until one is free in both families
Files = Mapping[str, tuple[str, bytes]]


class Source(Protocol):
    """What the server asks, see link.Teller."""

    async def ask(self, what: str, value: Any) -> dict[str, Any]: ...

    def snapshots(self) -> AsyncGenerator[dict[str, Any], None]: ...


def files() -> Files:
    """Returns path -> (type, content) of the page's files."""
    found = {}
    for path in sorted((Path(__file__).parent / "static").iterdir()):
        if path.suffix in KINDS:
            found[f"/{path.name}"] = KINDS[path.suffix], path.read_bytes()
    found["/"] = found.pop("/index.html")
    return found


def listen(port: int) -> list[socket.socket]:
    """Returns sockets at one port of 127.0.0.1 and ::1; of one of them where the machine lacks the other. port 0: any
    that is free. Raises OSError.
    """
    for attempt in range(ATTEMPTS):
        try:
            return _both(port)
        except OSError as err:
            if port or err.errno != errno.EADDRINUSE or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def _both(port: int) -> list[socket.socket]:
    found: list[socket.socket] = []
    missing: OSError | None = None
    with contextlib.ExitStack() as undo:
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                sock = undo.enter_context(contextlib.closing(socket.socket(family, socket.SOCK_STREAM)))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((address, port))
                sock.listen(64)
            except OSError as err:
                if err.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = err
                continue
            port = sock.getsockname()[1]
            found.append(sock)
        if not found:
            assert missing is not None
            raise missing
        undo.pop_all()
    return found


class Page:
    """Answers the browser. key: what its requests for data must carry."""

    def __init__(self, source: Source, key: str, port: int, content: Files) -> None:
        self.source, self.key, self.port, self.content = source, key, port, content
        self.opened = asyncio.Event()  # the page has come with the key
        self._streams = 0

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/api/stream", self._stream)
        app.router.add_get("/api/at", self._at)
        app.router.add_get("/api/explain", self._explain)
        app.router.add_get("/favicon.ico", _nothing)
        app.router.add_get("/{name:[a-z.]*}", self._file)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        why = guard.refused(request.method, request.path, request.headers, self.port, self.key)
        if why is not None:
            headers = {"WWW-Authenticate": "Bearer"} if why.status == 401 else {}
            answer: web.StreamResponse = web.json_response({"error": why.words}, status=why.status, headers=headers)
        else:
            try:
                answer = await handler(request)
            except web.HTTPException as err:
                answer = web.json_response({"error": err.reason}, status=err.status)
            except Gone as err:
                answer = web.json_response({"error": str(err)}, status=503)
            except TimeoutError:
                answer = web.json_response({"error": "the nodes did not answer in time"}, status=504)
        if not answer.prepared:
            answer.headers.update(guard.HEADERS)
        return answer

    async def _file(self, request: web.Request) -> web.Response:
        found = self.content.get(request.path)
        if found is None:
            raise web.HTTPNotFound(reason="no such file")
        return web.Response(body=found[1], content_type=found[0], charset="utf-8")

    async def _at(self, request: web.Request) -> web.Response:
        """Answers with the minute that ended `ago` seconds ago."""
        try:
            ago = float(request.query.get("ago", ""))
        except ValueError:
            ago = -1.0
        if not 0 <= ago <= 900:
            raise web.HTTPBadRequest(reason="ago: seconds, at most 900")
        answer = web.json_response(await self.source.ask("at", ago))
        answer.enable_compression()
        return answer

    async def _explain(self, request: web.Request) -> web.Response:
        """Answers with `podwire explain` for a pair that a snapshot has shown."""
        found = await self.source.ask("explain", request.query.get("pair", ""))
        if "unknown" in found:
            raise web.HTTPNotFound(reason="no snapshot of the last 15 minutes has this pair")
        return web.json_response(found)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if self._streams >= MOST_STREAMS:
            raise web.HTTPServiceUnavailable(reason=f"{MOST_STREAMS} pages are open already")
        self.opened.set()
        answer = web.StreamResponse(headers={**guard.HEADERS, "Content-Type": "text/event-stream; charset=utf-8"})
        packed = zlib.compressobj(6, wbits=31) if "gzip" in request.headers.get("Accept-Encoding", "") else None
        if packed is not None:
            answer.headers["Content-Encoding"] = "gzip"
        self._streams += 1
        try:
            await answer.prepare(request)
            await _send(answer, self.source, packed)
        except (ConnectionError, Gone):
            pass  # the reader or the keeper has gone
        finally:
            self._streams -= 1
        return answer


async def _send(answer: web.StreamResponse, source: Source, packed: Any) -> None:
    snapshots = source.snapshots()
    coming = asyncio.ensure_future(anext(snapshots))
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=BEAT)
            text = b": beat\n\n"
            if done:
                text = b"data: " + json.dumps(coming.result(), separators=(",", ":")).encode() + b"\n\n"
                coming = asyncio.ensure_future(anext(snapshots))
            await answer.write(packed.compress(text) + packed.flush(zlib.Z_SYNC_FLUSH) if packed else text)
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        await snapshots.aclose()


async def _nothing(_request: web.Request) -> web.Response:
    return web.Response(status=204)


@contextlib.asynccontextmanager
async def serving(page: Page, sockets: Sequence[socket.socket]) -> AsyncIterator[None]:
    """Serves while the context lasts."""
    runner = web.AppRunner(page.app(), access_log=None, shutdown_timeout=0.5, handler_cancellation=True)
    await runner.setup()
    try:
        for sock in sockets:
            await web.SockSite(runner, sock).start()
        yield
    finally:
        await runner.cleanup()
