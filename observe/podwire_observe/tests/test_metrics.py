"""The page /metrics: bounded, exact, without Services that are gone."""

from __future__ import annotations

import re
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from podwire_base.role.metrics import ProcessFigures
from podwire_observe.metrics import OTHER, Figures, Totals, page
from podwire_observe.record import FORWARDED, REFUSED, End, Service
from podwire_observe.sums import Pair

POD = End("pod", "shop", "web-1", "n1")
NAMES = st.sampled_from([f"s{number}" for number in range(6)])


def pair(name: str, verdict: str = FORWARDED, *, probe: bool = False) -> Pair:
    return Pair(POD, POD, Service("shop", name, "80") if name else Service(), "tcp", verdict, probe=probe)


@given(st.lists(st.tuples(NAMES, st.sampled_from([FORWARDED, REFUSED]), st.integers(0, 9))), st.integers(0, 6))
def test_whatever_is_folded_the_sums_stay_exact(told: list[tuple[str, str, int]], most: int) -> None:
    totals = Totals(most)
    for name, verdict, size in told:
        totals.judged(pair(name, verdict))
        totals.passed(pair(name, verdict), size, 1)
    by_verdict = Counter[str]()
    for (_, verdict, _), count in totals.verdicts.items():
        by_verdict[verdict] += count
    assert by_verdict == Counter(verdict for _, verdict, _ in told)
    assert sum(count for (_, way), count in totals.bytes.items() if way == "out") == sum(size for *_, size in told)
    names = {name for name, _, _ in totals.verdicts}
    assert len(names - {OTHER}) == min(most, len({name for name, _, _ in told}))
    assert (OTHER in names) == (len({name for name, _, _ in told}) > most)


def test_series_of_services_that_are_gone_go_and_make_room() -> None:
    totals = Totals(1)
    totals.judged(pair("a"))
    totals.judged(pair(""))
    totals.keep({("shop", "b")})
    totals.judged(pair("b"))
    text = page(totals, Figures(lost=3), ProcessFigures())
    assert re.findall(r"^podwire_observe_connections_total{(.*)} (.*)$", text, re.M) == [
        ('namespace="",service="",verdict="forwarded",reason=""', "1.0"),
        ('namespace="shop",service="b",verdict="forwarded",reason=""', "1.0"),
    ]
    assert "podwire_observe_events_lost_total 3.0" in text


def test_probes_are_left_out() -> None:
    totals = Totals()
    totals.judged(pair("a", probe=True))
    totals.passed(pair("a", probe=True), 1, 1)
    assert not totals.verdicts
    assert not totals.bytes
