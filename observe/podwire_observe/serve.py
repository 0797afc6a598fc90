"""Answers readers over a unix socket that only root may use: one request of JSON, the answer as JSON lines. I/O."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from podwire_base.role import accept, logs, unixsocket

from . import query
from .fold import Fold
from .query import BadQuery, Query
from .record import Flow

log = logs.get("observe")
BEAT = 5.0  # seconds without a line after which a follower gets a beat
SILENT = 20.0  # seconds after which a follower that says nothing is gone: it says something each BEAT
REQUEST = 10.0  # seconds for a request
MOST_WAITING, MOST_READERS = 4096, 64
Line = Mapping[str, Any]


class Follower:
    """A reader that gets lines as they come. A reader that is too slow loses lines, and is told how many."""

    def __init__(self, wanted: Query) -> None:
        self.wanted, self.lines = wanted, asyncio.Queue[Line](MOST_WAITING)
        self.missed = 0

    def offer(self, line: Line) -> None:
        if self.lines.full():
            self.missed += 1
            return
        if self.missed:
            self.lines.put_nowait({"missed": self.missed})
            self.missed = 0
            if self.lines.full():
                self.missed += 1
                return
        self.lines.put_nowait(line)


class Server:
    """fold: what is asked about. on_readers: called when the first reader comes, and when the last one has gone."""

    def __init__(self, fold: Fold, mode: str, on_readers: Callable[[bool], None] = lambda _: None) -> None:
        self.fold, self.mode, self.on_readers = fold, mode, on_readers
        self.followers: set[Follower] = set()
        self.readers = 0

    def publish(self, flows: Iterable[Flow]) -> None:
        """Gives connections that are new or whose verdict changed to the followers."""
        for flow in flows:
            line: Line | None = None
            for one in self.followers:
                if query.wanted(flow, one.wanted):
                    line = line or {"flow": flow.to_json()}
                    one.offer(line)

    def tell(self, line: Line) -> None:
        for one in self.followers:
            one.offer(line)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        sock = writer.get_extra_info("socket")
        _, uid, _ = struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            if uid not in (0, os.geteuid()) or self.readers >= MOST_READERS:
                why = (
                    "only root may ask" if uid not in (0, os.geteuid()) else f"{MOST_READERS} readers are here already"
                )
                await _send(writer, [{"error": why}])
                return
            self.readers += 1
            if self.readers == 1:
                self.on_readers(True)
            try:
                await self._answer(reader, writer)
            finally:
                self.readers -= 1
                if not self.readers:
                    self.on_readers(False)
        except (OSError, TimeoutError, asyncio.LimitOverrunError):
            pass  # the reader has gone
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST):
                line = await reader.readline()
            wanted = query.parse(json.loads(line))
        except (ValueError, BadQuery) as err:
            await _send(writer, [{"error": str(err)}])
            return
        follower = Follower(wanted)
        if wanted.follow:
            self.followers.add(follower)  # before the answer, so that nothing falls between
        try:
            await _send(writer, query.answer(self.fold, wanted, self.mode, time.time()))
            if wanted.follow:
                async with asyncio.TaskGroup() as group:
                    listening = group.create_task(_listen(reader))
                    sending = group.create_task(_follow(follower, writer))
                    await asyncio.wait({listening, sending}, return_when=asyncio.FIRST_COMPLETED)
                    listening.cancel()
                    sending.cancel()
        except* OSError:
            pass
        finally:
            self.followers.discard(follower)


async def _listen(reader: asyncio.StreamReader) -> None:
    """Returns when the reader has gone or is silent for too long."""
    while True:
        try:
            async with asyncio.timeout(SILENT):
                if not await reader.read(4096):
                    return
        except TimeoutError:
            return


async def _follow(follower: Follower, writer: asyncio.StreamWriter) -> None:
    while True:
        try:
            async with asyncio.timeout(BEAT):
                lines = [await follower.lines.get()]
        except TimeoutError:
            lines = [{"beat": time.time()}]
        while not follower.lines.empty():
            lines.append(follower.lines.get_nowait())
        await _send(writer, lines)


async def _send(writer: asyncio.StreamWriter, lines: Iterable[Line]) -> None:
    for count, line in enumerate(lines, 1):
        writer.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        if count % 200 == 0:
            await writer.drain()
            await asyncio.sleep(0)  # the others are served meanwhile
    await writer.drain()


def listen(server: Server, path: Path) -> accept.Acceptor:
    """Opens the socket. Raises OSError."""
    return accept.streams(unixsocket.listen(path), server.serve)
