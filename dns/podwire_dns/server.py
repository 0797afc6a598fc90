"""The serving process: UDP and TCP on the cluster DNS addresses, from memory.

A thread per UDP address does nothing but receive, look up and send; what must wait (forwarding, TCP, the feed) runs in the
main thread's event loop. The zone comes from the feeder; while that is away the last zone serves, and before the first whole
one cluster names answer SERVFAIL, never NXDOMAIN.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import resource
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from podwire_controlplane.client import logs
from podwire_controlplane.client.rolestatus import RoleStatus

from . import forward, host, metrics, metrics_page, names, native, web
from .answer import Answerer, Pending, ZoneData
from .cache import Cache, Upstreamed
from .clients import Clients
from .config import DnsConfig
from .follow import Follower
from .observer import Observer
from .rules import Rules
from .sources import Sources
from .udp import Send, UdpLoop
from .upstream import Forwarder

log = logs.get("dns")
MAX_PENDING = 2000  # queries that wait for upstreams; more are answered SERVFAIL at once
MAX_CONNECTIONS = 1000
TCP_IDLE_SECONDS = 10.0
STATUS_SECONDS = 1.0
UDP_BUFFER = 1 << 20
LEAVE_SECONDS, TAKE_SECONDS = 0.5, 0.02
SIBLING_SECONDS = 10.0
PREFETCH_SECONDS = 0.25
HEALTH_SECONDS = 1.0
HINFO_IN = b"\0\x0d\0\x01"
SWITCH_SECONDS = 0.0002  # how long the feed may keep a query waiting for the interpreter

try:
    VERSION = version("podwire")
except PackageNotFoundError:  # run from a source tree
    VERSION = "unknown"


class Server:
    """`async with Server(config) as server` inside the node's network namespace; it serves until the block ends."""

    def __init__(self, config: DnsConfig, sources: Sources | None = None) -> None:
        """sources: where `config` came from, for /metrics. Raises BadConfig."""
        self.config, self.sources = config, sources or Sources(config)
        routes = config.routes()
        cache = Cache(config.cache_capacity, config.serve_stale, config.prefetch)
        data = ZoneData(config.zones(), config.ttl, config.pods)
        self.answerer = Answerer(data, cache, time.monotonic, _below, bool(routes), config.autopath)
        self.forwarder = Forwarder(routes, cache)
        self.observer = Observer(None)
        self.follower = Follower(config.socket_path, self._whole, self.observer.programmed)
        self.leaving = False
        self.dropped = self.reloads = 0
        self.connections: set[asyncio.StreamWriter] = set()
        self._pending = 0
        self._idle, self._synced = asyncio.Event(), asyncio.Event()
        self._late: set[asyncio.Task[None]] = set()
        self._udp: list[UdpLoop] = []
        self._tcp: list[tuple[socket.socket, asyncio.Server]] = []
        self._web: list[asyncio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.started = time.time()
        self.health = metrics.Durations(metrics.HEALTH_BOUNDS)
        self._settle(config)

    @property
    def fed(self) -> bool:
        return self.follower.fed

    def _settle(self, config: DnsConfig) -> None:
        """What needs nothing but to be known."""
        rules = Rules(config.blocks)
        answerer = self.answerer
        answerer.recursion, answerer.autopath, answerer.shuffle = bool(config.forwarding()), config.autopath, config.shuffle
        answerer.rules = rules if rules.any else None
        answerer.cache.resize(config.cache_capacity, config.serve_stale, config.prefetch)
        self.observer.configure(Clients(config.run_dir / "cni" / "leases") if config.log_queries else None,
                                config.log_classes, config.log_names)
        for udp in self._udp:
            udp.configure()

    async def __aenter__(self) -> Server:
        self._tasks = [asyncio.create_task(self.follower.run())]
        await self._open_pages(self.config)
        if any(_has_sibling(address, self.config.port) for address in self.config.addresses()):
            with contextlib.suppress(TimeoutError):  # it serves; our SERVFAIL beside its answers would be a step back
                await asyncio.wait_for(self._synced.wait(), SIBLING_SECONDS)
        await self._listen(self.config)
        self._tasks.append(asyncio.create_task(self._housekeeping()))
        return self

    async def _listen(self, config: DnsConfig) -> None:
        """Open what `config` says, then close what was open before; no query in a closed socket's queue is lost. Raises
        OSError, and then all is as it was."""
        loop = asyncio.get_running_loop()

        def later(waiting: list[tuple[Pending, Send]]) -> None:
            loop.call_soon_threadsafe(self._wait_for_upstreams, waiting)

        batches = native.load() if config.batches else None
        sockets: list[socket.socket] = []
        try:
            for address in config.addresses():
                sockets.append(_socket(address, config.port, socket.SOCK_DGRAM))
                sockets.append(_socket(address, config.port, socket.SOCK_STREAM))
        except OSError:
            for sock in sockets:
                sock.close()
            raise
        udp = [UdpLoop(sock, self.answerer, later, batches, self.observer) for sock in sockets[::2]]
        tcp = [(sock, await asyncio.start_server(self._connection, sock=sock)) for sock in sockets[1::2]]
        for each in udp:
            each.thread.start()
        old_udp, self._udp = self._udp, udp
        old_tcp, self._tcp = self._tcp, tcp
        await self._close_listeners(old_tcp)
        if old_udp:
            loop.call_later(forward.DEADLINE + 1, self._end_udp, old_udp)  # what it forwarded is answered by then

    async def _close_listeners(self, listeners: list[tuple[socket.socket, asyncio.Server]]) -> None:
        """What waits in their queues is still served; closing a listener would reset it."""
        for sock, listener in listeners:
            with contextlib.suppress(OSError):  # the queue is empty
                while True:
                    taken, _ = sock.accept()
                    taken.setblocking(False)
                    task = asyncio.create_task(self._taken(taken))
                    self._late.add(task)
                    task.add_done_callback(self._late.discard)
            listener.close()
        await asyncio.sleep(TAKE_SECONDS)  # what asyncio accepted becomes a connection of ours

    async def _taken(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            await self._connection(*await asyncio.open_connection(sock=sock))

    @staticmethod
    def _end_udp(loops: list[UdpLoop]) -> None:
        for each in loops:
            each.stop(LEAVE_SECONDS)
        for each in loops:
            each.close()

    async def _open_pages(self, config: DnsConfig) -> None:
        pages = dict(self._pages(config))
        for listener in self._web:
            listener.close()
        self._web = [await web.serve(address, page) for address, page in pages.items()]

    async def reload(self, config: DnsConfig) -> None:
        """Take other settings over without leaving a query unanswered. Raises BadConfig or OSError: then nothing changed."""
        old = self.config
        routes = config.routes()
        if (config.addresses(), config.port) != (old.addresses(), old.port):
            await asyncio.to_thread(host.ensure_addresses, config.addresses())
            if config.notrack:
                await asyncio.to_thread(host.apply_notrack, config.addresses(), config.port)
            await self._listen(config)
        pages = tuple((c.health_address, c.ready_address, c.metrics_address) for c in (config, old))
        if pages[0] != pages[1]:
            await self._open_pages(config)
        if routes != old.routes():
            before, self.forwarder = self.forwarder, Forwarder(routes, self.answerer.cache)
            self.answerer.cache.clear()
            before.retire()
            self._probe()
        self.config = config
        self._settle(config)
        self.reloads += 1
        log.info("settings taken over", upstreams=list(self.forwarder.down()), rules=self.answerer.rules is not None)

    def _whole(self, zone: ZoneData) -> None:
        self.answerer.data = zone
        self._synced.set()
        for udp in self._udp:
            udp.configure()

    async def __aexit__(self, *_: object) -> None:
        """Leave at once: no new query is taken, answers under way get a moment, none is cut in half."""
        for page in self._web:
            page.close()
        await self._close_listeners(self._tcp)
        for udp in self._udp:
            udp.stop(LEAVE_SECONDS)
        await asyncio.sleep(0)  # what the threads handed over last
        if self._pending:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), LEAVE_SECONDS)
        end = time.monotonic() + LEAVE_SECONDS
        while (self.connections or self._late) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        open_still = list(self.connections)
        for writer in open_still:
            writer.close()  # sends what is in its buffer first
        if open_still:
            await asyncio.wait([asyncio.create_task(_closed(writer)) for writer in open_still], timeout=LEAVE_SECONDS)
        for task in self._tasks:
            task.cancel()
        for udp in self._udp:
            udp.close()
        self.forwarder.close()

    async def lame_duck(self) -> None:
        """Say that we are leaving, and answer on for a while, so that whoever sends queries here can stop in time."""
        self.leaving = True
        if self.config.lame_duck:
            log.info("leaving, answers go on for a while", seconds=self.config.lame_duck)
            await asyncio.sleep(self.config.lame_duck)

    # What we say of ourselves

    def _pages(self, config: DnsConfig) -> Iterator[tuple[str, dict[str, Callable[[], web.Answer]]]]:
        """(address, pages) of each HTTP address; what shares an address shares its listener."""
        found: dict[str, dict[str, Callable[[], web.Answer]]] = {}
        for address, path, page in ((config.health_address, "/health", lambda: (200, "OK")),
                                    (config.ready_address, "/ready", self.ready),
                                    (config.metrics_address, "/metrics", lambda: (200, metrics_page.render(self.state())))):
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

    def state(self) -> metrics_page.State:
        udp = self.observer.total("udp")
        for loop in self._udp:
            if loop.batch is not None:
                udp.add_native(loop.batch.counts)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return metrics_page.State(
            VERSION, {"udp": udp, "tcp": self.observer.total("tcp")}, self.forwarder.state(self.dropped), self.answerer.cache,
            self.answerer.data, self.config, self.sources.digest, self.sources.failed, self.reloads, self.fed,
            self.observer.programming, self.health, usage.ru_utime + usage.ru_stime, _memory(), self.started)

    def _probe(self) -> None:
        """Find out whether an upstream sends queries back to us."""
        probe = names.to_wire(f"{secrets.token_hex(8)}.loop-probe.podwire.invalid.")
        self.answerer.loop_probe, self.answerer.looped = probe, False

        def told(_: object) -> None:
            if self.answerer.looped:
                log.error("an upstream sends queries back to this DNS; each would go round until it times out",
                          upstreams=list(self.forwarder.down()))

        if self.forwarder.route(probe + HINFO_IN) is not None:
            self.forwarder.ask((probe + HINFO_IN, False, False), told)

    async def _housekeeping(self) -> None:
        """Prefetches what the cache asks for, and looks at its own /health as a kubelet does."""
        self._probe()
        checked = time.monotonic()
        while True:
            await asyncio.sleep(PREFETCH_SECONDS)
            self.forwarder.refresh()
            if self.config.health_address and time.monotonic() - checked >= HEALTH_SECONDS:
                checked = time.monotonic()
                self.health.note(await web.took(self.config.health_address, "/health"))

    # Upstreams

    def _wait_for_upstreams(self, waiting: list[tuple[Pending, Send]]) -> None:
        for pending, send in waiting:
            self._wait_for_upstream(pending, send)

    def _wait_for_upstream(self, pending: Pending, send: Send) -> None:
        if self._pending >= MAX_PENDING:
            self.dropped += 1
            send(self.answerer.finish(pending, None))
            return
        self._pending += 1

        def done(answer: Upstreamed | None) -> None:
            self._pending -= 1
            if not self._pending:
                self._idle.set()
            with contextlib.suppress(OSError):  # the client is gone
                send(self.answerer.finish(pending, answer))

        self.forwarder.ask(pending.cache_key, done)

    # TCP: several queries may be under way on one connection, and are answered as they become ready (RFC 7766)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self.connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        self.connections.add(writer)
        peer = writer.get_extra_info("peername") or ("",)
        waiting, none_left = 0, asyncio.Event()
        try:
            while True:
                async with asyncio.timeout(TCP_IDLE_SECONDS):
                    data = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                send = self._tcp_sender(writer, peer, data)
                answer = self.answerer.handle(data, udp=False)
                if isinstance(answer, Pending):
                    waiting += 1

                    def answered(late: bytes, send: Send = send) -> None:
                        nonlocal waiting
                        send(late)
                        waiting -= 1
                        none_left.set()

                    self._wait_for_upstream(answer, answered)
                elif answer is None:
                    return
                else:
                    send(answer)
                async with asyncio.timeout(TCP_IDLE_SECONDS):
                    await writer.drain()
        except asyncio.IncompleteReadError:
            while waiting:  # the client has asked all it wants; its last answers are still to come
                none_left.clear()
                await none_left.wait()
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


def _memory() -> int:
    """Bytes that this process has in memory."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return 0


def _below(limit: int) -> int:
    return int(random.random() * limit)


def _has_sibling(address: str, port: int) -> bool:
    """Does another process serve there already?"""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, port))  # without SO_REUSEPORT: only one may
        except OSError as err:
            return err.errno == errno.EADDRINUSE
    return False


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


async def _main(config: DnsConfig, sources: Sources) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    status = RoleStatus(config.run_dir, "dns")
    async with Server(config, sources) as server:
        log.info("serving", listen=list(config.addresses()), port=config.port, upstreams=list(server.forwarder.down()))
        following = asyncio.create_task(sources.follow(config, log, server.reload))
        while not stop.is_set():
            server.report(status)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), STATUS_SECONDS)
        following.cancel()
        await server.lame_duck()
        status.update(ready=False, message="stopped", reason="Stopped")


def run(config: DnsConfig) -> None:
    """Serve until SIGTERM; the address and the notrack rules stay. Raises BadConfig and OSError (the address is taken)."""
    sources = Sources(config)
    real = sources.load()
    sources.tell(log)
    added = host.ensure_addresses(real.addresses())
    if added:
        log.info("address added", addresses=added, device="lo")
    if real.notrack:
        try:
            host.apply_notrack(real.addresses(), real.port)
        except OSError as err:  # a kernel without the raw hooks: slower, and racy for A with AAAA, but it serves
            log.warn("no notrack rules; parallel A and AAAA queries may stall", error=str(err))
    host.short_slices()
    sys.setswitchinterval(SWITCH_SECONDS)
    asyncio.run(_main(real, sources))
