"""Serves DNS over TCP. A connection may have several pending queries; answers may be out of order (RFC 7766)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any

from .answer import Answerer, Pending
from .observer import Observer
from .udp import Send

MAX_CONNECTIONS = 1000
TCP_IDLE_SECONDS = 10.0
TAKE_SECONDS = 0.02
Listener = tuple[socket.socket, asyncio.Server]


class TcpService:
    """Accepts TCP connections and answers their queries. `wait(pending, send)` sends the question to an upstream."""

    def __init__(
        self, answerer: Answerer, observer: Observer, wait: Callable[[Pending, Send], None], most: int
    ) -> None:
        """most: the maximum number of connections; the service closes further connections at once."""
        self.answerer, self.observer, self._wait, self.most = answerer, observer, wait, most
        self.listeners: list[Listener] = []
        self.connections: set[asyncio.StreamWriter] = set()
        self._late: set[asyncio.Task[None]] = set()

    async def listen(self, sock: socket.socket) -> None:
        self.listeners.append((sock, await asyncio.start_server(self._connection, sock=sock)))

    async def close_listeners(self, listeners: list[Listener]) -> None:
        """Closes the listeners after accepting the connections in their queues; closing alone would reset these."""
        loop = asyncio.get_running_loop()
        for sock, _ in listeners:
            loop.remove_reader(sock.fileno())
        if listeners:
            await asyncio.sleep(
                TAKE_SECONDS
            )  # this method takes over the accepted connections, because asyncio forgets them with the listener
        for sock, listener in listeners:
            with contextlib.suppress(OSError):  # the queue is empty
                while True:
                    taken, _ = sock.accept()
                    taken.setblocking(False)
                    task = asyncio.create_task(self._taken(taken))
                    self._late.add(task)
                    task.add_done_callback(self._late.discard)
            listener.close()

    async def _taken(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            await self._connection(*await asyncio.open_connection(sock=sock))

    async def leave(self, seconds: float) -> None:
        """Waits up to `seconds` for connections to end, then closes the rest. No answer is truncated."""
        end = time.monotonic() + seconds
        while (self.connections or self._late) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        open_still = list(self.connections)
        for writer in open_still:
            writer.close()  # sends its buffer first
        if open_still:
            await asyncio.wait([asyncio.create_task(_closed(writer)) for writer in open_still], timeout=seconds)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self.connections) >= self.most:
            writer.close()
            return
        self.connections.add(writer)
        peer = writer.get_extra_info("peername") or ("",)
        waiting, none_left = 0, asyncio.Event()
        try:
            while True:
                async with asyncio.timeout(TCP_IDLE_SECONDS):
                    data = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                send = self._sender(writer, peer, data)
                try:
                    answer = self.answerer.handle(data, udp=False)
                except Exception as err:  # one message must never stop the service
                    self.observer.failed("tcp", peer, data, err)
                    return
                if isinstance(answer, Pending):
                    waiting += 1

                    def answered(late: bytes, send: Send = send) -> None:
                        nonlocal waiting
                        send(late)
                        waiting -= 1
                        none_left.set()

                    self._wait(answer, answered)
                elif answer is None:
                    return
                else:
                    send(answer)
                async with asyncio.timeout(TCP_IDLE_SECONDS):
                    await writer.drain()
        except asyncio.IncompleteReadError:
            while waiting:  # the client sends no more queries; its last answers are outstanding
                none_left.clear()
                await none_left.wait()
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the client left or is too slow, or the server ends, which asyncio would log as an error
        finally:
            self.connections.discard(writer)
            writer.close()

    def _sender(self, writer: asyncio.StreamWriter, peer: tuple[Any, ...], query: bytes) -> Send:
        began = time.monotonic()

        def send(answer: bytes) -> None:
            self.observer.answered("tcp", peer, query, answer, began)
            if not writer.is_closing():
                writer.write(len(answer).to_bytes(2) + answer)

        return send


async def _closed(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        await writer.wait_closed()
