"""Folds conntrack's events and polls into connections and sums. Pure: moments are arguments.

A connection is known by its entry's number and counted once, whatever message of it comes first. A message that is
older than what is known changes nothing: an event after the poll that saw the end, a poll whose dump is older than the
event. What the kernel dropped is counted (`lost`); the next poll shows what is open then.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from podwire_base.kernel.conntrack.counted import UNKNOWN, Counted

from .metrics import Totals
from .names import text
from .record import FORWARDED, OPEN, PROTOCOLS, Ends, Flow
from .sums import Pair, Slot, Sums, Window, base
from .verdicts import duration, of_end, of_entry

MOST_LIVE, MOST_SHOWN, MOST_DROPS = 1 << 16, 20_000, 4096
LATE = 600.0  # seconds for which an ended connection is remembered, so that late messages of it change nothing
REPEATED = 130.0  # seconds for which a client repeats the first packet of a connection (tcp_syn_retries)
SLACK = 50_000_000  # ns between an entry's start and the event that tells of it, at most

Namer = Callable[[Counted, float], Ends | None]
Key = tuple[int, bytes, int]


@dataclass(slots=True)
class _Live:
    """A connection that is followed. pair: where its verdict is counted, sums: that row in the slot where it was.
    stop: ns, 0 if its end was not told. polled: the last poll that saw it. exact: start is the entry's own, not that of
    the event about it. by_poll: no event told of it. row: the
    latest row of its pair, so that it is looked up once a slot. before: an earlier connection with the same key.
    """

    flow: Flow
    start: int
    pair: Pair
    sums: Sums
    over: bool = False
    stop: int = 0
    counted: tuple[int, int, int, int] = (0, 0, 0, 0)
    polled: int = 0
    exact: bool = False
    by_poll: bool = False
    row: tuple[Slot, Pair, Sums] | None = None
    before: _Live | None = None


class Fold:
    """name: says who the ends are, None if another node tells. since: the moment from which events are complete.
    timeouts: see verdicts.duration. seen: events of connections that this node tells of; passed: of all others.
    """

    def __init__(self, node: str, name: Namer, since: float, timeouts: Mapping[int, float] | None = None) -> None:
        self.node, self.name, self.since = node, name, since
        self.timeouts = dict(timeouts or {})
        self.window, self.totals = Window(), Totals()
        self.shown: deque[Flow] = deque(maxlen=MOST_SHOWN)
        self.opened = self.seen = self.passed = self.lost = self.unshown = self.untracked = 0
        self._changed: dict[int, Flow] = {}
        self._live: dict[Key, _Live] = {}
        self._ended: deque[tuple[float, Key, _Live]] = deque()
        self._drops: OrderedDict[tuple[object, ...], Flow] = OrderedDict()
        self._numbers = self._polls = self._lost_before = 0

    # What the sources say

    def event(self, seen: Counted, now: float) -> None:
        """Takes one event. now: seconds since 1970."""
        key = seen.number, seen.source, seen.source_port
        live = self._known(key, seen, now)
        if seen.what == "destroy" and live is None and self.untracked and seen.start >= self.since * 1e9:
            self._end_untracked(seen, now)
            return
        if live is None:
            live = self._open(key, seen, now)
        if live is None:
            self.passed += 1
            return
        self.seen += 1
        live.by_poll = False
        if seen.what == "destroy" and not live.stop:
            verdict, reason = of_end(seen)
            self._count(live, seen, verdict, reason, now)
            self._end(key, live, seen.stop or seen.at or int(now * 1e9), now)
            if live.flow.duration is None and not live.flow.at_least:
                live.flow.duration = duration(seen, verdict, self.timeouts)
        self._row(live, now).events += 1

    def poll(self, entries: Iterable[Counted], now: float, *, listening: bool = True) -> None:
        """Takes the entries that a dump gave. An open connection of whose end no event may come (none told of its
        beginning, events were lost, nobody listens) has ended if a dump does not have it.
        """
        self._polls += 1
        for seen in entries:
            key = seen.number, seen.source, seen.source_port
            live = self._known(key, seen, now)
            if live is None:
                if self.untracked and seen.start >= self.since * 1e9:
                    continue  # it may be one of those that were counted and are not followed
                live = self._open(key, seen, now)
            if live is None or live.stop:
                continue
            live.polled, live.over = self._polls, False
            verdict, reason = of_entry(seen, max(0.0, now - live.start / 1e9))
            self._count(live, seen, verdict, reason, now)
        doubtful, self._lost_before = not listening or self.lost > self._lost_before, self.lost
        for key, live in list(self._live.items()):  # an earlier one with the same key is over
            if live.over or live.polled == self._polls or not (doubtful or live.by_poll):
                continue
            if live.polled or live.flow.changed < now - 1.0:
                self._vanish(key, live, now)

    def lose(self, events: int, now: float) -> None:
        """Takes how many events the kernel dropped."""
        self.lost += events
        self.window.slot(now).lost += events

    def hide(self, packets: int, now: float) -> None:
        """Takes how many refused or dropped packets were counted but not logged."""
        self.unshown += packets
        self.window.slot(now).unshown += packets

    def drop(self, flow: Flow, now: float) -> None:
        """Takes a packet that a rule refused or dropped, as a connection that failed. Repetitions of the same packet
        by the client are the same connection.
        """
        key = flow.source_ip, flow.source_port, flow.ip, flow.port, flow.protocol, flow.reason, flow.verdict
        known = self._drops.get(key)
        if known is not None and known.started > now - REPEATED:
            known.changed, known.packets = now, (known.packets or 0) + (flow.packets or 1)
            self.window.slot(now).place(_pair(known)).packets += flow.packets or 1
            return
        self._numbers += 1
        flow.number = self._numbers
        self._drops[key] = flow
        if len(self._drops) > MOST_DROPS:
            self._drops.popitem(last=False)
        sums = self.window.slot(now).place(_pair(flow))
        sums.opened += 1
        sums.ended += 1
        sums.packets += flow.packets or 1
        self.opened += 1
        self.totals.judged(_pair(flow))
        self._show(flow)

    def take(self) -> list[Flow]:
        """Returns the connections that are new or whose verdict changed since the last call, each once."""
        found, self._changed = list(self._changed.values()), {}
        return found

    def tick(self, now: float) -> None:
        """Forgets what is too old."""
        self.window.forget(now)
        while self._ended and (self._ended[0][0] < now - LATE or len(self._ended) > MOST_LIVE):
            _, key, live = self._ended.popleft()
            self._unlink(key, live)

    def restart(self, now: float) -> None:
        """Takes that nobody listened to events until now."""
        self.since = now

    def live(self) -> Iterator[Flow]:
        """Yields the open connections that are followed."""
        return (one.flow for one in self._live.values() if not one.over)

    # Counting

    def _known(self, key: Key, seen: Counted, now: float) -> _Live | None:
        """Returns the connection that a message is about, None if it is the first one about it."""
        head = self._live.get(key)
        if head is None:
            return None
        begin = seen.start or (seen.at if seen.what == "new" else 0)
        if not begin:  # the kernel tells no times: then a new entry comes after the end of the one before
            return None if head.over and seen.what == "new" else head
        live: _Live | None = head
        found, least = None, SLACK
        while live is not None:
            far = abs(live.start - begin)
            if far <= (0 if live.exact and seen.start else least):
                found, least = live, far
            live = live.before
        if found is not None and seen.start:
            found.start, found.exact = seen.start, True
        if found is None and not head.over and begin > head.start:  # its end was not told
            self._vanish(key, head, now)
        return found

    def _unlink(self, key: Key, gone: _Live) -> None:
        head = self._live.get(key)
        if head is gone:
            if gone.before is None:
                del self._live[key]
            else:
                self._live[key] = gone.before
            return
        while head is not None and head.before is not gone:
            head = head.before
        if head is not None:
            head.before = gone.before

    def _open(self, key: Key, seen: Counted, now: float) -> _Live | None:
        start = seen.start or (seen.at if seen.what == "new" else 0) or int(now * 1e9)
        ends = self.name(seen, start / 1e9)
        if ends is None:
            return None
        self._numbers += 1
        self.opened += 1
        flow = Flow(
            self._numbers, self.node, start / 1e9, now, PROTOCOLS.get(seen.protocol, str(seen.protocol)),
            text(seen.source), seen.source_port, text(seen.destination), seen.port,
            text(seen.endpoint), seen.endpoint_port, ends,
            at_least=seen.what != "new" and start / 1e9 < self.since,
        )  # fmt: skip
        pair = _pair(flow)
        live = _Live(
            flow, start, pair, self.window.slot(now).place(pair), exact=bool(seen.start), by_poll=seen.what == "entry"
        )
        live.sums.opened += 1
        self._show(flow)
        if len(self._live) - len(self._ended) < MOST_LIVE:
            live.before = self._live.get(key)
            self._live[key] = live
        elif seen.what != "destroy":
            self.untracked += 1
        return live

    def _end_untracked(self, seen: Counted, now: float) -> None:
        """Takes the end of a connection that was counted when it opened, and is not followed."""
        ends = self.name(seen, seen.start / 1e9)
        if ends is None:
            self.passed += 1
            return
        self.untracked -= 1
        self.seen += 1
        pair = base(ends, PROTOCOLS.get(seen.protocol, str(seen.protocol)), *of_end(seen))
        sums = self.window.slot(now).place(pair)
        sums.ended += 1
        sums.events += 1
        self.totals.judged(pair)
        self.totals.passed(pair, max(0, seen.size), max(0, seen.back_size))
        _add(sums, (max(0, seen.packets), max(0, seen.size), max(0, seen.back_packets), max(0, seen.back_size)))

    def _show(self, flow: Flow) -> None:
        self.shown.append(flow)
        self._changed[flow.number] = flow
        if len(self._changed) > MOST_SHOWN:
            del self._changed[next(iter(self._changed))]

    def _judge(self, live: _Live, verdict: str, reason: str, now: float) -> None:
        flow = live.flow
        if flow.verdict != OPEN:
            live.sums.ended -= 1  # it was taken for something else: an answer came late
        flow.verdict, flow.reason = verdict, reason
        live.pair = _pair(flow)
        live.sums = self._row(live, now)
        live.sums.ended += 1
        self.totals.judged(live.pair)
        self._changed[flow.number] = flow

    def _row(self, live: _Live, now: float) -> Sums:
        """Returns the sums of a connection's pair in the slot of this moment."""
        slot, row = self.window.slot(now), live.row
        if row is None or row[0] is not slot or row[1] is not live.pair:
            live.row = row = slot, live.pair, slot.place(live.pair)
        return row[2]

    def _count(self, live: _Live, seen: Counted, verdict: str, reason: str, now: float) -> None:
        flow = live.flow
        if verdict not in (OPEN, flow.verdict):
            self._judge(live, verdict, reason, now)
        flow.changed = now
        if seen.packets == UNKNOWN:
            return
        found = seen.packets, seen.size, seen.back_packets, seen.back_size
        if flow.at_least and not any(live.counted):
            live.counted = found  # what passed before the agent began is in no sum
        more = [max(0, value - before) for value, before in zip(found, live.counted, strict=True)]
        if any(more):
            _add(self._row(live, now), more)
            self.totals.passed(live.pair, more[1], more[3])
        # A dump that is older than the last event must not take counters back.
        live.counted = tuple(map(max, found, live.counted))  # type: ignore[assignment]  # four and four
        flow.packets, flow.bytes, flow.back_packets, flow.back_bytes = live.counted

    def _end(self, key: Key, live: _Live, stop: int, now: float) -> None:
        if not live.over:
            self._ended.append((now, key, live))
        live.over, live.stop = True, stop

    def _vanish(self, key: Key, live: _Live, now: float) -> None:
        """Takes that a connection has ended, nobody knows how."""
        if live.flow.verdict == OPEN:
            self._judge(live, FORWARDED, "", now)
        self._end(key, live, 0, now)


def _add(sums: Sums, more: Iterable[int]) -> None:
    packets, size, back_packets, back_size = more
    sums.packets += packets
    sums.bytes += size
    sums.back_packets += back_packets
    sums.back_bytes += back_size


def _pair(flow: Flow) -> Pair:
    return base(flow.ends, flow.protocol, flow.verdict, flow.reason)
