"""The proxy role: watches Services, EndpointSlices and its Node, and keeps the kernel's table `podwire` equal to them."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from podwire_controlplane.api import meta
from podwire_controlplane.client import logs
from podwire_controlplane.client.config import ConfigError, load
from podwire_controlplane.client.http import ApiClient, ApiError
from podwire_controlplane.client.informer import Informer
from podwire_controlplane.client.reflector import Event
from podwire_controlplane.client.rolestatus import RoleStatus

from . import health
from .changes import Tracker
from .metrics import Metrics
from .model import NodeInfo, normal_ip
from .nftables import apply
from .nftables.layout import Layout
from .nftables.plan import Planner
from .sync import Pacer

log = logs.get("proxy")
SERVICES, SLICES = "/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"
SERVICE_LABELS, SLICE_LABELS = "!service.kubernetes.io/service-proxy-name", "!service.kubernetes.io/headless"
SWEEP_AFTER = 0.05  # seconds: far longer than a packet is on its way through one hook


@dataclass(frozen=True)
class ProxyConfig:
    """kubeconfig None: in-cluster service account. run_dir: the node's run directory, for the role's status file.

    cluster_cidrs: what counts as a pod's address; () switches the detector off. service_cidrs: unallocated addresses
    inside are dropped. min_interval: seconds between two syncs of a burst. metrics_address: "host:port" for /healthz and
    /metrics, "" off.
    """

    node_name: str
    kubeconfig: str | None
    run_dir: Path
    cluster_cidrs: tuple[str, ...] = ("10.244.0.0/16",)
    service_cidrs: tuple[str, ...] = ("10.96.0.0/16",)
    backend: str = "nftables"
    masquerade_all: bool = False
    min_interval: float = 0.01
    verify_interval: float = 600.0
    metrics_address: str = ""

    def node(self, obj: meta.Object | None = None) -> NodeInfo:
        """What the proxy needs to know of its Node; without the object there are no NodePorts and no zone."""
        return node_info(self.node_name, obj, self.cluster_cidrs, self.service_cidrs, self.masquerade_all)


def check(config: ProxyConfig) -> None:
    """Raises ConfigError that names the field and what it should be."""
    if config.backend != "nftables":
        raise ConfigError(f"backend: {config.backend!r} is not known; use 'nftables'")
    if not config.service_cidrs:
        raise ConfigError("service_cidrs: is empty; give the range that ClusterIPs come from, as 10.96.0.0/16")
    for name, cidrs in (("cluster_cidrs", config.cluster_cidrs), ("service_cidrs", config.service_cidrs)):
        for cidr in cidrs:
            try:
                ipaddress.ip_network(cidr, strict=False)
            except ValueError as err:
                raise ConfigError(f"{name}: {cidr!r} is no CIDR, as 10.244.0.0/16 is one") from err
    host, colon, port = config.metrics_address.rpartition(":")
    if config.metrics_address and not (colon and port.isdigit() and int(port) < 65536):
        raise ConfigError(f"metrics_address: {config.metrics_address!r} is not host:port, as {host or '127.0.0.1'}:10249 is")


def node_info(name: str, obj: meta.Object | None, pod_cidrs: tuple[str, ...], service_cidrs: tuple[str, ...],
              masquerade_all: bool = False) -> NodeInfo:
    addresses: dict[bool, str] = {}
    for item in ((obj or {}).get("status") or {}).get("addresses") or []:
        if item.get("type") == "InternalIP":
            try:
                ip = normal_ip(str(item.get("address")))
            except ValueError:
                log.warn("unusable address of the own Node", node=name, address=item.get("address"))
                continue
            addresses.setdefault(":" in ip, ip)
    zone = meta.labels(obj).get("topology.kubernetes.io/zone", "") if obj else ""
    return NodeInfo(name, tuple(addresses.values()), zone, pod_cidrs, service_cidrs, masquerade_all)


@dataclass
class Proxy:
    """One running proxy: informers feed the tracker, a loop paces the syncs."""

    config: ProxyConfig
    tracker: Tracker = field(init=False)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.tracker = Tracker(self.config.node())
        self.pacer = Pacer(self.config.min_interval, self.config.verify_interval)
        self.programmer = apply.Programmer(self.config.node())
        self.status = RoleStatus(self.config.run_dir, "proxy")
        self.problem = "waiting for the first lists of Services and EndpointSlices"
        self._wake = asyncio.Event()
        self._foreign = self._sweeping = False

    # Events

    def _changed(self, *, full: bool = False) -> None:
        self.pacer.changed(full=full)
        self._wake.set()

    def _on_service(self, event: Event) -> None:
        obj = None if event.type == "DELETED" else event.object
        for problem in self.tracker.service(event.key, obj):
            log.warn("Service cannot be served as it says", service=event.key, problem=problem)
        self._changed()

    def _on_slice(self, event: Event) -> None:
        obj = None if event.type == "DELETED" else event.object
        for problem in self.tracker.slice(event.key, obj):
            log.warn("EndpointSlice cannot be used as it says", slice=event.key, problem=problem)
        self._changed()

    def _on_node(self, event: Event) -> None:
        if event.type == "DELETED":
            return  # a Node that is registered anew comes back with the same addresses; its NodePorts stay meanwhile
        node = self.config.node(event.object)
        if self.tracker.node(node):
            log.info("own Node changed", addresses=node.addresses, zone=node.zone)
            self._changed()

    def _on_foreign(self) -> None:
        heard = [watcher.changed() for watcher in self.programmer.watchers]  # every queue must be drained
        if any(heard):
            self._foreign = True
            self._changed(full=True)

    # Syncing

    def _sync(self) -> None:
        now = time.monotonic()
        full = self.pacer.start(now)
        delta = self.tracker.flush()
        try:
            done = self.programmer.sync(self.tracker.dataplane, None if full else delta)
        except OSError as err:  # NftError and netlink's own; the old rules stay, a full sync follows
            self.metrics.failures += 1
            self.pacer.done(time.monotonic(), ok=False, full=full)
            self.problem = str(err)
            log.error("sync failed, the rules stay as they were", error=str(err), failures=self.pacer.failures)
            self._report()
            return
        self.pacer.done(time.monotonic(), ok=True, full=full)
        self.problem = ""
        self.metrics.synced(full=full, seconds=done.seconds, elements=done.elements, flows=done.flows)
        if self._foreign and done.operations:
            self.metrics.repairs += 1
            log.warn("somebody else changed table podwire; repaired", operations=done.operations, elements=done.elements)
        self._foreign = False
        if done.operations or full:
            log.info("synced", full=full, services=self.tracker.dataplane.services, operations=done.operations,
                     elements=done.elements, stale_flows=done.flows, took_ms=done.seconds * 1000)
        self._report()

    def _report(self) -> None:
        plane = self.tracker.dataplane
        self.metrics.services, self.metrics.endpoints = plane.services, self.tracker.endpoints
        figures: dict[str, Any] = {
            "services": plane.services, "endpoints": self.tracker.endpoints, "frontends": len(plane.frontends),
            "repairs": self.metrics.repairs, "failures": self.metrics.failures}
        if self.problem:
            self.status.update(ready=False, message=self.problem, reason="SyncFailed", **figures)
        else:
            message = f"{plane.services} Services, {self.tracker.endpoints} endpoints"
            self.status.update(ready=True, message=message, **figures)

    async def _sync_loop(self) -> None:
        loop = asyncio.get_running_loop()
        before = self.programmer.foreign_commits()
        self._sync_once(loop)
        for watcher in self.programmer.watch():
            loop.add_reader(watcher.fileno(), self._on_foreign)
        if self.programmer.foreign_commits() != before:
            self._changed(full=True)  # somebody wrote between our read-back and the watch: perhaps into our table
        while True:
            wait = self.pacer.due(time.monotonic())
            if wait > 0:
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), wait)
                continue
            self._sync_once(loop)
            await asyncio.sleep(0)  # a sync that is due again at once must not starve the watches

    def _sync_once(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sync()
        if self.programmer.unswept and not self._sweeping:
            self._sweeping = True
            loop.call_later(SWEEP_AFTER, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = False
        try:
            self.programmer.sweep()
        except OSError as err:
            log.error("unused slots could not be deleted; a full sync follows", error=str(err))
            self._changed(full=True)

    async def run(self, api: ApiClient) -> None:
        self.status.update(ready=False, message=self.problem, reason="Starting")
        informers = [
            Informer(api, SERVICES, label_selector=SERVICE_LABELS, on_event=self._on_service),
            Informer(api, SLICES, label_selector=SLICE_LABELS, on_event=self._on_slice),
            Informer(api, "/api/v1/nodes", field_selector=f"metadata.name={self.config.node_name}", on_event=self._on_node)]
        async with asyncio.TaskGroup() as group:
            for informer in informers:
                group.create_task(informer.run())
            for informer in informers:
                await informer.synced.wait()
            if not self.tracker.dataplane.node.addresses and not informers[2].objects:
                log.warn("own Node is not registered yet: no NodePorts until it is", node=self.config.node_name)
            group.create_task(self._sync_loop())

    def healthy(self) -> tuple[bool, str]:
        return not self.problem, self.problem or "rules are up to date"


async def _main(config: ProxyConfig) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    apply.remove_idle(config.node())
    proxy = Proxy(config)
    async with ApiClient(load(config.kubeconfig)) as api:
        runner = await health.serve(config.metrics_address, proxy.metrics, proxy.healthy) if config.metrics_address else None
        work, told = asyncio.ensure_future(proxy.run(api)), asyncio.ensure_future(stop.wait())
        await asyncio.wait({work, told}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        work.cancel()
        told.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        if runner:
            await runner.cleanup()
    proxy.programmer.close()


def run(config: ProxyConfig) -> None:
    """Serve until SIGTERM or SIGINT, inside the node's network namespace. The rules stay in the kernel.

    Raises ConfigError for a field or a kubeconfig that cannot be used, and OSError where nf_tables is not available.
    """
    check(config)
    logs.configure(node=config.node_name)
    log.info("starting", backend=config.backend, pods=config.cluster_cidrs, services=config.service_cidrs)
    asyncio.run(_main(config))
    log.info("stopped, rules stay")


def cleanup(ns_fd: int | None = None) -> list[str]:
    """Remove all that the proxy wrote into this namespace's kernel (or the one behind `ns_fd`); returns what was there."""
    return apply.cleanup(ns_fd)


async def dry_run(config: ProxyConfig) -> list[str]:
    """What a first sync would write into an empty kernel, one line a step. Raises ApiError, ConfigError."""
    check(config)
    async with ApiClient(load(config.kubeconfig)) as api:
        node = await api.get("/api/v1/nodes", fieldSelector=f"metadata.name={config.node_name}")
        services = await api.get(SERVICES, labelSelector=SERVICE_LABELS)
        slices = await api.get(SLICES, labelSelector=SLICE_LABELS)
    tracker = Tracker(config.node(next(iter(node["items"]), None)))
    for obj in services["items"]:
        tracker.service(meta.key(obj), obj)
    for obj in slices["items"]:
        tracker.slice(meta.key(obj), obj)
    tracker.flush()
    planners = [Planner(Layout(family), tracker.dataplane.node) for family in apply.families(tracker.dataplane.node)]
    return [str(op) for planner in planners for op in planner.full(tracker.dataplane, None)]


@click.command("proxy")
@click.option("--node-name", required=True, envvar="NODE_NAME", help="name of this machine's Node object")
@click.option("--kubeconfig", default=None, envvar="KUBECONFIG", help="kubeconfig file (default: in-cluster)")
@click.option("--run-dir", default="/run/podwire", type=click.Path(path_type=Path), show_default=True)
@click.option("--cluster-cidr", "cluster_cidrs", multiple=True, default=("10.244.0.0/16",), show_default=True,
              help="addresses of pods; repeat for IPv6")
@click.option("--service-cidr", "service_cidrs", multiple=True, default=("10.96.0.0/16",), show_default=True,
              help="addresses of Services; repeat for IPv6")
@click.option("--masquerade-all", is_flag=True, help="masquerade all traffic to ClusterIPs")
@click.option("--metrics-address", default="", help="host:port for /healthz and /metrics (default: off)")
@click.option("--dry-run", "dry", is_flag=True, help="print what would be written and exit")
@click.option("--cleanup", "clean", is_flag=True, help="remove all rules of the proxy and exit")
def command(node_name: str, kubeconfig: str | None, run_dir: Path, cluster_cidrs: tuple[str, ...],
            service_cidrs: tuple[str, ...], masquerade_all: bool, metrics_address: str, dry: bool, clean: bool) -> None:
    """Serve Services on this node with nftables."""
    config = ProxyConfig(node_name, kubeconfig, run_dir, cluster_cidrs, service_cidrs, masquerade_all=masquerade_all,
                         metrics_address=metrics_address)
    try:
        if clean:
            for line in cleanup():
                click.echo(f"removed {line}")
        elif dry:
            for line in asyncio.run(dry_run(config)):
                click.echo(line)
        else:
            run(config)
    except (ConfigError, ApiError, OSError) as err:
        raise click.ClickException(str(err)) from err
