"""GET /health, /ready and /metrics, on as many addresses as are asked for; small enough to need no web server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

Answer = tuple[int, str]  # status, body
REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}
SECONDS, LARGEST = 5.0, 8192


async def serve(address: str, pages: Mapping[str, Callable[[], Answer]]) -> asyncio.Server:
    """Listen on "host:port" ("[::1]:8080", ":8080"). Raises OSError: the port is taken."""
    host, _, port = address.rpartition(":")

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                status, body = _answer(head, pages)
                writer.write(
                    f"HTTP/1.1 {status} {REASONS[status]}\r\n"
                    "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
                    f"Content-Length: {len(body.encode())}\r\nConnection: close\r\n\r\n{body}".encode()
                )
                await writer.drain()
        writer.close()

    # A port shared with siblings: a new server must be able to start before the old one is told to go.
    return await asyncio.start_server(connection, host.strip("[]") or None, int(port), limit=LARGEST, reuse_port=True)


async def took(address: str, path: str) -> float | None:
    """Seconds that our own page took; None where it did not come."""
    host, _, port = address.rpartition(":")
    begin = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(SECONDS):
            reader, writer = await asyncio.open_connection(host.strip("[]") or "127.0.0.1", int(port))
            writer.write(f"GET {path} HTTP/1.1\r\nHost: podwire\r\n\r\n".encode())
            answer = await reader.readline()
            writer.close()
    except (OSError, TimeoutError):
        return None
    return asyncio.get_running_loop().time() - begin if b" 200 " in answer else None


def _answer(head: bytes, pages: Mapping[str, Callable[[], Answer]]) -> Answer:
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split()
    if len(words) != 3 or words[0] != "GET":
        return 405, "only GET\n"
    page = pages.get(words[1].partition("?")[0])
    return page() if page else (404, f"there are {', '.join(pages)}\n")
