"""An HTTP server with scripted answers, exact to the byte. It imitates an API server and the proxies in front of an API
server.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from podwire_base.kube.client.config import ClientConfig


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""

    @property
    def kind(self) -> str:
        """Returns the kind of a reflector's request: "stream", "watch" or "list"."""
        if self.query.get("watch") != "true":
            return "list"
        return "stream" if "sendInitialEvents" in self.query else "watch"


@dataclass
class Link:
    """One connection, as the handler of a request writes to it."""

    writer: asyncio.StreamWriter

    async def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        """Send a complete answer. A body that is not bytes is sent as JSON."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "text/plain" if isinstance(body, bytes) else "application/json"
        rows = {"Content-Type": kind, "Content-Length": str(len(raw)), **(headers or {})}
        self.writer.write(
            f"HTTP/1.1 {status} X\r\n".encode()
            + b"".join(f"{k}: {v}\r\n".encode() for k, v in rows.items())
            + b"\r\n"
            + raw
        )
        await self.writer.drain()

    async def chunks(self, *pieces: bytes, end: bool = True) -> None:
        """Send a chunked answer, one chunk for each piece. end=False leaves the stream open."""
        self.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            self.writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await self.writer.drain()
            await asyncio.sleep(0)
        if end:
            self.writer.write(b"0\r\n\r\n")
            await self.writer.drain()


Handler = Callable[[Request, Link], Awaitable[None]]


@dataclass
class Scripted:
    """Use it as `async with Scripted(handler) as server:`. `asked` has every request in order."""

    handler: Handler
    tls: ssl.SSLContext | None = None
    asked: list[Request] = field(default_factory=list)
    port: int = 0

    async def __aenter__(self) -> Scripted:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self._links):
            writer.transport.abort()

    _links: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def config(self, **more: Any) -> ClientConfig:
        return ClientConfig(self.url, **more)

    def kinds(self) -> list[str]:
        return [asked.kind for asked in self.asked]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._links.add(writer)
        try:
            while line := await reader.readline():
                method, target, _ = line.decode().split()
                headers: dict[str, str] = {}
                while row := (await reader.readline()).decode().strip():
                    name, _, value = row.partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                url = urlsplit(target)
                asked = Request(method, url.path, {k: v[0] for k, v in parse_qs(url.query).items()}, headers, body)
                self.asked.append(asked)
                await self.handler(asked, Link(writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._links.discard(writer)
            writer.close()
