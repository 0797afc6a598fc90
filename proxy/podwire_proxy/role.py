"""One running proxy: follows Services, EndpointSlices and its Node, and paces the syncs of the kernel's rules."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from podwire_base.kernel.addresses import local_addresses
from podwire_base.kube import meta
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.client.informer import Informer
from podwire_base.kube.client.reflector import Event
from podwire_base.kube.errors import ApiError, Refused
from podwire_base.kube.shape import misshapen
from podwire_base.role import beat, logs, waits
from podwire_base.role.status import RoleStatus, repairs
from podwire_base.role.upkeep import Mendings, Upkeep

from . import backends, host
from .backend import families
from .changes import DeduplicatedLog, Tracker
from .claimwatch import ClaimWatch, Post
from .config import NODE_SHAPE, NODES, ProxyConfig, eligible, service_cidrs, wanted_flows
from .externalwatch import ExternalWatch
from .health import Health, ServiceChecks, Sites
from .hostfacts import findings
from .metrics import Metrics
from .objects import stub, triggered
from .proxier import Proxier, Synced
from .settings import SERVICE_LABELS, SERVICES, SLICE_LABELS, SLICES
from .sweeper import Sweeper
from .sync import RETRY_BUSY, Pacer

log = logs.get("proxy")
SERVICE_CIDRS = "/apis/networking.k8s.io/v1/servicecidrs"
PROBE_AGAIN = 0.2  # seconds
NO_ADDRESS = "own Node has neither InternalIP nor ExternalIP: no NodePorts"
REPORT = 0.5  # seconds between two reports of a ready role


@dataclass
class Proxy:
    """Informers feed the tracker, and a loop paces the syncs."""

    config: ProxyConfig
    tracker: Tracker = field(init=False)
    metrics: Metrics = field(default_factory=Metrics)
    # sends an Event about a Service: (Service, reason, message)
    tell: Callable[[str, str, str], None] = field(default=lambda service, reason, why: None)
    post: Post = field(default=lambda whom, make: None)  # sends any Event

    def __post_init__(self) -> None:
        self.tracker = Tracker(self.config.node())
        self.proxier = Proxier(backends.configured(self.config), self.config.node())
        self.pacer = Pacer(self.config.min_interval, self.config.verify_interval, self.proxier.no_notifications)
        self.metrics.families = tuple("IPv6" if family == "ip6" else "IPv4" for family in families(self.config.node()))
        self.metrics.names = self.proxier.backend.metrics
        self.metrics.rules, self.metrics.counted = self.proxier.rule_counts, self.proxier.counted
        self.metrics.mended = lambda: repairs(self.config.run_dir)
        self.metrics.figures = self.proxier.figures
        self.status = RoleStatus(self.config.run_dir, "proxy")
        self.mendings = Mendings(log, "proxy", self.config.node_name)
        self.upkeep = Upkeep(self.proxier.counts(), self._read_back, gather=0.0, again=0.0)  # the pacer paces
        self._reported = 0.0  # the time of the last report; a report too soon after it is postponed
        self._report_due = self._well = False
        self.problem = "waiting for the first lists of Services and EndpointSlices"
        self._wake, self._told = asyncio.Event(), DeduplicatedLog()
        self._foreign = self._retired = False
        self.sweeper = Sweeper(self.proxier, self.metrics.swept, self._sweep_failed)
        self._node: meta.Object | None = None
        self._waiting_since = time.monotonic()  # the time of the oldest unwritten change; 0: no such change
        self._triggers: list[float] = []
        self._ranges: dict[str, tuple[str, ...]] = {}
        self._service_cidrs: tuple[str, ...] = ()
        self._host: list[str] = []
        self.conntrack = host.ConntrackSettings(
            dict(self.config.conntrack), wanted_flows(self.config, os.cpu_count() or 1), self.config.conntrack_table
        )
        self.checks = ServiceChecks(lambda: self.health().healthy, self._check_failed)
        self._checks_wake = asyncio.Event()
        self._info = self.config.node()  # of the last Node
        self.sites = Sites({})
        self.externals = ExternalWatch(self.config, self.tracker, self._read_node, self._send_event)
        self.claims = ClaimWatch(
            self.config.run_dir, self.config.node_name, self.tracker, self._post_event, self._report
        )
        self._read_node()

    # Events

    def _changed(self, *, full: bool = False) -> None:
        self._waiting_since = self._waiting_since or time.monotonic()
        beat.pending()
        self.pacer.changed(full=full)
        self._wake.set()

    def _on_service(self, event: Event) -> None:
        obj = None if event.type == "DELETED" else event.object
        self.metrics.queued(service=True)
        for problem in self._told.news("Service", event.key, self.tracker.service(event.key, obj)):
            log.warn("Service is partly unusable", service=event.key, problem=problem)
        self.externals.note_service()
        self._changed()

    def _on_slice(self, event: Event) -> None:
        obj = None if event.type == "DELETED" else event.object
        self.metrics.queued(endpoint=True)
        if (trigger := triggered(obj)) and self.metrics.last_sync:
            self._triggers.append(trigger)
        for problem in self._told.news("EndpointSlice", event.key, self.tracker.slice(event.key, obj)):
            log.warn("EndpointSlice is partly unusable", slice=event.key, problem=problem)
        self._changed()

    def _on_node(self, event: Event) -> None:
        if event.key != self.config.node_name:
            return  # an API server without field selectors
        node = None if event.type == "DELETED" else event.object
        if problem := misshapen(node, NODE_SHAPE):
            log.warn("own Node is not formed as Nodes are; what it said before stays", node=event.key, problem=problem)
            return
        self._node = node
        self._read_node()

    def _read_node(self) -> None:
        if self._node is not None:  # a Node that registers again has the same addresses; its NodePorts stay until then
            config = replace(self.config, service_cidrs=self._service_cidrs or self.config.service_cidrs)
            local = map(str, local_addresses()) if config.scans_addresses else ()
            self._info = config.node(
                self._node, local, lambda what: log.warn("own Node", node=config.node_name, unusable=what)
            )
        node = self._info
        if self.tracker.node(self.externals.rules(node, self._node)):
            log.info(
                "own Node or the cluster's ranges changed",
                addresses=node.addresses,
                zone=node.zone,
                node_ports=node.node_port_ips,
                pods=node.pod_cidrs or node.pod_interface,
                services=node.service_cidrs,
            )
            self._changed(full=True)  # rules and interval sets depend on the node too
        elif self.tracker.pending:
            self._changed()

    def _on_service_cidr(self, event: Event) -> None:
        """Handles a ServiceCIDR (KEP-1880). If such objects exist, their ranges override the configured ranges."""
        if event.type == "DELETED":
            self._ranges.pop(event.key, None)
        else:
            self._ranges[event.key] = tuple((event.object.get("spec") or {}).get("cidrs") or ())
        self._service_cidrs, strange = service_cidrs(self._ranges.values(), self.config.service_cidrs)
        for cidr in strange:
            log.warn(
                "ServiceCIDR cannot be used: no CIDR, or of a family without --service-cidr",
                object=event.key,
                cidr=cidr,
            )
        self._read_node()

    async def _read_back(self) -> None:
        """Another program may have changed the rules."""
        self._foreign = True
        self._changed(full=True)

    # Syncing

    def _sync(self) -> None:
        asked = self.pacer.pending or not self.metrics.last_sync
        full = self.pacer.start(time.monotonic())
        if full and self.config.scans_addresses:
            self._read_node()
        beat.taking()
        delta = self.tracker.flush()
        try:
            done = self.proxier.sync(self.tracker.dataplane, None if full else delta)
        except OSError as err:  # includes NftError and netlink errors; the old rules stay, and a full sync follows
            self.metrics.failed(full=full)
            self.pacer.done(time.monotonic(), ok=False, full=full, busy=(busy := err.errno == errno.EAGAIN))
            if not busy or self.problem != str(err):  # a busy sync repeats twice a second
                log.error("sync failed, the rules stay as they were", error=str(err), failures=self.pacer.failures)
            self.problem = str(err)
            self._foreign = self._foreign or err.errno == errno.ENOENT  # another program took what was to be changed
            self._report()
            return
        self.pacer.done(time.monotonic(), ok=True, full=full)
        self.problem, self._waiting_since = "", 0.0
        beat.settled()
        self.metrics.synced(full=full, seconds=done.seconds, elements=done.elements, verdicts=done.verdicts)
        for trigger in self._triggers:
            self.metrics.programming.observe(max(0.0, time.time() - trigger))
        self._triggers.clear()
        self._checks_wake.set()
        self.externals.tell_refusals()
        self.claims.tell()
        if (self._foreign or not (asked or delta)) and done.operations:
            self.metrics.repairs += 1
            self._tell_mended(done)
        self._foreign = False
        if full:
            self.upkeep.settled()
            self._look_at_host()
        if done.operations or full:
            log.info(
                "synced",
                full=full,
                services=self.tracker.dataplane.services,
                operations=done.operations,
                elements=done.elements,
                took_ms=done.seconds * 1000,
            )
        self._report()

    def _tell_mended(self, done: Synced) -> None:
        self.mendings.tell([f"Service rules ({done.operations} operations, {done.elements} elements)"])
        for made in self.mendings.events():
            self._post_event(
                {"kind": "Node", "namespace": "default", "name": self.config.node_name}, partial(_as_made, made)
            )

    def _look_at_host(self) -> None:
        try:
            self.conntrack.apply()
            refused = [(name, self.conntrack.wanted[name], why) for name, why in self.conntrack.refused.items()]
            facts = host.facts(backends.foreign())
            found = findings(
                replace(facts, conntrack_wanted=self.conntrack.flows, conntrack_refused=tuple(sorted(refused)))
            )
        except OSError as err:
            log.warn("the host could not be checked", error=str(err))
            return
        for problem in found:
            if problem not in self._host:
                log.warn("the host keeps Services from working", problem=problem)
        self._host = found

    def _report(self) -> None:
        plane = self.tracker.dataplane
        self.metrics.services, self.metrics.endpoints = plane.services, self.tracker.endpoints
        kinds = [(family, policy) for family in ("IPv4", "IPv6") for policy in ("internal", "external")]
        self.metrics.no_local_endpoints = dict(zip(kinds, plane.no_local_endpoints, strict=True))
        figures: dict[str, Any] = {
            "services": plane.services,
            "endpoints": self.tracker.endpoints,
            "frontends": len(plane.frontends),
            "lost_claims": self.claims.count,
            **self.mendings.figures(),
            "repairs": self.metrics.repairs,
            "failures": self.metrics.failures,
        }
        now = time.monotonic()
        # a report per sync would write the status file at each change
        if not self.problem and self._well and now < self._reported + REPORT:
            if not self._report_due:
                self._report_due = True
                asyncio.get_running_loop().call_later(REPORT, self._report)
            return
        self._reported, self._report_due, self._well = now, False, not self.problem
        if self.problem:
            self.status.update(ready=False, message=self.problem, reason="SyncFailed", **figures)
        else:
            problems = [] if self._node is None or self._info.addresses else [NO_ADDRESS]
            message = f"{plane.services} Services, {self.tracker.endpoints} endpoints" + "".join(
                f"; {problem}"
                for problem in (*self.proxier.told, *problems, *self.claims.status, *self._host, *self.sites.told())
            )
            message += self.mendings.words()
            self.status.update(ready=True, message=message, **figures)

    async def _sync_loop(self) -> None:
        loop = asyncio.get_running_loop()
        before = self.proxier.foreign_commits()
        self._sync_once(loop)
        gc.freeze()
        watches = self.proxier.watch()
        # A foreign commit between the read-back and the watch may have changed the table.
        if self.proxier.foreign_commits() != before:
            self._foreign = not self.pacer.pending  # with pending changes, a difference may come from the API
            self._changed(full=True)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.upkeep.run(watches))
            group.create_task(self._keep_syncing(loop))

    async def _keep_syncing(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            wait = self.pacer.due(time.monotonic())
            if wait > 0:
                self._wake.clear()
                await waits.until_set(self._wake, wait)
                continue
            self._sync_once(loop)
            await asyncio.sleep(0)  # consecutive syncs must not starve the watches

    def _retire(self) -> None:
        """Removes the rules of the previous backend after the first sync. Translated flows stay translated."""
        if not self.metrics.last_sync:
            return  # the first sync failed; the old rules are better than no rules
        self._retired = True
        try:
            for line in backends.retire(self.proxier):
                log.info("removed what another backend left", what=line)
        except OSError as err:
            if err.errno == errno.EAGAIN:
                asyncio.get_running_loop().call_later(RETRY_BUSY, self._retire)
                return
            log.warn("another backend's rules could not be removed: podwire cleanup", error=str(err))

    def _sync_once(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sync()
        if not self._retired:
            self._retire()
        self.sweeper.after_sync()

    def _sweep_failed(self, err: OSError) -> None:
        self.metrics.cleanup_failures += 1
        log.error("unused slots or flows could not be deleted; a full sync follows", error=str(err))
        self._foreign = self._foreign or err.errno == errno.ENOENT  # another program took what was to be changed
        self._changed(full=True)

    async def run(self, api: ApiClient) -> None:
        self.status.update(ready=False, message=self.problem, reason="Starting")
        informers = [
            Informer(api, SERVICES, label_selector=SERVICE_LABELS, on_event=self._on_service, keep=stub),
            Informer(api, SLICES, label_selector=SLICE_LABELS, on_event=self._on_slice, keep=stub),
            Informer(api, NODES, field_selector=f"metadata.name={self.config.node_name}", on_event=self._on_node),
        ]
        async with asyncio.TaskGroup() as group:
            for informer in informers:
                group.create_task(informer.run())
            if await _served(api, SERVICE_CIDRS):
                informers.append(ranges := Informer(api, SERVICE_CIDRS, on_event=self._on_service_cidr))
                group.create_task(ranges.run())
            for informer in informers:
                await informer.synced.wait()
            if not self.tracker.dataplane.node.addresses and not informers[2].objects:
                log.warn("own Node is not registered yet: no NodePorts until it is", node=self.config.node_name)
            group.create_task(self.externals.follow(api, partial(_served, api, NODES)))
            group.create_task(self.externals.watch_listeners())
            group.create_task(self.claims.watch_host_ports())
            if self.tracker.externals:  # else the first sync would remove their rules, and the next add them again
                await self.externals.complete.wait()
            group.create_task(self._sync_loop())
            group.create_task(self._check_loop())

    async def _check_loop(self) -> None:
        """Updates the health check listeners after changes. This work needs `await`; a sync does not."""
        try:
            while True:
                await self.checks.due(self._checks_wake)
                await self.checks.update(self.tracker.dataplane.health, self.tracker.dataplane.node.node_port_ips)
        finally:
            await self.checks.close()

    def _send_event(self, service: str, reason: str, why: str) -> None:
        self.tell(service, reason, why)

    def _post_event(self, whom: meta.Object, make: Callable[[meta.Object], meta.Object]) -> None:
        self.post(whom, make)

    def _check_failed(self, service: str, why: str) -> None:
        log.warn("health check of a Service cannot be served", service=service, problem=why)
        self.tell(service, "FailedToStartServiceHealthcheck", why)

    def health(self) -> Health:
        late = bool(self._waiting_since) and time.monotonic() - self._waiting_since > self.config.healthz_timeout
        good = not late and bool(self.metrics.last_sync)
        return Health(
            good, self.problem or ("an update waits" if late else "rules are up to date"), eligible(self._node)
        )


def _as_made(event: meta.Object, _whom: meta.Object) -> meta.Object:
    return event


async def _served(api: ApiClient, path: str) -> bool:
    """Whether the API server has this resource. Retries until the server answers."""
    while True:
        try:
            await api.get(path, limit="1")
        except ApiError as err:
            if isinstance(err, Refused) and err.code in (401, 403, 404, 405):
                return False
            await asyncio.sleep(PROBE_AGAIN)
        else:
            return True
