"""Sums by pair over the last 15 minutes, bounded. Pure: the caller says what time it is.

A slot of ten seconds has at most MOST pairs. Where it is full, what comes is summed in rows named "other", of the same
Service and verdict, so that the sums of a Service stay exact (of up to MOST_SERVICES in a slot). Pairs that fail have
room of their own. Of one source that fails towards more than OF_ONE_SOURCE targets in a slot, the rest becomes one row,
so that one pod that scans hides nobody else's failure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .record import FAILED, End, Ends, Service

SLOT_SECONDS, SLOTS = 10, 90
MOST, MOST_FAILED, OF_ONE_SOURCE, MOST_OUTSIDE = 1000, 1000, 200, 1000
MOST_SERVICES = 1000  # rows of one Service and verdict each, where there are too many other folded rows
OTHER = End("other", "", "other")


class Pair(NamedTuple):
    """What is summed together."""

    source: End
    target: End
    service: Service
    protocol: str
    verdict: str
    reason: str = ""
    probe: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source._asdict(),
            "target": self.target._asdict(),
            "service": self.service._asdict() if self.service.name else None,
            "protocol": self.protocol,
            "verdict": self.verdict,
            "reason": self.reason,
            "probe": self.probe,
        }


@dataclass(slots=True)
class Sums:
    """opened: connections that began. ended: whose verdict became known. events: messages of the kernel summed here.
    targets: of a folded row, how many different ones it stands for, at least.
    """

    opened: int = 0
    ended: int = 0
    packets: int = 0
    bytes: int = 0
    back_packets: int = 0
    back_bytes: int = 0
    events: int = 0
    targets: int = 0

    def add(self, other: Sums) -> None:
        self.opened += other.opened
        self.ended += other.ended
        self.packets += other.packets
        self.bytes += other.bytes
        self.back_packets += other.back_packets
        self.back_bytes += other.back_bytes
        self.events += other.events
        self.targets = max(self.targets, other.targets)

    def to_json(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Slot:
    number: int  # seconds since 1970 // SLOT_SECONDS
    pairs: dict[Pair, Sums] = field(default_factory=dict)
    good: int = 0
    bad: int = 0
    outside: set[str] = field(default_factory=set)
    of_source: dict[tuple[End, str], int] = field(default_factory=dict)
    folded: dict[Pair, set[int]] = field(default_factory=dict)
    lost: int = 0
    unshown: int = 0

    def place(self, pair: Pair) -> Sums:
        """Returns the sums of a pair, or of the row that it is folded into."""
        found = self.pairs.get(pair)
        return found if found is not None else self._new(pair)

    def _new(self, pair: Pair) -> Sums:
        if pair.verdict in FAILED:
            key = pair.source, pair.verdict
            count = self.of_source.get(key, 0)
            if count < OF_ONE_SOURCE and self.bad < MOST_FAILED:
                self.of_source[key] = count + 1
                self.bad += 1
                return self.pairs.setdefault(pair, Sums())
            source = pair.source if count else OTHER  # a source that has a row of its own may have a folded one too
            return self._fold(pair, Pair(source, OTHER, pair.service, pair.protocol, pair.verdict, pair.reason))
        strange = [end.name for end in (pair.source, pair.target) if end.kind == "outside"]
        if self.good < MOST and all(ip in self.outside or len(self.outside) < MOST_OUTSIDE for ip in strange):
            self.outside.update(strange)
            self.good += 1
            return self.pairs.setdefault(pair, Sums())
        return self._fold(pair, Pair(OTHER, OTHER, pair.service, "", pair.verdict, "", pair.probe))

    def _fold(self, pair: Pair, row: Pair) -> Sums:
        if row not in self.pairs and len(self.folded) >= MOST:
            row = Pair(OTHER, OTHER, pair.service, "", pair.verdict)
            if row not in self.pairs and len(self.folded) >= MOST + MOST_SERVICES:
                row = Pair(OTHER, OTHER, Service(), "", pair.verdict)
        sums = self.pairs.setdefault(row, Sums())
        seen = self.folded.setdefault(row, set())
        if len(seen) < 1 << 12:
            seen.add(hash(pair.target))
        sums.targets = len(seen)
        return sums


class Window:
    """The last 15 minutes."""

    def __init__(self) -> None:
        self.slots: deque[Slot] = deque(maxlen=SLOTS)

    def slot(self, when: float) -> Slot:
        """Returns the slot of a moment, the latest one if the clock was set back, and the oldest if it is too old."""
        number = int(when // SLOT_SECONDS)
        if not self.slots or number > self.slots[-1].number:
            if self.slots and number - self.slots[-1].number > SLOTS:
                self.slots.clear()
            self.slots.append(Slot(number))
            return self.slots[-1]
        for slot in reversed(self.slots):
            if slot.number <= number:
                return slot
        return self.slots[0]

    def forget(self, now: float) -> None:
        """Drops what is older than 15 minutes. Slots of a clock that was ahead stay at most as long."""
        first = int(now // SLOT_SECONDS) - SLOTS
        while self.slots and self.slots[0].number <= first:
            self.slots.popleft()

    def between(self, since: float, until: float) -> list[Slot]:
        return [s for s in self.slots if (s.number + 1) * SLOT_SECONDS > since and s.number * SLOT_SECONDS <= until]


def total(slots: Iterable[Slot]) -> dict[Pair, Sums]:
    """Returns the sums of several slots by pair."""
    found: dict[Pair, Sums] = {}
    for slot in slots:
        for pair, sums in slot.pairs.items():
            found.setdefault(pair, Sums()).add(sums)
    return found


def base(ends: Ends, protocol: str, verdict: str, reason: str) -> Pair:
    return Pair(ends.source, ends.target, ends.service, protocol, verdict, reason, ends.probe)


def rows(found: dict[Pair, Sums]) -> Iterator[dict[str, Any]]:
    for pair, sums in found.items():
        yield {**pair.to_json(), **sums.to_json()}
