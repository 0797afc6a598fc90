"""Watch streams: changes of the store become the watch events of one client (selectors, Table, bookmarks,
WatchList).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from podwire_base.kube import codec, errors
from podwire_base.kube.meta import Object
from podwire_base.kube.selectors import Predicate

from ..store.base import Compacted, Item, Store, StoredChange
from .objects import wire

BOOKMARK_EVERY = 30.0
_QUEUE = 20_000  # the number of changes that a slow client may lag behind before it must list again


@dataclass(frozen=True, slots=True)
class WatchRequest:
    """One client's watch. start: a resourceVersion; None sends the present state first and then each change."""

    prefix: str
    matches: Predicate | None
    start: int | None
    send_initial: bool
    initial_end: bool  # WatchList: mark the end of the initial events
    bookmarks: bool
    timeout: float
    kind: str
    api_version: str


def _matches(request: WatchRequest, item: Item | None) -> bool:
    return item is not None and (request.matches is None or request.matches(codec.decode(item.value)))


def translate(request: WatchRequest, change: StoredChange) -> tuple[str, bytes] | None:
    """Return the change as (event type, object in wire form) for this watch, None if the watch does not select it.

    An object that starts to match the selector is ADDED; one that stops matching is DELETED (API concepts: watch).
    """
    now, before = _matches(request, change.item), _matches(request, change.before)
    if now and change.item is not None:
        return ("MODIFIED" if before else "ADDED"), wire(change.item)
    if before and change.before is not None:
        return "DELETED", codec.with_revision(change.before.value, change.revision)
    return None


def frame(kind: str, raw: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), raw)


def bookmark(request: WatchRequest, revision: int, *, initial_end: bool = False) -> bytes:
    metadata: Object = {"resourceVersion": str(revision)}
    if initial_end:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    obj = {"kind": request.kind, "apiVersion": request.api_version, "metadata": metadata}
    return frame("BOOKMARK", codec.dumps(obj))


async def stream(store: Store, request: WatchRequest, shape: Callable[[bytes], bytes]) -> AsyncIterator[bytes]:
    """Yield frames until the timeout. `shape` encodes one object in the requested form, for example as a Table.

    Raises a StatusError 410 before the first frame if the start revision is too old.
    """
    queue: asyncio.Queue[StoredChange | None] = asyncio.Queue()

    def listener(change: StoredChange) -> None:
        if change.key.startswith(request.prefix):
            queue.put_nowait(change if queue.qsize() < _QUEUE else None)

    unsubscribe = store.subscribe(listener)
    try:
        revision = await store.revision()
        backlog: list[StoredChange] = []
        if request.send_initial:
            for item in await store.scan(request.prefix):
                if _matches(request, item):
                    yield frame("ADDED", shape(wire(item)))
            if request.initial_end:
                yield bookmark(request, revision, initial_end=True)
        elif request.start is not None and request.start > revision:
            raise errors.expired(
                f"resource version {request.start} is not of this store, which is at {revision}; list again"
            )
        elif request.start is not None:
            try:
                backlog = await store.since(request.prefix, request.start)
            except Compacted as err:
                raise errors.expired(f"too old resource version: {request.start} ({err.oldest}); list again") from err
        for change in backlog:
            if event := translate(request, change):
                yield frame(event[0], shape(event[1]))
        async for chunk in _live(request, queue, revision, shape, store):
            yield chunk
    finally:
        unsubscribe()


async def _live(
    request: WatchRequest,
    queue: asyncio.Queue[StoredChange | None],
    revision: int,
    shape: Callable[[bytes], bytes],
    store: Store,
) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    end, next_bookmark = loop.time() + request.timeout, loop.time() + BOOKMARK_EVERY
    while (now := loop.time()) < end:
        try:
            change = await asyncio.wait_for(queue.get(), min(end, next_bookmark) - now)
        except TimeoutError:
            if request.bookmarks:
                yield bookmark(request, revision if queue.qsize() else max(revision, await store.revision()))
            next_bookmark = loop.time() + BOOKMARK_EVERY
            continue
        if change is None:
            yield frame("ERROR", codec.dumps(errors.expired("the client was too slow to follow; list again").body()))
            return
        if change.revision <= revision:
            continue  # the initial state or the backlog already contains this change
        revision = change.revision
        if event := translate(request, change):
            yield frame(event[0], shape(event[1]))


def parse_version(text: str | None, field: str = "resourceVersion") -> int | None:
    """Return a query parameter as a decimal number, None if it is unset or "". Raises a StatusError 400."""
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise errors.bad_request(f"{field}: {text[:40]!r} is not a decimal number")
    return int(text)
