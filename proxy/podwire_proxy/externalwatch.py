"""Follows what decides about externalIPs (externalips.py), and tells what is refused and what a Service hides. I/O.

The proxy watches all Nodes from the first Service with externalIPs on: in a cluster without such Services, each proxy
watches only its own Node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from podwire_base.kernel.addresses import local_addresses
from podwire_base.kernel.listening import listeners
from podwire_base.kube import meta
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.client.informer import Informer
from podwire_base.kube.client.reflector import Event
from podwire_base.role import logs, waits

from .changes import DeduplicatedLog, Tracker
from .config import NODES, ProxyConfig, claimable
from .externalips import hidden
from .model import NodeInfo
from .objects import claims_of, stub

log = logs.get("proxy")
AGAIN = 30.0  # seconds between two looks at the processes that listen


class ExternalWatch:
    """One per proxy. changed: called when the Nodes' addresses changed. tell(service, reason, message): sends an Event
    about a Service."""

    def __init__(
        self,
        config: ProxyConfig,
        tracker: Tracker,
        changed: Callable[[], None],
        tell: Callable[[str, str, str], None],
    ) -> None:
        self.config, self.tracker, self.changed, self.tell = config, tracker, changed, tell
        self._nodes: dict[str, meta.Object] = {}
        self.complete = asyncio.Event()  # whether all Nodes are known
        self._told = DeduplicatedLog()
        self._wanted, self._look = asyncio.Event(), asyncio.Event()

    # What decides

    def note_service(self) -> None:
        """Call this after each change of a Service."""
        if self.tracker.externals:
            self._wanted.set()

    def on_node(self, event: Event) -> None:
        before = self._nodes.pop(event.key, None)
        if event.type != "DELETED":
            self._nodes[event.key] = claims_of(event.object)
        if self.complete.is_set() and self._nodes.get(event.key) != before:
            self.changed()

    def rules(self, node: NodeInfo, own: meta.Object | None) -> NodeInfo:
        """Adds what is known of all Nodes. Until all are known, no externalIP is served: it might be a node's."""
        nodes = [*self._nodes.values(), *([own] if own is not None else [])]
        return replace(node, claimable=replace(claimable(self.config, nodes), known=self.complete.is_set()))

    async def follow(self, api: ApiClient, allowed: Callable[[], Awaitable[bool]]) -> None:
        """Watches all Nodes from the first Service with externalIPs on. allowed: whether the API server lists Nodes to
        this role; if it does not, only this node's own addresses are known.
        """
        await self._wanted.wait()
        if not await allowed():
            log.warn("Nodes cannot be listed: externalIPs at other nodes' reserved ports are not noticed")
            self.complete.set()
            self.changed()
            return
        informer = Informer(api, NODES, on_event=self.on_node, keep=stub)
        async with asyncio.TaskGroup() as group:
            group.create_task(informer.run())
            await informer.synced.wait()
            self.complete.set()
            self.changed()

    # What is told

    def tell_refusals(self) -> None:
        """Call this after each sync: tells what it refused."""
        for service, problems in self.tracker.refusals.items():
            for problem in self._told.news("refused", service, problems):
                log.warn("externalIP of a Service is refused", service=service, problem=problem)
                self.tell(service, "ExternalIPRefused", problem)
        if self.tracker.externals:
            self._look.set()

    async def watch_listeners(self) -> None:
        """Tells which listening processes of this machine a Service hides. Never returns."""
        while True:
            await waits.until_set(self._look, AGAIN if self.tracker.externals else None)
            self._look.clear()
            try:
                found = hidden(
                    self.tracker.external_frontends(),
                    frozenset(map(str, local_addresses())),
                    await asyncio.to_thread(listeners) if self.tracker.externals else (),
                )
            except OSError as err:
                log.debug("listening processes could not be read", error=str(err))
                continue
            for service in {*found, *self.tracker.externals}:
                for problem in self._told.news("hidden", service, found.get(service, [])):
                    log.warn("a Service hides a process of this node", service=service, problem=problem)
                    self.tell(service, "ExternalIPHidesProcess", problem)
            await asyncio.sleep(1)  # a burst of syncs is one look
