"""For tests: runs an informer against a scripted API server, and compares the informer's events with its copy."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.client.informer import Informer
from podwire_base.kube.client.reflector import Event
from podwire_base.kube.meta import Object, name
from podwire_base.patience import patient

from . import recorded
from .scripted import Handler, Link, Scripted

SERVICES = "/api/v1/services"
VERSION = 812_345_678_901
WEB = recorded.service("web", "10.96.7.5", VERSION - 5)
DB = recorded.service("db", "10.96.7.6", VERSION - 4)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(patient(10)):
        while not holds():
            await asyncio.sleep(0.01)


def replay(events: list[Event], into: dict[str, Object]) -> None:
    """Apply the events to `into`. The result is the copy that a client would compute from the events."""
    for event in events:
        assert (event.type == "ADDED") == (event.key not in into), event
        assert event.old == into.get(event.key)
        if event.type == "DELETED":
            del into[event.key]
        else:
            into[event.key] = event.object


@contextlib.asynccontextmanager
async def following(api: ApiClient, path: str = SERVICES, **more: Any) -> AsyncIterator[tuple[Informer, list[Event]]]:
    events: list[Event] = []
    believed: dict[str, Object] = {}

    def heard(event: Event) -> None:
        replay([event], believed)
        events.append(event)

    informer = Informer(api, path, on_event=heard, **more)
    task = asyncio.create_task(informer.run())
    try:
        yield informer, events
        assert believed == informer.objects
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def scene(handler: Handler, wanted: set[str], asked_for: list[str], **more: Any) -> list[Event]:
    """Run the informer until the copy holds `wanted`; the requests must have been `asked_for`, in this order."""
    async with (
        Scripted(handler) as server,
        ApiClient(server.config()) as api,
        following(api, **more) as (informer, events),
    ):
        await until(
            lambda: {name(o) for o in informer.objects.values()} == wanted and len(server.asked) >= len(asked_for)
        )
        assert server.kinds()[: len(asked_for)] == asked_for
        for asked in server.asked:
            assert asked.path == SERVICES and (asked.kind == "list" or asked.query["allowWatchBookmarks"] == "true")
    return events


def kinds(events: list[Event]) -> list[tuple[str, str]]:
    return [(e.type, name(e.object)) for e in events]


async def hold(link: Link, *pieces: bytes) -> None:
    """Send the pieces as a stream that stays open."""
    await link.chunks(*pieces, end=False)
    await asyncio.Event().wait()
