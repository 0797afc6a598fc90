"""The feeder: watches Services, EndpointSlices and Namespaces, renders answers, and feeds the servers.

The feeder is a separate process with a nice value, so that decoding and rendering never delay a query. Servers connect
over a unix socket. A server receives the whole zone, then every change.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from podwire_base.kube.client.config import ClientConfig, load
from podwire_base.kube.client.informer import Informer
from podwire_base.kube.client.reflector import Event
from podwire_base.kube.meta import Object
from podwire_base.role import accept, beat, bugs, layout, logs, unixsocket, waits
from podwire_base.role.run import main, stop_event
from podwire_base.role.status import RoleStatus

from . import feed, names, nodeevents, schema
from .apicalls import CountedClient
from .build import Builder
from .config import DnsConfig
from .sources import Sources, hold_hangup

log = logs.get("dns-feeder")
NICE = 5  # a higher value, with a tenth of the usual CPU share, would delay new names on a busy node
GATHER_SECONDS = 0.005  # the feeder renders the changes of this interval together
MAX_BACKLOG = 64 << 20  # bytes of unsent changes, after which a server must connect again
STATUS_SECONDS = 1.0
PATHS = {
    "Service": "/api/v1/services",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/endpointslices",
    "Namespace": "/api/v1/namespaces",
}


class Feeder:
    """Gathers the builder's changes and sends them to every connected server, but not before `start_feeding`."""

    def __init__(self, config: DnsConfig) -> None:
        frame = config.schema()
        self.config, self.builder = config, Builder(frame)
        self.hello = feed.Hello(
            feed.VERSION,
            tuple(names.to_wire(z) for z in (frame.zone, *frame.reverse)),
            frame.denial_ttl,
            frame.pods and not config.verify_pods,
        )
        self.serial = int(time.time())
        self.synced = asyncio.Event()
        self.servers: set[asyncio.StreamWriter] = set()
        self.waiting: set[asyncio.StreamWriter] = set()  # servers that wait for the first whole zone
        self.api: Callable[[], feed.ApiCalls] = lambda: feed.NO_CALLS
        self._api_sent = feed.NO_CALLS
        self._timer: asyncio.TimerHandle | None = None
        self._triggers: list[
            tuple[str, float]
        ] = []  # (Service, the time at which its pods changed, from its EndpointSlices)

    def handler(self, kind: str) -> Callable[[Event], None]:
        """Returns the on_event callback of an informer for one kind of object."""
        take: Callable[..., None] = {
            "Service": self.builder.service,
            "EndpointSlice": self.builder.slice,
            "Namespace": self.builder.namespace,
            "Pod": self.builder.pod,
        }[kind]

        def on_event(event: Event) -> None:
            take(event.object, deleted=event.type == "DELETED")
            if not self.synced.is_set():
                return
            if kind == "EndpointSlice" and event.type != "DELETED":
                trigger = schema.trigger_time(event.object)
                if trigger is not None:
                    self._triggers.append((schema.service_of_slice(event.object), trigger))
            beat.pending()
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self.push)

        return on_event

    def push(self) -> None:
        """Renders the changes and sends them to all servers."""
        self._timer = None
        beat.taking()
        delta = self._flush()
        beat.settled()
        triggers, self._triggers = self._triggers, []
        if not delta.size:
            return
        headless = tuple(when for key, when in triggers if schema.is_headless(self.builder.services.get(key)))
        delta = msgspec.structs.replace(delta, triggered=headless)
        frame = b"".join(feed.frame(piece) for piece in feed.pieces(delta))
        for writer in list(self.servers):
            if writer.transport.get_write_buffer_size() > MAX_BACKLOG:
                log.warn("a server does not read its feed, it must connect again", backlog=MAX_BACKLOG)
                self.servers.discard(writer)
                writer.transport.abort()
                continue
            writer.write(frame)

    def push_api(self) -> None:
        """Sends the figures of the requests to the API server, if they changed."""
        calls = self.api()
        if calls != self._api_sent:
            self._api_sent = calls
            for writer in self.servers:
                writer.write(feed.frame(calls))

    def _flush(self) -> feed.Delta:
        # The serial grows with each change. It also grows across restarts if changes average less than one a second.
        self.serial = max(self.serial + 1, int(time.time()))
        delta = self.builder.flush(self.serial)
        self._tell_problems()
        return delta

    def _tell_problems(self) -> None:
        for problem in self.builder.problems:
            log.warn("object left out of the DNS", kind=problem.kind, object=problem.key, error=problem.error)
        self.builder.problems.clear()
        for key, err in self.builder.bugs:
            bugs.report(log, "a Service is left out of the DNS", err, object=key)
        self.builder.bugs.clear()

    def start_feeding(self) -> None:
        """Starts to send the zone. Call this when all lists are complete."""
        begin = time.monotonic()
        self.builder.fill()
        self._tell_problems()
        with contextlib.suppress(AttributeError):  # a libc other than glibc
            ctypes.CDLL(None).malloc_trim(0)  # return the memory of the lists to the kernel
        gc.freeze()  # the zone is permanent: no collection needs to traverse it again
        gc.enable()
        self.synced.set()
        log.info(
            "zone is whole",
            answers=len(self.builder.answers),
            services=len(self.builder.services),
            took_ms=(time.monotonic() - begin) * 1000,
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection of a server until the connection ends."""
        try:
            self.waiting.add(writer)
            await self.synced.wait()
            self.waiting.discard(writer)
            if writer.is_closing():  # another feeder has the zone now
                return
            if self._timer is not None:
                self._timer.cancel()
                self.push()
            for frame in feed.snapshot(
                self.hello, self.builder.answers, iter(self.builder.names), self.serial, self.builder.placed()
            ):
                writer.write(frame)
            writer.write(feed.frame(self.api()))
            self.servers.add(writer)
            log.info("server connected", answers=len(self.builder.answers), servers=len(self.servers))
            await reader.read()  # a server sends nothing, so the read returns when the server ends
        except (OSError, asyncio.CancelledError):
            pass  # the server ended, or the feeder ends, which asyncio would log as an error
        finally:
            self.servers.discard(writer)
            self.waiting.discard(writer)
            writer.close()

    def part(self) -> None:
        """Disconnects every server. A server connects again, to the current feeder."""
        for writer in (*self.servers, *self.waiting):
            writer.close()
        self.synced.set()  # a server that waits for this feeder must not wait forever

    def report(self, status: RoleStatus) -> None:
        figures: Mapping[str, Any] = {
            "services": len(self.builder.services),
            "answers": len(self.builder.answers),
            "servers": len(self.servers),
        }
        if not self.synced.is_set():
            status.update(ready=False, message="waits for the API server's lists", reason="NotSynced", **figures)
        else:
            status.update(
                ready=True, message=f"{figures['services']} Services, {figures['answers']} answers", **figures
            )


def _stub(obj: Object) -> Object:
    """Returns the part of an object that the informers must remember.

    The builder stores the packed part that the zone needs.
    """
    kept = {
        field: obj["metadata"][field] for field in ("name", "namespace", "resourceVersion") if field in obj["metadata"]
    }
    fresh: Object = msgspec.json.decode(msgspec.json.encode({"metadata": kept}))
    return fresh  # all strings are copies: one original would keep the whole list in memory


async def _watch(feeder: Feeder, client: ClientConfig, group: asyncio.TaskGroup) -> None:
    async with CountedClient(client) as api:
        feeder.api = api.calls
        paths = {**PATHS, "Pod": "/api/v1/pods"} if feeder.config.verify_pods else PATHS
        informers = [Informer(api, path, on_event=feeder.handler(kind), keep=_stub) for kind, path in paths.items()]
        tasks: list[asyncio.Task[Any]] = [group.create_task(informer.run()) for informer in informers]
        tasks.append(group.create_task(nodeevents.follow(api, feeder.config.run_dir, feeder.config.node_name)))
        try:
            for informer in informers:
                await informer.synced.wait()
            feeder.start_feeding()
            await asyncio.Event().wait()
        finally:
            for task in tasks:
                task.cancel()


class _Role:
    """Runs the feeder with the current settings. A change of the zone's settings starts a new feeder."""

    def __init__(self, config: DnsConfig, client: ClientConfig) -> None:
        self.client, self.feeder = client, Feeder(config)
        self.watch: asyncio.Task[None] | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.feeder.serve(reader, writer)

    def begin(self) -> None:
        self.watch = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        async with asyncio.TaskGroup() as group:
            await _watch(self.feeder, self.client, group)

    async def take(self, config: DnsConfig) -> None:
        """Applies new settings. Servers keep the old zone until the new zone is complete."""
        before = self.feeder
        if (config.schema(), config.verify_pods) == (before.config.schema(), before.config.verify_pods):
            return
        log.info("settings of the zone changed, making it again", domain=config.cluster_domain, ttl=config.ttl)
        await self.end()
        self.feeder = Feeder(config)
        before.part()
        self.begin()

    async def end(self) -> None:
        if self.watch is not None:
            self.watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.watch


async def _main(sources: Sources, config: DnsConfig, client: ClientConfig) -> None:
    stop = stop_event()
    role, status = _Role(config, client), RoleStatus(config.run_dir, "dns-feeder")
    config.run_dir.mkdir(parents=True, exist_ok=True)
    listener = accept.streams(unixsocket.listen(config.socket_path), role.serve)
    role.begin()
    following = asyncio.create_task(sources.follow(config, log, role.take))
    while not stop.is_set():
        role.feeder.report(status)
        role.feeder.push_api()
        for task in (role.watch, following):
            if task is not None and task.done() and not task.cancelled():
                task.result()  # the task ends only by an unexpected error: end the process, so that it restarts
        await waits.until_set(stop, STATUS_SECONDS)
    following.cancel()
    await role.end()
    listener.close()
    role.feeder.part()
    status.update(ready=False, message="stopped", reason="Stopped")


def run(config: DnsConfig) -> None:
    """Watches the API and feeds servers until SIGTERM. Raises BadConfig or ConfigError for invalid settings."""
    layout.claim(config.run_dir)
    hold_hangup()
    sources = Sources(config)
    real = sources.load()
    os.nice(NICE)
    gc.disable()  # until the first zone is complete: a start creates hundreds of thousands of permanent objects
    main("dns-feeder", _main(sources, real, load(real.kubeconfig)))
