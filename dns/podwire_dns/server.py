"""The server process: answers over UDP and TCP on the cluster DNS addresses, from memory.

Each UDP address has a thread that only receives, looks up and sends. Work that must wait (forwarding, TCP, the feed)
runs in the event loop of the main thread. The zone comes from the feeder. While the feeder is down, the server uses the
last zone. Before the first complete zone, cluster names get SERVFAIL, never NXDOMAIN.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
import time
from functools import partial
from itertools import zip_longest

from podwire_base.role import beat, limits, logs, web
from podwire_base.role.metrics import Histogram
from podwire_base.role.status import RoleStatus

from . import figures, forward, host, metrics, metrics_page, names, native, reports, rights, tcp, upstream
from .answer import Answerer
from .answertable import AnswerTable
from .cache import Cache
from .clients import Clients
from .config import DnsConfig
from .follow import Follower
from .healing import NodeState
from .heritage import Heritage
from .observer import Observer
from .rules import Rules
from .sources import Sources
from .spare import Counts
from .spares import Spares
from .tcp import TcpService
from .udp import UdpLoop, Waiting
from .upstream import Forwarder
from .waiting import WaitingQueries
from .zone import ZoneData

log = logs.get("dns")
TAKE_OFF_SECONDS, TAKE_OFF_TRIES = 1.0, 20  # for an address that another process still serves
OWN_SECONDS = 3.0  # between two looks at the addresses of this node
HERITAGE_SECONDS = 0.05
LEAVE_SECONDS = 0.5
SIBLING_SECONDS = 10.0
ZONE_SECONDS = 1.0  # longest wait for the zone where no sibling serves: a feeder needs a fraction of it at a restart
OLD_SOCKET_SECONDS = forward.DEADLINE + 1  # after this time no query of an old socket is pending
PREFETCH_SECONDS = 0.25
HEALTH_SECONDS = 1.0
HINFO_IN = b"\0\x0d\0\x01"
STUCK_SECONDS = 1.0  # a thread that handles the same queries for so long makes no progress


class Server:
    """A DNS server. `async with Server(config)` in the node's network namespace answers until the block ends."""

    def __init__(
        self,
        config: DnsConfig,
        sources: Sources | None = None,
        stop: asyncio.Event | None = None,
        heritage: Heritage | None = None,
        *,
        sharing: bool = False,
    ) -> None:
        """sources: the origin of `config`, for /metrics. stop: an event that ends the waits of the start. heritage:
        the sockets of a predecessor. sharing: other processes may read the same sockets.

        Raises BadConfig.
        """
        self.config, self.sources, self.stop = config, sources or Sources(config), stop or asyncio.Event()
        self.files = limits.raise_files()
        routes = config.routes()
        cache = Cache(config.cache_capacity, config.serve_stale, config.prefetch)
        data = ZoneData(config.zones(), config.ttl, config.pods)
        self.answerer = Answerer(data, cache, time.monotonic, _below, bool(routes), config.autopath)
        self.forwarder = self._forwarder(config, cache)
        self.observer = Observer(None)
        self.follower = Follower(config.socket_path, self.take_zone, self.observer.programmed, self.memory)
        self.leaving = False
        self.broken = ""  # what clients miss because a socket cannot be served
        self.reloads = 0
        self.waiting = WaitingQueries(self.answerer, self.observer, lambda: self.forwarder)
        self._synced, self._listening = asyncio.Event(), asyncio.Lock()
        self._tcp = TcpService(
            self.answerer, self.observer, self.waiting.add_one, min(tcp.MAX_CONNECTIONS, self.files // 4)
        )
        self._udp: list[UdpLoop] = []
        self._counted: list[UdpLoop] = []  # the current loops, and loops that are about to end
        self._web: dict[str, tuple[web.Site, dict[str, web.Page]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.started = time.time()
        self.heritage = heritage or Heritage()
        self.sharing = sharing
        self._loop_probe = names.to_wire(f"{secrets.token_hex(8)}.loop-probe.podwire.invalid.")
        self.zones = 0  # complete zones so far
        self.spares: Spares | None = None
        self.mended = 0  # sockets that were opened anew
        self._given: list[socket.socket] | None = None  # the sockets of a spare
        self._counts: Counts | None = None
        self.health = Histogram(metrics.HEALTH_BOUNDS)
        self.health_failures = 0
        self._settle(config)

    def _forwarder(self, config: DnsConfig, cache: Cache) -> Forwarder:
        most = min(upstream.MOST, self.files // 2)
        return Forwarder(config.routes(), cache, batches=config.batches, most=most, homes=config.homes())

    @property
    def fed(self) -> bool:
        return self.follower.fed

    def _settle(self, config: DnsConfig) -> None:
        """Applies the settings that need no sockets."""
        rules, self.settled = Rules(config.blocks), time.time()
        answerer = self.answerer
        answerer.recursion, answerer.autopath, answerer.shuffle = (
            bool(config.forwarding()),
            config.autopath,
            config.shuffle,
        )
        answerer.rules = rules if rules.any else None
        answerer.cache.resize(config.cache_capacity, config.serve_stale, config.prefetch)
        self.observer.configure(
            Clients(partial(rights.lease, config.run_dir / "cni" / "leases")) if config.log_queries else None,
            config.log_classes,
            config.log_names,
        )
        for udp in self._counted:
            udp.configure()

    async def __aenter__(self) -> Server:
        if self._given is not None:
            for sock in (each for each in self._given if each.type == socket.SOCK_STREAM):
                self._tcp.listen(sock)
            self._udp = self._start_loops([each for each in self._given if each.type == socket.SOCK_DGRAM])
            self._tasks = [asyncio.create_task(self._housekeeping())]
            return self
        if self.heritage.alive():
            return await self._succeed()
        self._tasks = [asyncio.create_task(self.follower.run())]
        self._take_pages(self.config, await self._open_pages(self.config))
        await self._wait_for_zone()
        if not self.stop.is_set():
            await self._listen(self.config)
            self._tasks.append(asyncio.create_task(self._housekeeping()))
        return self

    async def _wait_for_zone(self) -> None:
        # A sibling server answers, or the client asks again; SERVFAIL from this server would be worse.
        sibling = any(host.has_sibling(address, self.config.port) for address in self.config.addresses())
        waits = [asyncio.create_task(event.wait()) for event in (self._synced, self.stop)]
        seconds = SIBLING_SECONDS if sibling else ZONE_SECONDS
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _succeed(self) -> Server:
        """Starts after a predecessor, whose spare serves until this server has a zone of its own."""
        self._tasks = [asyncio.create_task(self.follower.run())]
        self._take_pages(self.config, await self._open_pages(self.config))
        while not (self.stop.is_set() or self._synced.is_set()) and self.heritage.alive():
            await asyncio.sleep(HERITAGE_SECONDS)
        if not (self.stop.is_set() or self._synced.is_set()):
            await self._wait_for_zone()  # the predecessor died first
        if not self.stop.is_set():
            await self._listen(self.config)
            self._tasks.append(asyncio.create_task(self._housekeeping()))
            self.heritage.dismiss()
        return self

    def _open(self, address: str, port: int, kind: socket.SocketKind) -> socket.socket:
        return self.heritage.take(address, port, kind) or host.open_socket(address, port, kind)

    async def _listen(self, config: DnsConfig) -> None:
        """Opens the sockets of `config` that are not open yet, then closes those that are no longer needed.

        A socket whose address stays is kept: a query in the queue of a socket that closes could get lost. The queries
        in the queue of a socket that is no longer needed are answered. Raises OSError; the old sockets then stay open.
        """
        if config.batches and (problem := native.library().problem):
            log.warn("receiving one packet at a time, slower", reason=problem)
        datagrams: list[socket.socket] = []
        streams: list[socket.socket] = []
        addresses = config.addresses()
        beside = await asyncio.to_thread(host.beside, addresses)
        wanted = (*addresses, *beside)
        kept = {udp.address: udp for udp in self._udp if config.port == self.config.port and udp.address in wanted}
        heard = {
            acceptor.listener.getsockname()[0]: acceptor
            for acceptor in self._tcp.listeners
            if config.port == self.config.port and acceptor.listener.getsockname()[0] in addresses
        }
        try:
            for address in wanted:
                if address not in kept:
                    datagrams.append(self._open(address, config.port, socket.SOCK_DGRAM))
            for address in addresses:
                if address not in heard:
                    streams.append(self._open(address, config.port, socket.SOCK_STREAM))
        except OSError:
            for sock in (*datagrams, *streams):
                sock.close()
            raise
        old_tcp = [acceptor for acceptor in self._tcp.listeners if acceptor not in heard.values()]
        self._tcp.listeners = [acceptor for acceptor in self._tcp.listeners if acceptor in heard.values()]
        for sock in streams:
            self._tcp.listen(sock)
        old_udp = [udp for udp in self._udp if udp.address not in kept]
        self._udp = [*kept.values(), *self._start_loops(datagrams)]
        self._tcp.close_listeners(old_tcp)
        if old_udp:
            left = set(self.config.addresses()).difference(addresses)
            asyncio.get_running_loop().call_later(OLD_SOCKET_SECONDS, self._end_udp, old_udp, left)

    def udp_paths(self) -> list[str]:
        """Returns the path (metrics.PATHS) of each UDP socket, in the order of `sockets`."""
        return [udp.path for udp in self._udp]

    def sockets(self) -> list[socket.socket]:
        """Returns the sockets of queries."""
        return [*(udp.sock for udp in self._udp), *(acceptor.listener for acceptor in self._tcp.listeners)]

    def spare(self, sockets: list[socket.socket], counts: Counts, data: ZoneData, stop: asyncio.Event) -> Server:
        """Returns the server of a forked process, which reads the same sockets and has the same zone."""
        made = Server(self.config, self.sources, stop, sharing=True)
        made.answerer.data, made._counts = data, counts
        made.answerer.cache = made.forwarder.cache = self.answerer.cache.inherited()
        made.answerer.loop_probe = self._loop_probe
        made._given = [sock.dup() for sock in sockets]
        return made

    def _start_loops(self, datagrams: list[socket.socket]) -> list[UdpLoop]:
        """Starts a thread for each socket."""
        loop = asyncio.get_running_loop()
        batches = native.load() if self.config.batches else None

        def later(waiting: Waiting) -> None:
            loop.call_soon_threadsafe(self.waiting.add, waiting)

        udp = [
            UdpLoop(sock, self.answerer, later, batches, self.observer, shared=self.sharing, counts=memory)
            for sock, memory in zip_longest(datagrams, self._counts.all[: len(datagrams)] if self._counts else ())
        ]
        for each in udp:
            each.soon = loop.call_soon
            each.thread.start()
        self._counted += udp
        return udp

    def _take_off(self, addresses: set[str], port: int) -> set[str]:
        """Removes from lo the addresses on which this server no longer listens. Runs in a thread. Returns those that
        another process may still serve.
        """
        try:
            removed = host.drop_addresses(addresses, port)
        except Exception as err:  # includes netlink errors; the server continues, and `cleanup` removes the addresses
            log.warn("unused addresses stay on lo", addresses=sorted(addresses), error=str(err))
            return set()
        if removed:
            log.info("address removed", addresses=removed, device="lo")
        return addresses.difference(removed)

    def _end_udp(self, loops: list[UdpLoop], left: set[str]) -> None:
        port = loops[0].sock.getsockname()[1]
        self._end_loops(loops)
        if left:
            task = asyncio.create_task(self._leave(left, port))
            self._tasks.append(task)
            task.add_done_callback(self._tasks.remove)

    async def _leave(self, left: set[str], port: int) -> None:
        """Removes addresses from lo, as soon as the spare of the old settings has closed its sockets too."""
        for _ in range(TAKE_OFF_TRIES):
            left = left.difference(self.config.addresses())
            if not left:
                return
            left = await asyncio.to_thread(self._take_off, left, port)
            await asyncio.sleep(TAKE_OFF_SECONDS)

    def _end_loops(self, loops: list[UdpLoop]) -> None:
        for each in loops:
            each.stop(LEAVE_SECONDS)
        for each in loops:
            each.close()
            self._counted.remove(each)
            if each.batch is not None:
                self.observer.add_native(each.path, each.batch.counts)

    async def _open_pages(self, config: DnsConfig) -> dict[str, tuple[web.Site, dict[str, web.Page]]]:
        """Opens the HTTP pages at addresses that are not open yet. Raises OSError; no new page is open then."""
        opened: dict[str, tuple[web.Site, dict[str, web.Page]]] = {}
        try:
            for address, pages in reports.pages(self, config):
                if address not in self._web:
                    opened[address] = await web.serve(address, pages, shared=True), pages
        except OSError:
            for listener, _ in opened.values():
                listener.close()
            raise
        return opened

    def _take_pages(self, config: DnsConfig, opened: dict[str, tuple[web.Site, dict[str, web.Page]]]) -> None:
        """Uses the opened pages. A page whose address stays keeps its socket."""
        wanted = dict(reports.pages(self, config))
        for address in [address for address in self._web if address not in wanted]:
            self._web.pop(address)[0].close()
        self._web.update(opened)
        for address, (_, shown) in self._web.items():
            fresh = wanted[address]
            shown.clear()
            shown.update(fresh)

    async def reload(self, config: DnsConfig) -> None:
        """Applies new settings without losing a query.

        Raises BadConfig or OSError; the old settings then stay in use.
        """
        async with self._listening:
            await self._reload(config)

    async def _reload(self, config: DnsConfig) -> None:
        old = self.config
        routes = [(each.routes(), each.homes()) for each in (config, old)]
        forwarder = self._forwarder(config, self.answerer.cache) if routes[0] != routes[1] else None
        opened = await self._open_pages(config)
        try:
            if (config.addresses(), config.port) != (old.addresses(), old.port):
                await asyncio.to_thread(host.prepare, config.addresses(), config.port, notrack=config.notrack)
                await self._listen(config)
        except OSError:
            for site, _ in opened.values():
                site.close()
            raise
        self._take_pages(config, opened)
        if forwarder is not None:
            before, self.forwarder = self.forwarder, forwarder
            self.answerer.cache.clear()
            before.retire()
            self._probe()
        self.config = config
        self._settle(config)
        self.reloads += 1
        log.info("settings taken over", upstreams=list(self.forwarder.down()), rules=self.answerer.rules is not None)

    def memory(self) -> AnswerTable | None:
        """Returns a native table for a new zone, for the compiled threads; None: the zone uses dicts."""
        module = native.load() if self.config.batches else None
        return None if module is None else AnswerTable(module)

    def take_zone(self, zone: ZoneData) -> None:
        """Replaces the zone with this complete zone."""
        self.answerer.data = zone
        self.zones += 1
        self._synced.set()
        for udp in self._counted:
            udp.configure()

    async def __aexit__(self, *_: object) -> None:
        """Stops the server: accepts no new query, and waits briefly for the answers in progress."""
        self.close_pages()
        listeners, self._tcp.listeners = self._tcp.listeners, []  # `mend` must not open them anew
        self._tcp.close_listeners(listeners)
        for udp in self._udp:
            udp.stop_soon()
        for udp in self._udp:
            udp.stop(LEAVE_SECONDS)
        await asyncio.sleep(0)  # the last queries that the threads passed on
        await self.waiting.settle(LEAVE_SECONDS)
        await self._tcp.leave(LEAVE_SECONDS)
        for task in self._tasks:
            task.cancel()
        for udp in self._udp:
            udp.close(last=self._given is None)
        self.forwarder.close()

    def rest(self) -> None:
        """Answers from the zone as it is: pages and the feed are the next server's."""
        self.close_pages()
        self._tasks[0].cancel()

    def close_pages(self) -> None:
        for site, _pages in self._web.values():
            site.close()
        self._web.clear()

    async def lame_duck(self) -> None:
        """Reports not ready but continues to answer for some seconds, so that clients and load balancers can switch."""
        self.leaving = True
        if self.config.lame_duck and self._udp:
            log.info("leaving, still answering for a while", seconds=self.config.lame_duck)
            await asyncio.sleep(self.config.lame_duck)

    def _probe(self) -> None:
        """Detects an upstream that sends queries back to this server."""
        self.answerer.loop_probe, self.answerer.looped = self._loop_probe, False
        question = self._loop_probe + HINFO_IN

        def told(_: object) -> None:
            if self.answerer.looped:
                self.tell_loop()

        if self.forwarder.route(question) is not None:
            self.forwarder.ask((question, False, False), told)

    def tell_loop(self) -> None:
        """Says that an upstream sends queries back, which this process or its spare has seen."""
        self.answerer.looped = True
        log.error(
            "an upstream sends queries back to this DNS; each would loop until it times out",
            upstreams=list(self.forwarder.down()),
        )

    async def _housekeeping(self) -> None:
        """Prefetches the answers that the cache reports as due, and checks this server's /health as a kubelet does."""
        if self._given is None:
            self._probe()
        checked, looked, followed = time.monotonic(), float("-inf"), time.monotonic()
        while True:
            if time.monotonic() - looked >= OWN_SECONDS:
                looked = time.monotonic()
                self.waiting.turns.own = self._tcp.own = host.own_addresses()
            await asyncio.sleep(PREFETCH_SECONDS)
            self.forwarder.refresh()
            if self._given is not None:
                continue
            if looked > followed:
                followed = time.monotonic()
                await self.follow_addresses()
            self.watch(time.monotonic())
            self.mend()
            if self.config.health_address and time.monotonic() - checked >= HEALTH_SECONDS:
                checked = time.monotonic()
                await self.check_health()

    async def follow_addresses(self) -> None:
        """Answers at the addresses that this network namespace has now, where a wildcard stands for them."""
        async with self._listening:
            try:
                beside = await asyncio.to_thread(host.beside, self.config.addresses())
                have = [udp.address for udp in self._udp]
                fresh = [address for address in beside if address not in have]
                gone = [address for address in have if address not in (*self.config.addresses(), *beside)]
                if fresh or gone:
                    await self._listen(self.config)
                    self.mended += 1
                    log.info("the addresses changed", now_answered=fresh, no_longer=gone)
            except OSError as err:  # the next look tries again
                log.warn("queries at a new address may not be answered yet", error=str(err))

    async def check_health(self) -> None:
        """Measures the response time of this server's /health, or counts a failure."""
        took = await web.took(self.config.health_address, "/health")
        if took is None:
            self.health_failures += 1
        else:
            self.health.observe(took)

    # Sockets and threads that fail

    def stuck(self, now: float) -> float:
        """Returns the seconds for which the slowest thread has handled the same queries; 0.0: all make progress."""
        since = [each.stuck_since(now) for each in self._udp]
        return max((now - each for each in since if each is not None), default=0.0)

    def watch(self, now: float) -> None:
        """Tells the beat of a thread that makes no progress, so that the supervisor starts this role again."""
        seconds = self.stuck(now)
        beat.stuck("udp", now - seconds if seconds > STUCK_SECONDS else None)

    def mend(self) -> None:
        """Opens each socket anew that this server can no longer serve."""
        broken = ""
        for udp in [each for each in self._udp if each.failed]:
            log.error("a query socket failed, opening it anew", address=udp.address, protocol="udp", error=udp.failed)
            broken = f"no queries over UDP at {udp.address}: {udp.failed}"
            with contextlib.suppress(OSError):
                (fresh,) = self._start_loops([host.open_socket(udp.address, self.config.port, socket.SOCK_DGRAM)])
                self._udp[self._udp.index(udp)] = fresh
                self.mended += 1
                self._end_loops([udp])
                broken = ""
        for listener in [each for each in self._tcp.listeners if not tcp.listens(each.listener)]:
            address = listener.listener.getsockname()[0]
            log.error("a query socket failed, opening it anew", address=address, protocol="tcp")
            broken = broken or f"no queries over TCP at {address}"
            with contextlib.suppress(OSError):
                self.mended += 1
                self._tcp.replace(listener, host.open_socket(address, self.config.port, socket.SOCK_STREAM))
                broken = ""
        self.broken = broken

    def ready(self) -> web.Answer:
        return reports.ready(self)

    def own_figures(self) -> figures.Figures:
        """Returns the counts of this process without those of the compiled loops."""
        return figures.Figures(
            {path: self.observer.total(path) for path in metrics.PATHS},
            self.forwarder.state(self.waiting.turns.refused).counts(),
            figures.of_cache(self.answerer.cache, entries=self._given is None),  # both caches have the same entries
        )

    def tallies(self) -> dict[str, metrics.Tally]:
        """Returns the counts of this process by path (metrics.PATHS)."""
        found = {path: self.observer.total(path) for path in metrics.PATHS}
        for loop in self._counted:
            if loop.batch is not None:
                found[loop.path].add_native(loop.batch.counts)
        return found

    def state(self) -> metrics_page.ServerState:
        return reports.state(self)

    def report(self, status: RoleStatus, node: NodeState | None = None) -> None:
        reports.report(self, status, node)


def _below(limit: int) -> int:
    return int(random.random() * limit)
