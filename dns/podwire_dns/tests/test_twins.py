"""What a server and its spare tell one another, without processes."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
import pytest

from podwire_base.role.metrics import Histogram
from podwire_dns import figures, twins
from podwire_dns.cache import Cache, CacheKey, Upstreamed
from podwire_dns.feed import Delta
from podwire_dns.metrics import BOUNDS, Tally
from podwire_dns.names import to_wire
from podwire_dns.wire import COUNTS, EMPTY, NOERROR, SERVFAIL

A_IN = b"\0\1\0\1"
VALUE = COUNTS.pack(1, 0, 0) + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc6\x33\x64\x07"  # TTL 60
KEY: CacheKey = (to_wire("a.test.") + A_IN, False, True)
MOVED: CacheKey = (to_wire("b.test.") + A_IN, True, False, b"\x04test\0")


def passed(rows: list[tuple[CacheKey, Upstreamed, float]], waiting: int = 0) -> list[bytes]:
    sent: list[bytes] = []

    async def body() -> None:
        sharing = twins.Sharing(sent.append, lambda: waiting, asyncio.get_running_loop().call_soon)
        for key, answer, failure in rows:
            sharing.tell(key, answer, (3600.0, 30.0), failure, b"\x0a\0\0\1")
        await asyncio.sleep(0)

    asyncio.run(body())
    return sent


def test_answers_of_one_turn_go_in_one_message_and_are_the_same_there() -> None:
    answer, failure = Upstreamed(NOERROR, VALUE, ad=True), Upstreamed(SERVFAIL, EMPTY)
    (frame,) = passed([(KEY, answer, 0.0), (MOVED, answer, 0.0), ((b"c" + A_IN, False, False), failure, 5.0)])
    mine = Cache(10)
    (message,) = twins.Frames().add(frame)
    assert isinstance(message, twins.Answers)
    twins.take(mine, message, 100.0)
    for key in (KEY, MOVED):
        found = mine.get(key, 130.0)
        assert found is not None and found.ad and found.value == VALUE[:-7] + bytes((30,)) + VALUE[-6:]
    assert mine.failed((b"c" + A_IN, False, False), 104.0) == failure
    assert mine.failed((b"c" + A_IN, False, False), 105.0) is None


def test_a_peer_that_does_not_read_gets_no_more_answers() -> None:
    answer = Upstreamed(NOERROR, VALUE)
    assert passed([(KEY, answer, 0.0)], twins.MOST_WAITING) != []
    assert passed([(KEY, answer, 0.0)], twins.MOST_WAITING + 1) == []


def test_messages_in_pieces() -> None:
    sent: list[twins.Message] = [Delta(7, {b"k": b"v"}), twins.Applied(3), twins.Linger(2.5)]
    frames, found = twins.Frames(), list[object]()
    for byte in b"".join(twins.frame(message) for message in sent):
        found += frames.add(bytes((byte,)))
    assert found == sent


def some() -> figures.Figures:
    tally = Tally()
    tally.types[1], tally.rcodes[0, "cache"], tally.took[2], tally.took_seconds = 3, 3, 3, 0.5
    took = Histogram(BOUNDS)
    took.observe(0.01)
    to = "192.0.2.1:53"
    forwarded = figures.Forwarded(Counter({(to, "NOERROR"): 2}), {(to, "NOERROR"): took}, Counter({to: 1}), all_down=4)
    return figures.Figures({"udp": tally}, forwarded, figures.CacheFigures(5, 6, 7, 8, 9, 10, 11, 12))


def test_a_report_has_the_figures_and_sums_add_them() -> None:
    (message,) = twins.Frames().add(twins.frame(figures.report(41, some(), looped=True)))
    assert isinstance(message, figures.Report) and message.looped and message.applied == 41
    assert figures.reported(message) == some()
    twice = figures.summed((some(), some().ended()))
    assert twice.tallies["udp"].types == {1: 6} and twice.tallies["udp"].took_seconds == 1.0
    assert twice.forwarded.took["192.0.2.1:53", "NOERROR"].total == pytest.approx(0.02)
    assert twice.forwarded.failures == {"192.0.2.1:53": 2} and twice.forwarded.all_down == 8
    assert twice.cache == figures.CacheFigures(5, 6, 14, 16, 18, 20, 22, 24), "an ended process has no entries"


def test_a_report_of_another_version_is_refused() -> None:
    made = figures.report(1, some(), looped=False)
    made.tallies["udp"].took.pop()
    with pytest.raises(msgspec.ValidationError):
        figures.reported(made)
