"""Events end an hour after their last write."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from podwire_base.kube import codec
from podwire_base.kube.times import timestamp
from podwire_base.testing.builders import run
from podwire_controlplane.server import eventttl
from podwire_controlplane.server.eventttl import EventTtl, last_written
from podwire_controlplane.store.memory import MemoryStore

EVENTS = eventttl.PREFIXES[0]
NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("event", "at"),
    [
        ({"lastTimestamp": timestamp(NOW - 60), "metadata": {"creationTimestamp": timestamp(NOW - 900)}}, NOW - 60),
        ({"eventTime": timestamp(NOW - 70)}, NOW - 70),
        ({"eventTime": timestamp(NOW - 70), "series": {"lastObservedTime": timestamp(NOW - 5)}}, NOW - 5),
        ({"lastTimestamp": timestamp(NOW + 10**6)}, NOW),  # a clock that is wrong, or a client that wants to stay
        ({"lastTimestamp": None, "eventTime": 7, "metadata": [], "series": "x"}, NOW),
        ({"lastTimestamp": "yesterday"}, NOW),
        ({}, NOW),
    ],
)
def test_what_an_event_tells_of_its_last_write(event: dict[str, Any], at: float) -> None:
    assert last_written(event, NOW) == at


def test_an_event_ends_an_hour_after_its_last_write_and_nothing_else_does() -> None:
    async def work() -> None:
        now, store = NOW, MemoryStore()
        old = codec.encode({"lastTimestamp": timestamp(NOW - 3000), "metadata": {"finalizers": ["a/b"]}})
        await store.put(f"{EVENTS}default/old", old)
        ends = EventTtl(store, lambda: now)
        await ends.start()
        for name in ("first", "second"):
            await store.put(f"{EVENTS}default/{name}", b"{}")
        await store.put("/core/pods/default/events", b"{}")
        now += 599
        assert await ends.sweep() == 0
        now += 2
        assert await ends.sweep() == 1
        assert [item.key for item in await store.scan(EVENTS)] == [f"{EVENTS}default/{n}" for n in ("first", "second")]
        await store.put(f"{EVENTS}default/first", b'{"count":2}')  # seen again: its hour begins anew
        await store.put(f"{EVENTS}default/third", b"{}")
        await store.delete(f"{EVENTS}default/third")
        now += 3000
        assert await ends.sweep() == 1
        assert [item.key for item in await store.scan(EVENTS)] == [f"{EVENTS}default/first"]
        now += 3600
        assert await ends.sweep() == 1
        assert [item.key for item in await store.scan("")] == ["/core/pods/default/events"]
        assert await ends.sweep() == 0

    run(work())


def test_a_sweep_of_many_leaves_others_their_turn() -> None:
    async def work() -> None:
        now, store = NOW, MemoryStore()
        ends = EventTtl(store, lambda: now, 10)
        await ends.start()
        for number in range(250):
            await store.put(f"{EVENTS}default/{number}", b"{}")
        now += 11
        assert [await ends.sweep() for _ in range(4)] == [100, 100, 50, 0]

    asyncio.run(work())
