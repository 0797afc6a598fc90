"""Any order of events and polls folds to what happened; what is lost is counted."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .. import fold as fold_module
from ..fold import Fold
from ..record import DROPPED, FORWARDED, OPEN, REFUSED, UNANSWERED, End, Ends, Flow, Service
from ..sums import Sums, total
from .truth import BEGAN, NS, Connection, ends

connections = st.lists(
    st.tuples(
        st.integers(0, 3),  # client ports that are used again and again
        st.integers(200_000_000, 3 * NS),  # since the end of the one before with the same port
        st.integers(100_000_000, 2 * NS),
        st.sampled_from(("closed", "reset", "refused", "silent", "answered", "lonely")),
        st.integers(60, 10_000),
        st.integers(0, 3),
    ),
    max_size=12,
)


def made(rows: list[tuple[int, int, int, str, int, int]]) -> list[Connection]:
    """Connections of one port follow each other, and get the same number: an entry's memory is used again."""
    at, found = dict.fromkeys(range(4), 0), []
    for port, gap, length, outcome, size, target in rows:
        start = at[port] + gap
        at[port] = start + length
        found.append(Connection(1000 + port, 40000 + port, start, length, outcome, size, target))
    return found


def sums_of(fold: Fold) -> dict[str, Sums]:
    found: dict[str, Sums] = {}
    for pair, sums in total(fold.window.slots).items():
        found.setdefault(pair.verdict, Sums()).add(sums)
    return found


@given(st.data(), connections)
def test_any_order_folds_to_the_truth(data: st.DataObject, rows: list[tuple[int, int, int, str, int, int]]) -> None:
    truth = made(rows)
    messages = [(what, one) for one in truth for what in ("new", "destroy")]
    messages += [("entry", one) for one in truth if data.draw(st.booleans(), "polled")]
    fold = Fold("node1", ends, BEGAN - 1)
    for what, one in data.draw(st.permutations(messages), "order"):
        now = BEGAN + 20
        if what == "entry":
            fold.poll([one.message("entry")], now)
        else:
            fold.event(one.message(what), now)
    found = sums_of(fold)
    assert fold.opened == len(truth) == sum(one.opened for one in found.values())
    wanted = Counter(one.verdict for one in truth)
    assert {verdict: one.ended for verdict, one in found.items() if one.ended} == wanted
    assert sum(one.bytes for one in found.values()) == sum(one.counters[1] for one in truth)
    assert sum(one.back_bytes for one in found.values()) == sum(one.counters[3] for one in truth)
    assert Counter(flow.verdict for flow in fold.shown) == wanted, "each connection is one line"
    by_target = Counter(pair.service.name for pair, one in total(fold.window.slots).items() for _ in range(one.ended))
    assert by_target == Counter(f"db-{one.target}" for one in truth)


@given(st.data(), connections)
def test_what_is_lost_is_counted(data: st.DataObject, rows: list[tuple[int, int, int, str, int, int]]) -> None:
    truth = made(rows)
    messages = [(what, one) for one in truth for what in ("new", "destroy")]
    fold = Fold("node1", ends, BEGAN - 1)
    for what, one in data.draw(st.permutations(messages), "order"):
        if data.draw(st.booleans(), "lost"):
            fold.lose(1, BEGAN + 20)
        else:
            fold.event(one.message(what), BEGAN + 20)
    folded = sum(one.events for one in sums_of(fold).values())
    assert folded + sum(slot.lost for slot in fold.window.slots) == len(messages)
    assert (fold.seen, fold.lost) == (folded, len(messages) - folded)
    assert fold.opened <= len(truth)


@pytest.mark.parametrize("outcome", ["closed", "refused", "answered"])
def test_a_kernel_without_times_counts_each_connection_once(outcome: str) -> None:
    fold, one = Fold("node1", ends, BEGAN - 1), Connection(7, 40000, 0, NS, outcome)
    for _ in range(3):  # the same entry number, again and again
        fold.event(one.message("new", times=False), BEGAN)
        fold.event(one.message("destroy", times=False), BEGAN)
    assert (fold.opened, sums_of(fold)[one.verdict].ended) == (3, 3)


def test_a_full_table_loses_no_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_module, "MOST_LIVE", 5)
    fold = Fold("node1", ends, BEGAN - 1)
    truth = [Connection(number, 40000 + number, number, NS, "closed", 100) for number in range(20)]
    for one in truth:
        fold.event(one.message("new"), BEGAN)
    fold.poll([one.message("entry") for one in truth], BEGAN)
    for one in truth:
        fold.event(one.message("destroy"), BEGAN)
    found = sums_of(fold)
    assert (fold.opened, found[FORWARDED].ended, fold.untracked) == (20, 20, 0)
    assert sum(one.bytes for one in found.values()) == 2000


def test_an_answer_that_comes_late_corrects_the_verdict() -> None:
    fold, one = Fold("node1", ends, BEGAN - 1), Connection(7, 40000, 0, 60 * NS, "silent")
    fold.event(one.message("new"), BEGAN)
    assert [flow.verdict for flow in fold.take()] == [OPEN]
    fold.poll([one.message("entry")], BEGAN + 10)
    assert [flow.verdict for flow in fold.take()] == [UNANSWERED]
    answered = Connection(7, 40000, 0, 60 * NS, "closed")
    fold.event(answered.message("destroy"), BEGAN + 60)
    assert [flow.verdict for flow in fold.take()] == [FORWARDED]
    assert {verdict: one.ended for verdict, one in sums_of(fold).items() if one.ended} == {FORWARDED: 1}


def test_an_older_connection_is_told_with_at_least() -> None:
    """It was open when the agent began: no event tells its end, the poll does not have it any more."""
    fold, one = Fold("node1", ends, BEGAN + 5), Connection(7, 40000, 0, 60 * NS, "closed")
    fold.poll([one.message("entry")], BEGAN + 10)
    flow = fold.shown[0]
    assert (flow.at_least, flow.verdict) == (True, FORWARDED)
    assert sums_of(fold)[FORWARDED].bytes == 0, "what passed earlier is in no sum"
    fold.poll([], BEGAN + 20)
    assert list(fold.live()) == []
    assert fold.shown[0].duration is None


def test_while_nobody_listens_polls_alone_tell_what_ended() -> None:
    fold, one, two = Fold("node1", ends, BEGAN - 1), *(Connection(n, 40000 + n, 0, NS, "closed") for n in (1, 2))
    fold.event(one.message("new"), BEGAN)
    fold.poll([one.message("entry"), two.message("entry")], BEGAN + 10, listening=False)
    assert len(list(fold.live())) == 2
    fold.poll([two.message("entry")], BEGAN + 20, listening=False)
    assert [flow.source_port for flow in fold.live()] == [two.port]
    fold.restart(BEGAN + 21)
    fold.poll([], BEGAN + 30)  # no event comes of one that began while nobody listened
    assert list(fold.live()) == []
    assert fold.opened == 2


def test_after_losses_the_poll_shows_what_is_open() -> None:
    fold, one, two = Fold("node1", ends, BEGAN - 1), *(Connection(n, 40000 + n, 0, NS, "closed") for n in (1, 2))
    fold.event(one.message("new"), BEGAN)
    fold.lose(1, BEGAN + 2)  # the end of it
    fold.poll([two.message("entry")], BEGAN + 10)
    assert [flow.source_port for flow in fold.live()] == [two.port]
    assert fold.opened == 2


def test_a_clock_that_jumps_breaks_nothing() -> None:
    fold, one, two = Fold("node1", ends, BEGAN - 1), *(Connection(n, 40000 + n, 0, NS, "closed") for n in (1, 2))
    fold.event(one.message("new"), BEGAN)
    for now in (BEGAN - 86400, BEGAN + 86400, BEGAN):
        fold.tick(now)
        fold.poll([one.message("entry")], now)
    fold.event(one.message("destroy"), BEGAN)
    fold.event(two.message("new"), BEGAN + 1)
    assert fold.opened == 2
    assert fold.shown[0].verdict == FORWARDED


def test_durations() -> None:
    fold = Fold("node1", ends, BEGAN - 1, {7: 120.0, 8: 10.0, 0: 30.0})
    for number, (outcome, length) in enumerate((("closed", 123), ("refused", 0), ("reset", 12), ("answered", 20))):
        fold.event(Connection(number, number, 0, length * NS, outcome).message("destroy"), BEGAN)
    assert [flow.duration for flow in fold.shown] == [3.0, 0.0, 2.0, None]


def dropped(port: int, reason: str = "no-endpoints") -> Flow:
    who = Ends(End("pod", "shop", "web"), End("service", "shop", "db"), Service("shop", "db", "80"))
    return Flow(
        0, "node1", BEGAN, BEGAN, "tcp", "10.244.0.2", port, "10.96.0.10", 80, "10.96.0.10", 80, who, DROPPED, reason, 1
    )


def test_repeated_packets_of_a_dropped_connection_are_one() -> None:
    fold = Fold("node1", ends, BEGAN - 1)
    for at in (0, 1, 3, 7):
        fold.drop(dropped(40000), BEGAN + at)
    fold.drop(dropped(40001), BEGAN)
    fold.drop(dropped(40000, "source-range"), BEGAN)
    assert [flow.packets for flow in fold.shown] == [4, 1, 1]
    assert (sums_of(fold)[DROPPED].ended, sums_of(fold)[DROPPED].packets) == (3, 6)
    fold.hide(5, BEGAN)
    assert fold.window.slots[-1].unshown == 5


@settings(max_examples=20)
@given(st.integers(0, 1200))
def test_only_15_minutes_are_kept(at: int) -> None:
    fold = Fold("node1", ends, BEGAN - 1)
    fold.event(Connection(1, 1, 0, NS, "refused").message("destroy"), BEGAN)
    fold.tick(BEGAN + at)
    assert (REFUSED in sums_of(fold)) == (at < 900 - BEGAN % 10 + 1)
