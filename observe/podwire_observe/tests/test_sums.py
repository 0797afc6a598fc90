"""Sums stay exact when pairs are folded, and who scans hides nobody else's failure."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from .. import sums as module
from ..record import FAILED, FORWARDED, REFUSED, End, Ends, Service
from ..sums import OTHER, Slot, Window, base, total


def who(number: int) -> End:
    return End("pod", "shop", f"pod-{number}")


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 30), st.sampled_from((FORWARDED, REFUSED)), st.integers(0, 2)))
)
def test_folded_sums_are_exact(rows: list[tuple[int, int, str, int]]) -> None:
    slot, truth = Slot(0), Counter[tuple[str, str]]()
    before = module.MOST, module.MOST_FAILED, module.OF_ONE_SOURCE
    module.MOST, module.MOST_FAILED, module.OF_ONE_SOURCE = 5, 6, 3
    try:
        for source, target, verdict, service in rows:
            pair = base(Ends(who(source), who(100 + target), Service("shop", f"s{service}", "80")), "tcp", verdict, "")
            slot.place(pair).opened += 1
            truth[pair.service.name, verdict] += 1
    finally:
        module.MOST, module.MOST_FAILED, module.OF_ONE_SOURCE = before
    found = Counter[tuple[str, str]]()
    for pair, sums in slot.pairs.items():
        found[pair.service.name, pair.verdict] += sums.opened
    assert found == truth
    assert len(slot.pairs) <= 5 + 6 + 5 + 3 * (len(FAILED) + 2)


def test_many_services_that_fail_stay_bounded() -> None:
    """More Services than a slot has rows for: their last ones share a row without a name."""
    slot = Slot(0)
    for number in range(4000):
        service = Service("shop", f"s{number}", "80")
        slot.place(base(Ends(who(number), who(number + 1), service), "tcp", REFUSED, "")).opened += 1
    assert len(slot.pairs) == module.MOST_FAILED + module.MOST + module.MOST_SERVICES + 1
    assert sum(sums.opened for sums in slot.pairs.values()) == 4000


def test_who_scans_hides_nobody_elses_failure() -> None:
    slot = Slot(0)
    for target in range(5000):
        slot.place(
            base(Ends(who(1), End("outside", "", f"192.0.2.{target}")), "tcp", REFUSED, "closed-port")
        ).ended += 1
    other = base(Ends(who(2), who(3)), "tcp", REFUSED, "closed-port")
    slot.place(other).ended += 1
    assert slot.pairs[other].ended == 1
    (row,) = [pair for pair in slot.pairs if pair.target == OTHER]
    assert (row.source, row.reason) == (who(1), "closed-port")
    assert (slot.pairs[row].ended, slot.pairs[row].targets) == (4800, 4096), "at least so many targets"
    assert len(slot.pairs) == 202


def test_addresses_outside_are_bounded() -> None:
    slot = Slot(0)
    for number in range(3000):
        slot.place(
            base(Ends(End("outside", "", str(number)), who(1), Service("shop", "web", "80")), "tcp", FORWARDED, "")
        )
    assert len([pair for pair in slot.pairs if pair.source.kind == "outside"]) == module.MOST_OUTSIDE
    assert OTHER in {pair.source for pair in slot.pairs}


def test_slots_follow_the_clock() -> None:
    window = Window()
    assert window.slot(1000.0) is window.slot(1009.9)
    late = window.slot(1010.0)
    assert window.slot(1005.0) is not late
    assert window.slot(5.0) is window.slots[0], "older than all: the oldest one"
    assert len(window.between(1010.0, 1010.0)) == 1
    window.slot(99999.0)
    assert [slot.number for slot in window.slots] == [9999], "a jump leaves nothing of before"
    assert total(window.slots) == {}
