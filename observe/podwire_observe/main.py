"""The role `observe`: follows the node's connections and answers who asks for them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from podwire_base.kernel.addresses import local_addresses
from podwire_base.kernel.conntrack.counted import Counted
from podwire_base.kernel.nflogsocket import Reader
from podwire_base.kernel.reasons import Reason
from podwire_base.kube import meta
from podwire_base.kube.client.config import load
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.client.informer import Informer
from podwire_base.kube.client.reflector import Event
from podwire_base.role import beat, layout, logs, podspaces, process, web
from podwire_base.role.metrics import CONTENT_TYPE
from podwire_base.role.run import main, stop_event, until_stopped
from podwire_base.role.status import RoleStatus

from . import drops as refusals
from . import sources, sysctls
from .config import AFTERWARDS, SOCKET, ObserveConfig
from .fold import Fold
from .metrics import Figures, page
from .names import Names, compact
from .record import End
from .serve import Server, listen
from .told import Told

log = logs.get("observe")
SERVICES, NODES = "/api/v1/services", "/api/v1/nodes"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
NAP = 0.008  # seconds after the first event, in which others gather: one wake-up for many
HELD = 0.03  # seconds for which an opening is held, so that a refusal that follows at once makes one line
TICK = 2.0
POLL, SHARE = 10.0, 0.01  # seconds between two polls, more if a poll would take more than this share of a core


class Role:
    """The role as it runs."""

    def __init__(self, config: ObserveConfig) -> None:
        self.config = config
        self.names = Names(config.node_name, config.cluster_cidrs, config.service_cidrs)
        self.fold = Fold(config.node_name, self.names.ends, time.time(), sysctls.timeouts())
        self.server = Server(self.fold, config.mode, self._readers)
        self.status = RoleStatus(config.run_dir, "observe")
        self.events: sources.Events | None = None
        self.drops: Reader | None = None
        self.deaf = ""
        self.told = Told(log.info)
        self.off: list[str] = []
        self._spaces: tuple[int, int] | None = None
        self._napping = self._publishing = False
        self._leave: asyncio.TimerHandle | None = None
        self._poll_now = asyncio.Event()
        self._failed = ""

    # Names

    def look(self) -> None:
        """Reads which pods the node has, if that changed, and the node's addresses."""
        path = podspaces.path(self.config.run_dir)
        try:
            found = path.stat()
            if (found.st_ino, found.st_mtime_ns) == self._spaces:
                return
            spaces = podspaces.decode(path.read_text())
        except (OSError, UnicodeDecodeError):
            return  # no pod wiring of podwire's on this node
        self._spaces = found.st_ino, found.st_mtime_ns
        pods = {}
        for space in spaces:
            namespace, slash, name = space.pod.partition("/")
            if slash:
                pods.update(dict.fromkeys(space.ips, End("pod", namespace, name, self.config.node_name)))
        self.names.pods_are(pods, time.time())

    def _addresses(self) -> None:
        found = frozenset(map(str, local_addresses()))
        if found != self.names.local:
            self.names.local = found
            self.names.forget()

    # Events

    def _readers(self, there: bool) -> None:
        if self.config.mode != "on-demand":
            return
        if self._leave is not None:
            self._leave.cancel()
            self._leave = None
        if there:
            self.subscribe()
        else:
            self._leave = asyncio.get_running_loop().call_later(AFTERWARDS, self.unsubscribe)

    def subscribe(self) -> None:
        if self.events is not None:
            return
        try:
            self.events = sources.Events(self.config.room)
        except OSError as err:
            self._failed = f"no events of conntrack: {err}"
            log.error("no events of conntrack, polls alone tell of connections", error=str(err))
            return
        self._failed = ""
        self.fold.restart(time.time())
        asyncio.get_running_loop().add_reader(self.events.fileno(), self._ready)
        self._poll_now.set()
        self._report()

    def unsubscribe(self) -> None:
        self._leave = None
        if self.events is None:
            return
        asyncio.get_running_loop().remove_reader(self.events.fileno())
        self.events.close()
        self.events = None
        self._report()

    def _ready(self) -> None:
        """Events have come: waits a moment for others."""
        assert self.events is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.events.fileno())
        loop.call_later(NAP, self._drain)

    def _drain(self) -> None:
        if self.events is None:
            return
        loop, now = asyncio.get_running_loop(), time.time()
        try:
            found = self.events.read()
        except OSError as err:
            log.error("events cannot be read, subscribing again", error=str(err))
            self.unsubscribe()
            self.subscribe()
            return
        self.look()
        fold = self.fold
        for seen in found.events:
            fold.event(seen, now)
        if found.lost:
            fold.lose(found.lost, now)
            self.server.tell({"lost": found.lost})
            log.warn("events were lost", count=found.lost)
            self._poll_now.set()
        if found.more:
            loop.call_soon(self._drain)
        else:
            loop.add_reader(self.events.fileno(), self._ready)
        self._publish_soon()

    def _publish_soon(self) -> None:
        if not self._publishing:
            self._publishing = True
            asyncio.get_running_loop().call_later(HELD, self._publish)

    def _publish(self) -> None:
        self._publishing = False
        self.server.publish(self.fold.take())

    # Packets that rules refused or dropped

    def _read_drops(self) -> None:
        """Becomes the reader of what rules log. While another process is, it tries again at each tick."""
        try:
            self.drops = Reader()
        except OSError as err:
            if not self.deaf:
                log.warn("the log of refused packets cannot be read", error=str(err))
            self.deaf = f"what rules refuse is not shown: {err.strerror or err}"
            return
        self.deaf = ""
        asyncio.get_running_loop().add_reader(self.drops.fileno(), self._logged)

    def _logged(self) -> None:
        assert self.drops is not None
        now = time.time()
        try:
            found, overruns = self.drops.read()
        except OSError as err:
            self.deaf = f"what rules refuse is not shown: {err.strerror or err}"
            asyncio.get_running_loop().remove_reader(self.drops.fileno())
            self.drops.close()
            self.drops = None
            return
        if overruns:
            log.warn("refused packets were not logged", overruns=overruns)
            self.fold.hide(overruns, now)
        self.look()
        for one in found:
            flow = refusals.flow_of(self.names, one, now)
            self.told.tell(one, self.names, now)
            if flow is not None and one.reason is not Reason.STAGED:
                self.fold.drop(flow, now)
        self._publish_soon()

    # Polls

    async def _polling(self) -> None:
        wait = POLL
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._poll_now.wait()
            self._poll_now.clear()
            began = time.thread_time()
            self.look()
            try:
                found, spent = await asyncio.to_thread(_dump)
            except OSError as err:
                log.warn("conntrack's entries cannot be read", error=str(err))
                continue
            self.fold.poll(found, time.time(), listening=self.events is not None)
            self._publish_soon()
            wait = max(POLL, (spent + time.thread_time() - began) / SHARE)

    async def _ticking(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self._addresses()
            self.look()
            if self.drops is None:
                self._read_drops()
            self.fold.tick(time.time())
            self._report()

    def _report(self) -> None:
        fold = self.fold
        words = "follows connections" if self.events is not None else "polls connections until somebody asks"
        if self._failed:
            words = self._failed
        if self.off:
            words += f"; {', '.join(self.off)} off: no bytes or times"
        words += f"; {self.deaf}" if self.deaf else ""
        words += f"; {fold.lost} events lost" if fold.lost else ""
        self.status.update(
            ready=not self._failed,
            message=words,
            reason="NoEvents" if self._failed else "",
            mode=self.config.mode,
            lost=fold.lost,
        )

    def metrics(self) -> web.Answer:
        """Returns the page /metrics."""
        fold = self.fold
        fold.totals.keep(self.names.services())
        pairs = sum(len(slot.pairs) for slot in fold.window.slots)
        figures = Figures(fold.lost, fold.unshown, sum(1 for _ in fold.live()), pairs)
        return web.Answer(200, page(fold.totals, figures, process.figures()), CONTENT_TYPE)

    # Running

    def _informers(self, api: ApiClient) -> list[Informer]:
        def of(take: Callable[[str, meta.Object | None], None]) -> Callable[[Event], None]:
            return lambda event: take(event.key, None if event.type == "DELETED" else event.object)

        return [
            Informer(api, SERVICES, on_event=of(self.names.service), keep=_known, cut=_trimmed),
            Informer(api, SLICES, on_event=of(self.names.slice), keep=_known, cut=_compact),
            Informer(api, NODES, on_event=of(self.names.node_object), keep=_known, cut=_trimmed),
        ]

    async def run(self, api: ApiClient) -> None:
        self.status.update(ready=False, message="waiting for the first lists", reason="Starting")
        if self.config.accounting:
            self.off = sysctls.ensure(self.config.run_dir)
        self._addresses()
        self.look()
        server = listen(self.server, self.config.run_dir / SOCKET)
        try:
            async with asyncio.TaskGroup() as group:
                informers = self._informers(api)
                for informer in informers:
                    group.create_task(informer.run())
                for informer in informers:
                    await informer.synced.wait()
                self._read_drops()
                if self.config.mode == "always":
                    self.subscribe()
                beat.settled()
                self._report()
                group.create_task(self._polling())
                group.create_task(self._ticking())
        finally:
            server.close()
            self.unsubscribe()
            if self.drops is not None:
                asyncio.get_running_loop().remove_reader(self.drops.fileno())
                self.drops.close()


def _dump() -> tuple[list[Counted], float]:
    """Returns the entries, and the CPU seconds that they took."""
    began = time.thread_time()
    return list(sources.entries()), time.thread_time() - began


def _known(obj: meta.Object) -> meta.Object:
    """Returns what the copy of the API's objects needs: names have the rest."""
    found = obj["metadata"]
    return {"metadata": {key: found[key] for key in ("name", "namespace", "resourceVersion") if key in found}}


def _trimmed(obj: meta.Object) -> meta.Object:
    """Returns what names need of an object."""
    return _known(obj) | {part: obj[part] for part in ("spec", "status") if part in obj}


def _compact(obj: meta.Object) -> meta.Object:
    return compact(obj) | _known(obj)


async def _main(config: ObserveConfig) -> None:
    stop, role = stop_event(), Role(config)
    async with ApiClient(load(config.kubeconfig)) as api, contextlib.AsyncExitStack() as stack:
        await web.serve_beside(config.metrics_address, {"/metrics": role.metrics}, stack)
        await until_stopped(stop, role.run(api))


def run(config: ObserveConfig) -> None:
    """Serves until SIGTERM or SIGINT, inside the node's network namespace. Raises ConfigError."""
    logs.configure(node=config.node_name)
    layout.check(config.run_dir)
    layout.claim(config.run_dir)
    log.info("starting", mode=config.mode)
    main("observe", _main(config))
    log.info("stopped")
