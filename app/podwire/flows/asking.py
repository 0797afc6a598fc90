"""Asks the nodes' roles `observe` for connections, over their sockets on this machine. I/O."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podwire_observe.config import SOCKET
from podwire_observe.query import Query
from podwire_observe.serve import BEAT

FIRST, SILENT = 5.0, 20.0  # seconds without an answer after which a node counts as silent; in a stream
LONGEST = 1 << 20  # bytes of a line
Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Node:
    """A node and the socket of its role."""

    name: str
    socket: Path


@dataclass(frozen=True, slots=True)
class Told:
    """One line of a node's answer, or why it does not answer."""

    node: str
    line: Line
    silent: str = ""


def node_at(name: str, run_dir: Path) -> Node:
    return Node(name, run_dir / SOCKET)


async def ask(nodes: Sequence[Node], wanted: Query) -> AsyncIterator[Told]:
    """Yields what the nodes answer, as it comes. Ends when every node has ended or is silent."""
    queue: asyncio.Queue[Told | None] = asyncio.Queue(1 << 12)
    tasks = [asyncio.ensure_future(_one(node, wanted, queue)) for node in nodes]
    left = len(tasks)
    try:
        while left:
            told = await queue.get()
            if told is None:
                left -= 1
            else:
                yield told
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _one(node: Node, wanted: Query, queue: asyncio.Queue[Told | None]) -> None:
    why = ""
    try:
        why = await _read(node, wanted, queue)
    except FileNotFoundError:
        why = "the role observe does not run there"
    except TimeoutError:
        why = "no answer"
    except PermissionError:
        why = "only root may ask"
    except OSError as err:
        why = err.strerror or str(err)
    except ValueError as err:
        why = f"an answer that is no JSON: {err}"
    if why:
        await queue.put(Told(node.name, {}, why))
    await queue.put(None)


async def _read(node: Node, wanted: Query, queue: asyncio.Queue[Told | None]) -> str:
    """Returns why the answer ended before its end, "" if it did not."""
    async with asyncio.timeout(FIRST):
        reader, writer = await asyncio.open_unix_connection(node.socket, limit=LONGEST)
    beating = asyncio.ensure_future(_beat(writer))
    try:
        writer.write(json.dumps(wanted.to_json()).encode() + b"\n")
        await writer.drain()
        wait = FIRST
        while True:
            async with asyncio.timeout(wait):
                raw = await reader.readline()
            if not raw:
                return "it ended while it answered"
            line = json.loads(raw)
            if "error" in line:
                return str(line["error"])
            if line.get("end"):
                return ""
            wait = SILENT if wanted.follow else FIRST
            await queue.put(Told(node.name, line))
    finally:
        beating.cancel()
        writer.close()


async def _beat(writer: asyncio.StreamWriter) -> None:
    """Tells the node that this reader is still there."""
    with contextlib.suppress(OSError):
        while True:
            await asyncio.sleep(BEAT)
            writer.write(b"\n")
            await writer.drain()


def may_ask(nodes: Sequence[Node]) -> bool:
    """Whether this user may use the sockets."""
    return os.geteuid() == 0 or all(os.access(node.socket, os.R_OK | os.W_OK) for node in nodes)
