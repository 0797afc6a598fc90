"""The serving process: UDP and TCP on the cluster DNS addresses, from memory.

A thread per UDP address does nothing but receive, look up and send; what must wait (forwarding, TCP, the feed) runs in the
main thread's event loop. The zone comes from the feeder; while that is away the last zone serves, and before the first whole
one cluster names answer SERVFAIL, never NXDOMAIN.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from podwire_controlplane.client import logs
from podwire_controlplane.client.rolestatus import RoleStatus

from . import feed, host, metrics, names, native, web
from .answer import Answerer, Pending, ZoneData
from .cache import Cache
from .clients import Clients
from .config import DnsConfig
from .observer import Observer
from .udp import Send, UdpLoop
from .upstream import Forwarder

log = logs.get("dns")
MAX_PENDING = 2000  # queries that wait for upstreams; more are answered SERVFAIL at once
MAX_CONNECTIONS = 1000
TCP_IDLE_SECONDS = 10.0
RECONNECT_FIRST, RECONNECT_LAST = 0.05, 1.0
STATUS_SECONDS = 1.0
UDP_BUFFER = 1 << 20
LEAVE_SECONDS = 0.5
PREFETCH_SECONDS = 0.25
HINFO_IN = b"\0\x0d\0\x01"
SWITCH_SECONDS = 0.0002  # how long the feed may keep a query waiting for the interpreter

try:
    VERSION = version("podwire")
except PackageNotFoundError:  # run from a source tree
    VERSION = "unknown"


class Server:
    """`async with Server(config) as server` inside the node's network namespace; it serves until the block ends."""

    def __init__(self, config: DnsConfig) -> None:
        self.config = config
        routes = config.routes()
        cache = Cache(keep_stale=config.serve_stale, prefetch=config.prefetch, positive_cap=config.cache_positive,
                      negative_cap=config.cache_negative)
        data = ZoneData(config.zones(), config.ttl, config.pods)
        self.answerer = Answerer(data, cache, time.monotonic, _below, bool(routes), config.autopath)
        self.forwarder = Forwarder(routes, cache, config.policy)
        self.observer = Observer(Clients(config.run_dir / "cni" / "leases") if config.log_queries else None)
        self.fed = self.leaving = False
        self.dropped = 0
        self.connections: set[asyncio.StreamWriter] = set()
        self._pending: set[asyncio.Task[None]] = set()
        self._udp: list[UdpLoop] = []
        self._tcp: list[asyncio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Server:
        loop = asyncio.get_running_loop()

        def later(pending: Pending, send: Send) -> None:
            loop.call_soon_threadsafe(self._wait_for_upstream, pending, send)

        # A line for each query is Python's work anyway, packet by packet.
        batches = native.load() if self.config.batches and not self.config.log_queries else None
        for address in self.config.addresses():
            sock = _socket(address, self.config.port, socket.SOCK_DGRAM)
            self._udp.append(UdpLoop(sock, self.answerer, later, batches, self.observer))
            listener = _socket(address, self.config.port, socket.SOCK_STREAM)
            self._tcp.append(await asyncio.start_server(self._connection, sock=listener))
        for udp in self._udp:
            udp.thread.start()
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._housekeeping())]
        for address, path in self._pages():
            self._tcp.append(await web.serve(address, path))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave at once: no new query is taken, answers under way get a moment, none is cut in half."""
        for udp in self._udp:
            with contextlib.suppress(OSError):  # ENOTCONN, but it wakes the thread
                udp.sock.shutdown(socket.SHUT_RDWR)
            udp.thread.join(LEAVE_SECONDS)
        for tcp_listener in self._tcp:
            tcp_listener.close()
        if self._pending:
            await asyncio.wait(self._pending, timeout=LEAVE_SECONDS)
        open_still = list(self.connections)
        for writer in open_still:
            writer.close()  # sends what is in its buffer first
        if open_still:
            await asyncio.wait([asyncio.create_task(_closed(writer)) for writer in open_still], timeout=LEAVE_SECONDS)
        for task in self._tasks:
            task.cancel()
        for udp in self._udp:
            udp.sock.close()

    async def lame_duck(self) -> None:
        """Say that we are leaving, and answer on for a while, so that whoever sends queries here can stop in time."""
        self.leaving = True
        if self.config.lame_duck:
            log.info("leaving, answers go on for a while", seconds=self.config.lame_duck)
            await asyncio.sleep(self.config.lame_duck)

    # What we say of ourselves

    def _pages(self) -> Iterator[tuple[str, dict[str, Callable[[], web.Answer]]]]:
        """(address, pages) of each HTTP address; what shares an address shares its listener."""
        config = self.config
        found: dict[str, dict[str, Callable[[], web.Answer]]] = {}
        for address, path, page in ((config.health_address, "/health", lambda: (200, "OK")),
                                    (config.ready_address, "/ready", self.ready),
                                    (config.metrics_address, "/metrics", lambda: (200, metrics.render(self.state())))):
            if address:
                found.setdefault(address, {})[path] = page
        yield from found.items()

    def ready(self) -> web.Answer:
        """200 while queries are welcome; the text says whether the zone is the newest."""
        if self.leaving:
            return 503, "leaving\n"
        if not self.answerer.data.synced:
            return 503, "waits for the feeder's first zone\n"
        return 200, "OK\n" if self.fed else "OK: the last zone serves, the feeder is away\n"

    def state(self) -> metrics.State:
        udp = self.observer.total("udp")
        for loop in self._udp:
            if loop.batch is not None:
                udp.add_native(loop.batch.counts)
        cache, data = self.answerer.cache, self.answerer.data
        return metrics.State(
            VERSION, {"udp": udp, "tcp": self.observer.total("tcp")}, dict(self.forwarder.exchanges),
            dict(self.forwarder.seconds), self.forwarder.down(),
            {"entries": len(cache.entries), "hits": cache.hits, "misses": cache.misses, "stale": cache.stale_hits,
             "prefetch": cache.prefetched}, len(data.answers), data.serial, data.synced, self.fed, self.dropped)

    async def _housekeeping(self) -> None:
        """Prefetches what the cache asks for, and finds out whether an upstream sends queries back to us."""
        probe = names.to_wire(f"{secrets.token_hex(8)}.loop-probe.podwire.invalid.")
        self.answerer.loop_probe = probe
        if self.forwarder.route(probe + b"\0\0\0\0") is not None:
            await self.forwarder.resolve((probe + HINFO_IN, False, False))
        if self.answerer.looped:
            log.error("an upstream sends queries back to this DNS; each would go round until it times out",
                      upstreams=list(self.forwarder.down()))
        while True:
            await asyncio.sleep(PREFETCH_SECONDS)
            await self.forwarder.refresh()

    # Upstreams

    def _wait_for_upstream(self, pending: Pending, send: Send) -> asyncio.Task[None] | None:
        if len(self._pending) >= MAX_PENDING:
            self.dropped += 1
            send(self.answerer.finish(pending, None))
            return None
        task = asyncio.create_task(self._forward(pending, send))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        return task

    async def _forward(self, pending: Pending, send: Send) -> None:
        answer = await self.forwarder.resolve(pending.cache_key)
        with contextlib.suppress(OSError):  # the client is gone
            send(self.answerer.finish(pending, answer))

    # TCP: several queries may be under way on one connection, and are answered as they become ready (RFC 7766)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self.connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        self.connections.add(writer)
        waiting: set[asyncio.Task[None]] = set()

        peer = writer.get_extra_info("peername") or ("",)

        try:
            while True:
                async with asyncio.timeout(TCP_IDLE_SECONDS):
                    data = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                send = self._tcp_sender(writer, peer, data)
                answer = self.answerer.handle(data, udp=False)
                if isinstance(answer, Pending):
                    task = self._wait_for_upstream(answer, send)
                    if task is not None:
                        waiting.add(task)
                        task.add_done_callback(waiting.discard)
                elif answer is None:
                    return
                else:
                    send(answer)
                async with asyncio.timeout(TCP_IDLE_SECONDS):
                    await writer.drain()
        except asyncio.IncompleteReadError:
            if waiting:  # the client has asked all it wants; its last answers are still to come
                await asyncio.wait(waiting)
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the client is gone or too slow; or we end, and asyncio would log that as an error
        finally:
            self.connections.discard(writer)
            writer.close()

    def _tcp_sender(self, writer: asyncio.StreamWriter, peer: tuple[Any, ...], query: bytes) -> Send:
        began = time.monotonic()

        def send(answer: bytes) -> None:
            self.observer.answered("tcp", peer, query, answer, began)
            if not writer.is_closing():
                writer.write(len(answer).to_bytes(2) + answer)

        return send

    # The feed

    async def _follow(self) -> None:
        """For ever: connect to the feeder, take the zone, then its changes."""
        delay, told = RECONNECT_FIRST, False
        while True:
            try:
                await self._take()
            except (OSError, asyncio.IncompleteReadError, feed.BadFeed) as err:
                if self.fed or not told:
                    tell = log.warn if self.answerer.data.synced else log.info
                    tell("no feeder, the last zone serves" if self.answerer.data.synced else "waits for the feeder",
                         socket=str(self.config.socket_path), error=str(err))
                    told, delay = True, RECONNECT_FIRST
            self.fed = False
            await asyncio.sleep(delay * random.uniform(0.7, 1.3))
            delay = min(delay * 2, RECONNECT_LAST)

    async def _take(self) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self.config.socket_path))
        zone: ZoneData | None = None
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(4))
                if length > feed.MAX_FRAME:
                    raise feed.BadFeed(f"feed: a frame of {length} bytes")
                message = feed.decode(await reader.readexactly(length))
                if isinstance(message, feed.Hello):
                    zone = ZoneData.begin(message)
                elif zone is None:
                    raise feed.BadFeed("feed: it does not begin with Hello")
                elif isinstance(message, feed.Delta):
                    zone.apply(message)
                else:
                    zone.synced, self.answerer.data, self.fed = True, zone, True
                    log.info("zone is whole", answers=len(zone.answers), serial=message.serial)
        finally:
            writer.close()

    def report(self, status: RoleStatus) -> None:
        data = self.answerer.data
        if self.answerer.looped:
            status.update(ready=False, message="an upstream sends queries back to this DNS", reason="ForwardingLoop")
        elif not data.synced:
            status.update(ready=False, message="waits for the feeder's first zone", reason="NotSynced")
        elif not self.fed:
            status.update(ready=True, reason="Stale", answers=len(data.answers),
                          message=f"{len(data.answers)} answers of the last zone; the feeder is away")
        else:
            status.update(ready=True, message=f"{len(data.answers)} answers", answers=len(data.answers))


async def _closed(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _below(limit: int) -> int:
    return int(random.random() * limit)


def _socket(address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    """Bound, shared with sibling processes (SO_REUSEPORT); a TCP socket listens too."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if kind == socket.SOCK_DGRAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER)
    try:
        sock.bind((address, port))
    except OSError as err:
        sock.close()
        raise OSError(err.errno, f"cannot listen on {address} port {port}: {err.strerror}") from err
    if kind == socket.SOCK_STREAM:
        sock.listen(256)
        sock.setblocking(False)
    return sock


async def _main(config: DnsConfig) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    status = RoleStatus(config.run_dir, "dns")
    async with Server(config) as server:
        log.info("serving", listen=list(config.addresses()), port=config.port, upstreams=list(server.forwarder.down()))
        while not stop.is_set():
            server.report(status)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), STATUS_SECONDS)
        await server.lame_duck()
        status.update(ready=False, message="stopped", reason="Stopped")


def run(config: DnsConfig) -> None:
    """Serve until SIGTERM; the address and the notrack rules stay. Raises BadConfig and OSError (the address is taken)."""
    added = host.ensure_addresses(config.addresses())
    if added:
        log.info("address added", addresses=added, device="lo")
    if config.notrack:
        try:
            host.apply_notrack(config.addresses(), config.port)
        except OSError as err:  # a kernel without the raw hooks: slower, and racy for A with AAAA, but it serves
            log.warn("no notrack rules; parallel A and AAAA queries may stall", error=str(err))
    sys.setswitchinterval(SWITCH_SECONDS)
    asyncio.run(_main(config))
