"""Keeps what a role owns in the kernel: addresses, tables, routes, links. One loop for all roles. I/O.

Other programs change it: a firewall that starts again, a network manager, a person. The loop looks

- at once, when the kernel tells of a change (a `Watch`),
- every EVERY seconds at counts and generations, which cost next to nothing (`Counts`),

and only where these differ does it call the role's `mend`, which reads everything and writes the differences. WHOLE
seconds after the last full reading it asks for one anyway, because not all that a program can change is counted.

What was mended is told in four places: a line of the log, the role's status, a counter, and an Event on the Node.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

from ..kube.events import event
from ..kube.meta import Object
from ..kube.times import timestamp
from . import waits
from .counts import Counts
from .logs import Logger

EVERY, WHOLE = 10.0, 600.0
GATHER, AGAIN = 0.1, 1.0  # from a notification to the mending, and from one mending to the next
SHOWN, KEPT = 3, 900.0  # things of the last mending in the status, and for how long
REPEAT = 60.0  # between two Events with the same text
MENDED = "KernelStateMended"  # the Event's reason


class Watch(Protocol):
    """Becomes readable when something may have changed."""

    def fileno(self) -> int: ...

    def changed(self) -> bool:
        """Read all that came. Returns whether the role's own things changed, or notifications were lost."""

    def close(self) -> None: ...


class Mendings:
    """What was mended, for log, status, counter and Event. Thread-safe enough: one thread writes."""

    def __init__(self, log: Logger, role: str, node: str) -> None:
        self._log, self._role, self._node = log, role, node
        self.count = 0
        self.last = ""  # what, and when
        self._at = 0.0
        self._sent: dict[str, float] = {}
        self._events: list[Object] = []

    def tell(self, what: Sequence[str]) -> None:
        """Another program changed these things, and they are right again. (): nothing happened."""
        if not what:
            return
        self.count += 1
        more = f" and {len(what) - SHOWN} more" if len(what) > SHOWN else ""
        text, now = ", ".join(what[:SHOWN]) + more, time.time()
        self.last, self._at = f"{text}, {timestamp(now)}", now
        self._log.warn("another program changed what this role keeps in the kernel, mended", what=text)
        if now - self._sent.get(text, 0.0) >= REPEAT:
            self._sent = {known: at for known, at in self._sent.items() if now - at < REPEAT} | {text: now}
            self._events.append(node_event(self._node, f"podwire-{self._role}", text, now))

    def words(self) -> str:
        """Returns what the status says of it, as the end of a message; "" if nothing happened lately."""
        return f"; mended: {self.last}" if self.last and time.time() - self._at < KEPT else ""

    def figures(self) -> dict[str, Any]:
        return {"repairs": self.count, "repaired": self.last} if self.count else {}

    def events(self) -> list[Object]:
        """Returns the Events that were not taken yet. A role without API credentials has them sent by another."""
        found, self._events = self._events, []
        return found


def node_event(node: str, component: str, what: str, now: float) -> Object:
    """Return the Event about a Node, as the kubelet makes them: in the namespace `default`, the Node's name as uid."""
    about = {"kind": "Node", "name": node, "uid": node}
    return event(about, MENDED, f"another program changed it, mended: {what}", now, component=component, host=node)


class Upkeep:
    """The loop. mend: reads everything and writes the differences, or has that done soon; the role calls `reading`
    before that and `settled` afterwards. looks, whole: how often it looked at counts, and how often it asked to read
    everything.
    """

    def __init__(
        self,
        counts: Iterable[Counts],
        mend: Callable[[], Awaitable[object]],
        *,
        every: float = EVERY,
        gather: float = GATHER,
        again: float = AGAIN,
        unsettled: Callable[[], bool] = lambda: False,
        failed: Callable[[OSError], object] = lambda _: None,
    ) -> None:
        """unsettled: whether the role waits for something that no count shows. failed: is told why a look failed."""
        self._counts, self._mend, self._every, self._gather, self._again = tuple(counts), mend, every, gather, again
        self._unsettled, self._failed = unsettled, failed
        self._woken, self._sure = asyncio.Event(), False
        self._mended = self._read = float("-inf")
        self._next = time.monotonic() + every
        self.looks = self.whole = 0

    def reading(self) -> None:
        """The role begins to read everything."""
        with contextlib.suppress(OSError):  # then `settled` counts
            for one in self._counts:
                one.reading()

    def settled(self) -> None:
        """Everything was read and mended just now."""
        self._read = self._mended = time.monotonic()
        with contextlib.suppress(OSError):  # then the next look tells
            for one in self._counts:
                one.settled()

    def differs(self, *, hint: bool = False) -> bool:
        """Whether the counts differ from those of the last look. hint: look only at those that it can be about."""
        self.looks += 1
        try:  # each of them remembers what it saw
            found = [one.differs() for one in self._counts if one.hinted or not hint]
        except OSError as err:
            self._failed(err)
            return True
        return any(found)

    async def run(self, watches: Sequence[Watch]) -> None:
        """Look and mend until this task is cancelled."""
        loop = asyncio.get_running_loop()
        for watch in watches:
            loop.add_reader(watch.fileno(), self._heard, watch)
        try:
            while True:
                await self._once()
        finally:
            for watch in watches:
                loop.remove_reader(watch.fileno())

    def _heard(self, watch: Watch) -> None:
        self._sure = watch.changed() or self._sure
        self._woken.set()

    async def _once(self) -> None:
        await waits.until_set(self._woken, max(0.0, self._next - time.monotonic()))
        if self._woken.is_set():
            await asyncio.sleep(max(self._gather, self._mended + self._again - time.monotonic()))
        self._woken.clear()
        if periodic := time.monotonic() >= self._next:  # hints must not put the periodic look off
            self._next = time.monotonic() + self._every
        sure, self._sure = self._sure, False
        late = time.monotonic() - self._read >= WHOLE
        if sure or late or (periodic and self._unsettled()) or await asyncio.to_thread(self.differs, hint=not periodic):
            self.whole += 1
            self._mended = time.monotonic()
            await self._mend()
