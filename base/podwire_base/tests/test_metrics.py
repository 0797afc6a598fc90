"""The text exposition format, read back as Prometheus reads it."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from podwire_base.role.metrics import Histogram, Page

LABEL = re.compile(r'(\w+)="((?:[^"\\\n]|\\["\\n])*)"')


def unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], text)


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.text(max_size=10), max_size=3), st.floats(0, 1e12)
)
def test_labels_and_values_come_back_as_they_were(labels: dict[str, str], value: float) -> None:
    page = Page()
    page.family("a_total", "counter", "", [(labels, value)])
    head, sample, end = page.text().split("\n")
    assert (head, end) == ("# TYPE a_total counter", "")
    name, _, number = sample.rpartition(" ")
    assert float(number) == value, "not rounded: a time of day has ten digits before the point"
    inner = name.removeprefix("a_total").removeprefix("{").removesuffix("}")
    assert {key: unescaped(text) for key, text in LABEL.findall(inner)} == labels


def test_help_is_one_line_and_may_be_left_out() -> None:
    page = Page()
    page.family("a", "gauge", "One\nand \\ two.", [])
    page.family("b", "gauge", "", [({}, 1)])
    assert page.lines == ["# HELP a One\\nand \\\\ two.", "# TYPE a gauge", "# TYPE b gauge", "b 1"]


def test_a_histogram_counts_upwards_and_its_bounds_are_inclusive() -> None:
    made = Histogram((0.25, 0.001 * 2**10, 7.0))
    for value in (0.25, 0.3, 1.1, 7.5, 100):
        made.observe(value)
    page = Page()
    page.histogram("h", "Text.", made.bounds, [({"x": "y"}, made.counts, made.total)])
    assert page.lines == [
        "# HELP h Text.",
        "# TYPE h histogram",
        'h_bucket{x="y",le="0.25"} 1',
        'h_bucket{x="y",le="1.024"} 2',
        'h_bucket{x="y",le="7"} 3',
        'h_bucket{x="y",le="+Inf"} 5',
        'h_sum{x="y"} 109.15',
        'h_count{x="y"} 5',
    ]
