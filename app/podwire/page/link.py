"""The line between the two processes of `podwire ui`. I/O.

The keeper asks the nodes and the API server with the rights that it was started with. The server talks to the browser,
and has no rights. Between them lies a pair of sockets with JSON lines. The server can ask for three things only: a
moment, an explanation of a pair of a snapshot, and that snapshots come or do not come.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

LONGEST = 32 << 20  # bytes of a line
PATIENCE = 60.0  # seconds for an answer
Json = dict[str, Any]


class Gone(Exception):
    """The keeper does not answer."""


class Teller:
    """The server's end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self._queues: set[asyncio.Queue[Json]] = set()
        self._latest: Json | None = None
        self._count = 0

    async def run(self) -> None:
        """Reads until the keeper has gone."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._sock, limit=LONGEST)
        try:
            while raw := await reader.readline():
                self._take(json.loads(raw))
        finally:
            self._writer.close()
            self._writer = None
            for one in self._waiting.values():
                if not one.done():
                    one.set_exception(Gone("podwire ui is about to end"))

    def _take(self, line: Json) -> None:
        if "snapshot" in line:
            self._latest = line["snapshot"]
            for queue in self._queues:
                while not queue.empty():  # who is slow sees the latest
                    queue.get_nowait()
                queue.put_nowait(line["snapshot"])
        elif (waiting := self._waiting.pop(line.get("id", 0), None)) is not None and not waiting.done():
            waiting.set_result(line["answer"])

    def _send(self, line: Mapping[str, Any]) -> None:
        if self._writer is None:
            raise Gone("podwire ui is about to end")
        self._writer.write(json.dumps(line).encode() + b"\n")

    async def ask(self, what: str, value: Any) -> Json:
        """Returns an answer. Raises Gone, TimeoutError."""
        self._count += 1
        number, waiting = self._count, asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            self._send({"id": number, "what": what, "value": value})
            async with asyncio.timeout(PATIENCE):
                found: Json = await waiting
                return found
        finally:
            self._waiting.pop(number, None)

    async def snapshots(self) -> AsyncGenerator[Json, None]:
        """Yields snapshots as they come. Raises Gone."""
        queue: asyncio.Queue[Json] = asyncio.Queue()
        self._queues.add(queue)
        try:
            if len(self._queues) == 1:
                self._send({"what": "watch", "value": True})
            elif self._latest is not None:
                yield self._latest
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)
            if not self._queues:
                self._latest = None
                with contextlib.suppress(Gone):
                    self._send({"what": "watch", "value": False})


Answer = Callable[[str, Any], Awaitable[Json]]


async def serve(sock: socket.socket, answer: Answer, on_line: Callable[[Callable[[Json], None]], None]) -> None:
    """The keeper's end: answers until the server has gone. on_line: gets a function that sends a line."""
    reader, writer = await asyncio.open_unix_connection(sock=sock, limit=LONGEST)
    tasks: set[asyncio.Task[None]] = set()

    def send(line: Json) -> None:
        if not writer.is_closing():
            writer.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")

    async def one(line: Json) -> None:
        found = await answer(str(line.get("what")), line.get("value"))
        if "id" in line:
            send({"id": line["id"], "answer": found})

    on_line(send)
    try:
        while raw := await reader.readline():
            task = asyncio.create_task(one(json.loads(raw)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    finally:
        for task in tasks:
            task.cancel()
        writer.close()
