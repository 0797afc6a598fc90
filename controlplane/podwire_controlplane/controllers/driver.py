"""The driver runs all controllers: informers fill the snapshot, a queue holds the keys to reconcile, and the driver
sends the changes to the API.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from podwire_base.kernel.addresses import gateways
from podwire_base.kube.client import config as client_config
from podwire_base.kube.client.http import MERGE_PATCH, ApiClient
from podwire_base.kube.client.informer import Informer
from podwire_base.kube.client.recorder import Recorder
from podwire_base.kube.client.reflector import Event
from podwire_base.kube.errors import ConfigError, Refused, Unreachable
from podwire_base.kube.events import event
from podwire_base.kube.meta import Object, uid
from podwire_base.kube.meta import key as object_key
from podwire_base.kube.registry import BUILTIN, Resource, of
from podwire_base.role import beat, logs
from podwire_base.role.run import main, notify, stop_event, until_stopped

from . import (
    accounts,
    cleanup,
    cronjobs,
    customkinds,
    daemonsets,
    disruption,
    endpointslices,
    jobs,
    loadbalancer,
    nodes,
    protection,
    quota,
    roles,
    scheduler,
    servicecidrs,
    statefulsets,
    tainteviction,
    unattended,
    workloads,
)
from .base import Controller, Snapshot, Told, Write

log = logs.get("controllers")
_CUSTOM_SECONDS = 5.0
_RETRY_FIRST, _RETRY_AWAY, _RETRY_LAST = 0.05, 1.0, 10.0


@dataclass(frozen=True)
class ControllersConfig:
    """cluster_cidr: pod addresses: a CIDR, or an IPv4 and an IPv6 CIDR with a comma between. node_prefix, node_prefix6:
    prefix lengths of each node's podCIDRs. load_balancer_pool: addresses of the pool that the controller
    creates if there is none. only: names of the controllers to run; () for all.
    """

    kubeconfig: str | None
    cluster_cidr: str = "10.244.0.0/16"
    node_prefix: int = 24
    load_balancer_pool: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    node_prefix6: int = 64


class Driver:
    """There is one worker. It applies the changes of a key and updates the snapshot before it takes the next key."""

    def __init__(self, api: ApiClient, controllers: Iterable[Controller]) -> None:
        self.api = api
        self.controllers = {c.name: c for c in controllers}
        self.informers = {
            r.kind: self._informer(r)
            for r in BUILTIN.stored
            if any(r.kind in c.watches for c in self.controllers.values())
        }
        self._kinds = {kind: informer.objects for kind, informer in self.informers.items()}
        self.snapshot = Snapshot(self._kinds)
        self._custom: dict[str, Resource] = {}  # custom kind -> its row
        self._defined: dict[str, tuple[str, asyncio.Task[None]]] = {}  # definition -> its kind and its informer's task
        self._queue: dict[tuple[str, str], None] = {}  # ordered set: a key waits at most once
        self._failures: dict[tuple[str, str], int] = {}
        self._wake = asyncio.Event()
        self.recorder = Recorder(api, lambda text: log.debug("event not stored", error=text))

    def _informer(self, resource: Resource) -> Informer:
        """Return an informer of all objects of a kind, or of the only object of that kind that a controller reads."""
        kind = resource.kind
        on_event = partial(self._on_event, kind)  # the items of a list do not contain their kind
        readers = [c for c in self.controllers.values() if kind in c.watches]
        places, kept = {c.within.get(kind) for c in readers}, {c.keep.get(kind) for c in readers}
        if len(places) == 1 and (place := places.pop()):
            return Informer(
                self.api, resource.path(place[0]), field_selector=f"metadata.name={place[1]}", on_event=on_event
            )
        keep = kept.pop() if len(kept) == 1 else None
        return Informer(self.api, resource.path(), on_event=on_event, keep=keep)

    def _enqueue(self, controller: str, key: str) -> None:
        self._queue[(controller, key)] = None
        self._wake.set()

    def _on_event(self, kind: str, event: Event) -> None:
        if kind == customkinds.DEFINITIONS:
            self._follow(event)
        for controller in self.controllers.values():
            for seen in (event.old, event.object):
                if seen is not None:
                    self._touch(controller, kind, seen)

    def _follow(self, event: Event) -> None:
        """Start or end the informer of a definition's kind."""
        seen = event.object or event.old
        if seen is None or not any(controller.custom for controller in self.controllers.values()):
            return
        own = object_key(seen)
        row = customkinds.row_of(seen) if event.type != "DELETED" else None
        kind = customkinds.kind_of(row) if row else ""
        before, task = self._defined.get(own, ("", None))
        if kind == before and self._custom.get(kind) == row:
            return
        if task is not None:
            task.cancel()
            del self._defined[own], self._custom[before], self.informers[before], self._kinds[before]
        if row is not None and kind not in self._custom:
            informer = Informer(self.api, row.path(), on_event=partial(self._on_event, kind))
            self._custom[kind], self.informers[kind], self._kinds[kind] = row, informer, informer.objects
            self._defined[own] = kind, asyncio.get_running_loop().create_task(informer.run())

    def _touch(self, controller: Controller, kind: str, obj: Object) -> None:
        """Queue the keys that an event on `obj` touches. If one controller cannot map a malformed object, the other
        controllers still get the event.
        """
        mapper = controller.custom if kind in self._custom else controller.watches.get(kind)
        if mapper is None:
            return
        try:
            for key in mapper(obj, self.snapshot):
                self._enqueue(controller.name, key)
        except Exception as err:
            log.error(
                "event not understood", controller=controller.name, kind=kind, object=object_key(obj), error=repr(err)
            )

    async def _forbidden(self, change: Write) -> bool:
        """Whether the API has an object of `change.unless`. An owner may be newer than the caches."""
        for kind, space, name, wanted in change.unless:
            try:
                path = await self._path(kind, space, name)
                if path is None or uid(await self.api.get(path)) == wanted:
                    return True
            except Refused as err:
                if err.code != 404:
                    raise
        return False

    async def _path(self, kind: str, space: str, name: str) -> str | None:
        """Return the path of an object. kind: "apiVersion:Kind" for a custom kind. None if nobody serves the kind."""
        version, custom, kind = kind.rpartition(":")
        if not custom:
            return of(kind).path(space, name)
        try:
            rows = (await self.api.get(f"/apis/{version}"))["resources"]
        except Refused as err:
            if err.code != 404:
                raise
            return None
        row = next((r for r in rows if r["kind"] == kind and "/" not in r["name"]), None)
        if row is None:
            return None
        middle = f"namespaces/{space}/" if row["namespaced"] else ""
        return f"/apis/{version}/{middle}{row['name']}/{name}"

    async def _apply(self, change: Write) -> None:
        if await self._forbidden(change):
            return
        if change.verb == "create" and change.kind == "Event" and not change.obj["metadata"].get("name"):
            self.recorder.tell(change.obj)
            return
        resource = self._custom.get(change.kind) or of(change.kind)
        path = resource.path(change.namespace, change.name)
        if change.verb == "create":
            answer = await self.api.create(resource.path(change.namespace), change.obj)
        elif change.verb == "update":
            answer = await self.api.update(path, change.obj)
        elif change.verb == "finalize":
            answer = await self.api.update(path + "/finalize", change.obj)
        elif change.verb == "bind":
            await self.api.create(path + "/binding", {"apiVersion": "v1", "kind": "Binding", **change.obj})
            answer = await self.api.get(path)  # a Binding is answered by a Status
        elif change.verb == "delete":
            answer = await self.api.delete(path, change.obj or None)
        else:
            answer = await self.api.patch(
                path + ("/status" if change.verb == "status" else ""), change.obj, MERGE_PATCH
            )
        # a Service's status is logged because it has the load balancer address; other statuses change too often
        if change.verb != "status" or change.kind == "Service":
            log.info(
                "changed",
                verb=change.verb,
                kind=change.kind,
                object=f"{change.namespace}/{change.name}".strip("/"),
                why=change.why,
            )
        self._remember(change, answer)
        if change.told:
            own = change.name or str((answer.get("metadata") or {}).get("name"))
            self._tell(change.told, change.told.reason, change.told.message.replace("{name}", own))

    def _tell(self, told: Told, reason: str, message: str, *, warning: bool = False) -> None:
        about = event(told.about, reason, message, time.time(), warning=warning, component=told.component)
        self.recorder.tell(about)

    def _remember(self, change: Write, answer: Object) -> None:
        """Put the API's answer into the snapshot, so that the next key is reconciled with this write included."""
        informer = self.informers.get(change.kind)
        if informer is None:
            return  # no controller reads objects of this kind
        if answer.get("kind") == change.kind.rpartition(":")[2] and change.verb != "finalize":
            if event := informer.reflector.wrote(answer):
                self._on_event(change.kind, event)
        elif answer.get("kind") == "Status":
            gone = str((answer.get("details") or {}).get("uid"))
            if event := informer.reflector.deleted(f"{change.namespace}/{change.name}".strip("/"), gone):
                self._on_event(change.kind, event)

    async def _work(self, controller: str, key: str) -> None:
        item = (controller, key)
        try:
            for change in self.controllers[controller].reconcile(key, self.snapshot, time.time()):
                if change.verb == "again":
                    asyncio.get_running_loop().call_later(change.obj["seconds"], self._enqueue, controller, key)
                    continue
                try:
                    await self._apply(change)
                except Refused as err:
                    if change.told and change.told.failed and err.code != 409:
                        self._tell(change.told, change.told.failed, f"Error creating: {err.message}", warning=True)
                    gone = err.code == 404 and change.verb in ("delete", "status", "patch")
                    if not gone and not (err.reason == "AlreadyExists" and change.verb == "create"):
                        raise
            self._failures.pop(item, None)
        except Exception as err:  # one malformed object must not stop the others
            tries = self._failures[item] = self._failures.get(item, 0) + 1
            away = isinstance(err, Unreachable)  # the API server is unreachable: the object is not the cause
            quiet = away or (isinstance(err, Refused) and err.code == 409)
            (log.debug if quiet and tries < 5 else log.warn)(
                "will try again", controller=controller, object=key, tries=tries, error=str(err) or repr(err)
            )
            delay = min(_RETRY_FIRST * 2 ** (tries - 1), _RETRY_AWAY if away else _RETRY_LAST)
            asyncio.get_running_loop().call_later(delay, self._enqueue, controller, key)

    async def _resync(self, controller: Controller) -> None:
        while True:
            await asyncio.sleep(controller.resync)
            for kind in (*controller.watches, *(self._custom if controller.custom else ())):
                for obj in self.snapshot.list(kind):
                    self._touch(controller, kind, obj)

    async def _custom_synced(self) -> None:
        """Wait for custom kinds, a short time: a definition whose objects cannot be read stops nobody."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CUSTOM_SECONDS):
                for kind in tuple(self._custom):
                    if informer := self.informers.get(kind):
                        await informer.synced.wait()

    async def run(self) -> None:
        """Run forever. Reconcile nothing before every informer has its first full list."""
        try:
            await self._run()
        finally:
            for _, task in self._defined.values():
                task.cancel()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.recorder.run())
            for informer in self.informers.values():
                tasks.create_task(informer.run())
            for informer in tuple(self.informers.values()):
                await informer.synced.wait()
            await self._custom_synced()
            for controller in self.controllers.values():
                if controller.resync:
                    tasks.create_task(self._resync(controller))
            notify("READY=1")
            beat.tell(True, "synced")
            log.info("synced", objects=sum(len(i.objects) for i in self.informers.values()))
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    item = next(iter(self._queue))
                    del self._queue[item]
                    await self._work(*item)
                    beat.tick(f"{item[0]} {item[1]}")


def _others(client: client_config.ClientConfig) -> tuple[str, ...]:
    """Return the default gateways of this machine and the API servers' addresses, which load balancers must not get."""
    found = client.server_ips
    try:
        found += tuple(map(str, gateways()))
    except OSError as err:
        log.warn("routes could not be read; load balancer pools must not have the gateway", error=str(err))
    return found


def _authority(client: client_config.ClientConfig) -> str:
    """Return the certificates by which this client knows the API server, as PEM."""
    found = client.ssl.get_ca_certs(binary_form=True) if client.ssl else []
    return "".join(ssl.DER_cert_to_PEM_cert(raw) for raw in found)


async def _main(config: ControllersConfig) -> None:
    client = client_config.load(config.kubeconfig)
    others = _others(client)
    rows = (
        *endpointslices.CONTROLLERS,
        *workloads.CONTROLLERS,
        *daemonsets.CONTROLLERS,
        *statefulsets.CONTROLLERS,
        *jobs.CONTROLLERS,
        *cronjobs.CONTROLLERS,
        *cleanup.CONTROLLERS,
        *disruption.CONTROLLERS,
        *protection.CONTROLLERS,
        *unattended.CONTROLLERS,
        *roles.CONTROLLERS,
        *servicecidrs.CONTROLLERS,
        *scheduler.CONTROLLERS,
        *tainteviction.CONTROLLERS,
        *quota.CONTROLLERS,
        *accounts.controllers(_authority(client)),
        *loadbalancer.controllers(config.load_balancer_pool, others),
        *nodes.controllers(config.cluster_cidr, config.node_prefix, config.node_prefix6),
    )
    if unknown := set(config.only) - {row.name for row in rows}:
        raise ConfigError(
            f"only: unknown controller {', '.join(sorted(unknown))}; known controllers: "
            f"{', '.join(sorted(row.name for row in rows))}"
        )
    rows = tuple(row for row in rows if not config.only or row.name in config.only)
    async with ApiClient(client) as api:
        if await until_stopped(stop_event(), Driver(api, rows).run()):
            log.info("stopped")


def run(config: ControllersConfig) -> None:
    """Run the controllers until SIGTERM."""
    main("controllers", _main(config))
