"""Follows the Nodes of the cluster and the kernel's notifications, and lets the wiring agent sync."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from podwire_base.kernel.netwatch import NetWatch, index_of
from podwire_base.kernel.nft.socket import Commits
from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.client.informer import Informer
from podwire_base.kube.client.reflector import Event
from podwire_base.kube.errors import ApiError
from podwire_base.kube.meta import Object
from podwire_base.role import beat, logs
from podwire_base.role.counts import Counts
from podwire_base.role.upkeep import Upkeep

from . import counting, overlay, readiness, routes
from .types import BRIDGE

if TYPE_CHECKING:
    from .agent import Agent

log = logs.get("wiring")
RESYNC_SECONDS = 10.0  # seconds between two looks for changes by other programs (a flushed table, a route)
RETRY_SECONDS = 2.0


class Follower:
    """Decides when an Agent syncs: after a change of Nodes, after a notification of the kernel, and now and then."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    async def run(self, stop: asyncio.Event, client: ClientConfig) -> None:
        """Run until `stop` is set: sync when Nodes change, and periodically to repair changes that other programs made
        in the kernel.
        """
        changed = asyncio.Event()
        links, commits = NetWatch(routes.PROTOCOL), Commits(self.agent.firewall.port_id)

        async def mend() -> None:
            changed.set()

        upkeep = Upkeep(self._counts(), mend, every=RESYNC_SECONDS, unsettled=lambda: self.agent.waits)

        def heard(event: Event) -> None:
            if event.type != "MODIFIED" or event.old is None or routes.facts(event.old) != routes.facts(event.object):
                beat.pending()
                changed.set()

        async with ApiClient(client) as api:
            informer = Informer(api, "/api/v1/nodes", on_event=heard, on_synced=changed.set)
            watching = asyncio.create_task(informer.run())
            stopping = asyncio.create_task(stop.wait())
            telling = asyncio.create_task(self._telling())
            looking = asyncio.create_task(upkeep.run((links, commits)))
            try:
                pause = None
                while not stop.is_set():
                    news = asyncio.create_task(changed.wait())
                    tasks = {news, stopping, watching, looking}
                    await asyncio.wait(tasks, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                    news.cancel()
                    for endless in (watching, looking):
                        if endless.done():
                            endless.result()  # the task ends early only because of a bug in podwire
                    changed.clear()
                    if informer.synced.is_set() and not stop.is_set():
                        beat.taking()
                        await asyncio.to_thread(upkeep.reading)
                        pause = await self._sync(dict(informer.objects))
                        names = (BRIDGE, *overlay.TUNNELS.values(), *self.agent.networks.known)
                        links.watch(filter(None, map(index_of, names)), index_of(self.agent.config.uplink))
                        await asyncio.to_thread(upkeep.settled)
                        await self._tell_events(api)
            finally:
                self.agent.tell_plugin()
                for task in (watching, stopping, telling, looking):
                    task.cancel()
                await asyncio.gather(watching, stopping, telling, looking, return_exceptions=True)
                links.close()
                commits.close()

    async def _telling(self) -> None:
        while True:
            await asyncio.sleep(readiness.EACH)
            self.agent.tell_plugin()

    def _counts(self) -> tuple[Counts, ...]:
        paths = (self.agent.config.conflist, self.agent.config.conflist.parent, self.agent.config.leases)

        def of_node() -> tuple[object, ...]:
            return counting.of_links(), counting.of_sysctls(), counting.of_files(paths)

        def own() -> int:
            return self.agent.firewall.changes

        # No notification tells of a pod's link, so a look after pods came and went must not take the links as right.
        return Counts(of_node), Counts(self.agent.firewall.counts, self.agent.firewall.generation, own)

    def _sync_in_thread(self, objects: Mapping[str, Object]) -> bool:
        with beat.work("sync"):
            return self.agent.sync(objects)

    async def _tell_events(self, api: ApiClient) -> None:
        """Send the Events about pods and the Node. One that the API server does not take is lost; the log has it."""
        events, self.agent.care.events = [*self.agent.care.events, *self.agent.mendings.events()], []
        for event in events:
            try:
                await api.create(f"/api/v1/namespaces/{event['metadata']['namespace']}/events", event)
            except ApiError as err:
                log.debug("event not stored", reason=event["reason"], error=str(err))

    async def _sync(self, objects: Mapping[str, Object]) -> float | None:
        """Sync once. Returns the seconds until the next sync, if no Node changes before; None: the upkeep tells."""
        try:
            whole = await asyncio.to_thread(self._sync_in_thread, objects)
        except Exception as err:  # any error may be temporary, and the agent must attach pods meanwhile
            log.error("sync failed", error=str(err), kind=type(err).__name__)
            self.agent.ready = False
            self.agent.status.update(ready=False, reason="SyncFailed", message=f"{type(err).__name__}: {err}")
            return RETRY_SECONDS
        if whole:
            beat.settled()
        return None if whole else RETRY_SECONDS
