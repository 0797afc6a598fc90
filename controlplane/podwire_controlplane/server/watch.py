"""Watch streams. A change of the store becomes the watch events of all clients that see it.

Clients with the same view (collection, selectors, form) make a group. An event is encoded once for its group, and the
frame is written to the connection of each client at once. A client whose connection is full gets its frames from its
own coroutine, which waits for the connection, until it has caught up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from aiohttp import web

from podwire_base.kube import codec, errors
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object

from .. import convert
from ..store.base import Compacted, Item, Store, StoredChange
from . import answers, media
from .answers import View
from .selection import Selection
from .writes import wire

BOOKMARK_EVERY = 30.0
BEFORE_THE_END = 2.0  # seconds before its timeout in which a watch gets its last bookmark, as upstream
TOO_LARGE_SECONDS = 3.0  # how long a list or watch waits for a revision of the future, as upstream
SILENT_SECONDS = 5.0  # how long a watch from the future is silent. Upstream waits for ever; a client of a store that is
# gone would never learn that it has to list again
_QUEUE, _QUEUE_BYTES = 20_000, 16 << 20  # by how much a slow client may lag behind before it must list again
_HIGH = 64 * 1024  # bytes in the buffer of a connection above which it counts as full
_CHUNK = 256 * 1024


@dataclass(frozen=True, slots=True)
class WatchRequest:
    """One client's watch. prefix: of the store keys that it sees. start: a revision; None sends the present state
    first. wait: the revision that the present state must have reached. initial_end: mark the end of the present state.
    silent: begin with the changes after now. key: text that is equal for equal views.
    """

    prefix: str
    selection: Selection
    view: View
    start: int | None
    initial_end: bool
    bookmarks: bool
    timeout: float
    key: str
    wait: int = 0
    silent: bool = False


def translate(selection: Selection, change: StoredChange) -> tuple[str, bytes] | None:
    """Return the change as (event type, object in wire form), None if the watch does not select it.

    An object that starts to match the selector is ADDED; one that stops matching is DELETED (API concepts: watch).
    """
    now = change.item is not None and selection.takes(change.item.value)
    before = change.before is not None and selection.takes(change.before.value)
    if now and change.item is not None:
        return ("MODIFIED" if before else "ADDED"), wire(change.item)
    if before and change.before is not None:
        return "DELETED", codec.with_revision(change.before.value, change.revision)
    return None


class Encoder:
    """Encodes the events of one view."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.has_head = view.form.kind == "Table"

    def event(self, kind: str, raw: bytes, *, head: bool = False) -> bytes:
        """Return the frame of an event. raw: the object in wire form. head: whether a Table names its columns. Raises
        a StatusError 406 for a form that a single object does not have.
        """
        form = self.view.form
        if kind != "BOOKMARK":
            raw = convert.served_bytes(self.view.resource, raw)
        if form.media == media.JSON:
            if form.convert is not None:
                raw = codec.dumps(answers.one(self.view, codec.decode(raw), head=head))
            return b'{"type":"%s","object":%s}\n' % (kind.encode(), raw)
        return self._other(kind, answers.one(self.view, codec.decode(raw), head=head))

    def _other(self, kind: str, obj: Object) -> bytes:
        if self.view.form.media == media.YAML:
            return answers.encode(self.view.form, {"type": kind, "object": obj}) + b"---\n"
        raw = answers.watch_event(kind, answers.encode(self.view.form, obj))
        return len(raw).to_bytes(4, "big") + raw

    def error(self, err: StatusError) -> bytes:
        if self.view.form.media == media.JSON:
            return b'{"type":"ERROR","object":%s}\n' % codec.dumps(err.body())
        return self._other("ERROR", err.body())

    def bookmark(self, revision: int, *, initial_end: bool = False) -> bytes:
        metadata: Object = {"resourceVersion": str(revision)}
        if initial_end:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        resource = self.view.resource
        obj = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
        return self.event("BOOKMARK", codec.dumps(obj))


class Watcher:
    """One client's stream. `push` takes a frame while the stream is open."""

    def __init__(self, link: asyncio.Transport | None, *, chunked: bool) -> None:
        self.link, self.chunked = link, chunked
        self.live = False  # frames are written at once; else the coroutine of the client writes them
        self.headless = True  # no Table was sent yet
        self.late = False
        self.seen = 0  # the revision up to which the stream is complete
        self.queue: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self.wake = asyncio.Event()

    def push(self, revision: int, frame: bytes, chunk: bytes) -> None:
        """chunk: the frame as a chunk of HTTP/1.1."""
        if self.live and self.link is not None and not self.link.is_closing():  # a closed one may raise
            self.link.write(chunk if self.chunked else frame)
            self.headless, self.seen = False, revision
            if self.link.get_write_buffer_size() > _HIGH:
                self.live = False
                self.wake.set()
            return
        self._bytes += len(frame)
        if len(self.queue) >= _QUEUE or self._bytes > _QUEUE_BYTES:
            self.late = True
        else:
            self.queue.append((revision, frame))
        self.wake.set()

    def take(self) -> bytes:
        """Return frames that wait, about _CHUNK bytes of them."""
        parts, size = list[bytes](), 0
        while self.queue and size < _CHUNK:
            revision, frame = self.queue.popleft()
            self._bytes -= len(frame)
            if revision > self.seen:
                parts.append(frame)
                size += len(frame)
                self.seen = revision
        self.headless = self.headless and not parts
        return b"".join(parts)


class _Group:
    def __init__(self, request: WatchRequest) -> None:
        self.selection, self.encoder = request.selection, Encoder(request.view)
        self.watchers: set[Watcher] = set()

    def publish(self, change: StoredChange) -> None:
        event = translate(self.selection, change)
        if event is None:
            return
        frame = self.encoder.event(*event)
        chunk = b"%x\r\n%s\r\n" % (len(frame), frame)
        for watcher in tuple(self.watchers):
            if self.encoder.has_head and watcher.headless:
                first = self.encoder.event(*event, head=True)
                watcher.headless = False
                watcher.push(change.revision, first, b"%x\r\n%s\r\n" % (len(first), first))
            else:
                watcher.push(change.revision, frame, chunk)


class Hub:
    """All watches of one store. There is one subscription to the store, while anybody watches."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._groups: dict[str, dict[str, _Group]] = {}
        self.revision = 0  # of the last change that was published
        self._unsubscribe = store.subscribe(self._publish)

    def close(self) -> None:
        self._unsubscribe()

    def __len__(self) -> int:
        return sum(len(group.watchers) for groups in self._groups.values() for group in groups.values())

    def _publish(self, change: StoredChange) -> None:
        self.revision = change.revision
        parts = change.key.split("/")
        prefixes = [change.key, "/".join(parts[:3]) + "/"]
        if len(parts) > 4:
            prefixes.append("/".join(parts[:4]) + "/")
        for prefix in prefixes:
            for group in tuple(self._groups.get(prefix, {}).values()):
                group.publish(change)

    @contextlib.contextmanager
    def _watching(self, request: WatchRequest, watcher: Watcher) -> Iterator[_Group]:
        group = self._groups.setdefault(request.prefix, {}).setdefault(request.key, _Group(request))
        group.watchers.add(watcher)
        try:
            yield group
        finally:
            group.watchers.discard(watcher)
            groups = self._groups.get(request.prefix, {})
            if not group.watchers and groups.get(request.key) is group:
                del groups[request.key]
                if not groups:
                    del self._groups[request.prefix]

    async def serve(self, http: web.Request, answer: web.StreamResponse, request: WatchRequest) -> None:
        """Write the whole stream into a prepared answer, until the timeout or until the client leaves."""
        link = http.transport if isinstance(http.transport, asyncio.Transport) else None
        watcher = Watcher(link, chunked=answer.chunked)
        with self._watching(request, watcher) as group:
            try:
                await self._begin(answer, request, watcher, group.encoder)
            except StatusError as err:
                if err.code == 406:
                    return  # upstream too opens the stream and sends nothing
                await answer.write(group.encoder.error(err))
                return
            await self._follow(answer, request, watcher, group.encoder)

    async def _begin(
        self, answer: web.StreamResponse, request: WatchRequest, watcher: Watcher, encoder: Encoder
    ) -> None:
        if request.wait:
            await reach(self.store, request.wait)
        revision = await self.store.revision()
        if request.start is None and not request.silent:
            parts = list[bytes]()
            for item in await self._present(request):
                if request.selection.takes(item.value):
                    parts.append(encoder.event("ADDED", wire(item), head=watcher.headless))
                    watcher.headless = False
                if len(parts) == 500:
                    await answer.write(b"".join(parts))
                    parts.clear()
            if request.initial_end:
                parts.append(encoder.bookmark(revision, initial_end=True))
            if parts:
                await answer.write(b"".join(parts))
        elif request.start is not None and request.start < revision:
            try:
                backlog = await self.store.since(request.prefix, request.start)
            except Compacted as err:
                raise errors.expired(f"too old resource version: {request.start} ({err.oldest})") from err
            for change in backlog:
                if event := translate(request.selection, change):
                    await answer.write(encoder.event(*event, head=watcher.headless))
                    watcher.headless = False
        watcher.seen = max(revision, request.start or 0)

    async def _present(self, request: WatchRequest) -> list[Item]:
        if request.prefix.endswith("/"):
            return await self.store.scan(request.prefix)
        item = await self.store.get(request.prefix)
        return [item] if item else []

    async def _follow(
        self, answer: web.StreamResponse, request: WatchRequest, watcher: Watcher, encoder: Encoder
    ) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + request.timeout
        bookmark_at = next_bookmark(loop.time(), end)
        if (request.start or 0) > await self.store.revision():
            try:
                await reach(self.store, request.start or 0, min(request.timeout, SILENT_SECONDS))
            except StatusError:
                if request.timeout > SILENT_SECONDS:
                    gone = f"resource version {request.start} is not of this store; list again"
                    await answer.write(encoder.error(errors.expired(gone)))
                return
        while not watcher.late:
            while watcher.queue:
                if chunk := watcher.take():
                    await answer.write(chunk)
            # a version of the future keeps silence until it is reached: such a stream has no fast path
            watcher.live = watcher.link is not None and watcher.seen <= max(self.revision, await self.store.revision())
            if watcher.queue:
                continue
            now = loop.time()
            if now >= end:
                return
            if now >= bookmark_at:
                bookmark_at = next_bookmark(now, end)
                if request.bookmarks:
                    await answer.write(encoder.bookmark(max(watcher.seen, await self.store.revision())))
                    continue
            watcher.wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(end, bookmark_at) - now):
                    await watcher.wake.wait()
        watcher.live = False
        await answer.write(encoder.error(errors.expired("the client was too slow to follow; list again")))


def next_bookmark(now: float, end: float) -> float:
    """Return when a watch gets its next bookmark, in seconds of the loop's clock like `end`, which is its timeout.

    The last one comes shortly before the end, so that the client's next watch starts where this one stopped.
    """
    last = end - BEFORE_THE_END
    return min(now + BOOKMARK_EVERY, last if now < last else end)


async def reach(store: Store, revision: int, seconds: float = TOO_LARGE_SECONDS) -> None:
    """Wait until the store has a revision. Raises a StatusError 504 (ResourceVersionTooLarge) if it does not come."""
    reached = asyncio.Event()
    unsubscribe = store.subscribe(lambda change: reached.set() if change.revision >= revision else None)
    try:
        if await store.revision() < revision:
            async with asyncio.timeout(seconds):
                await reached.wait()
    except TimeoutError:
        raise errors.too_large(revision, await store.revision()) from None
    finally:
        unsubscribe()
