"""Go's durations, in linear time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube.loadbalancer import parse
from podwire_base.kube.times import duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("+0", 0),
        ("0s", 0),
        ("30s", 30),
        ("1h30m", 5400),
        ("1m0.5s", 60.5),
        (".5s", 0.5),
        ("1.s", 1),
        ("250ms", 0.25),
        ("7us", 7e-6),
        ("7\u00b5s", 7e-6),
        ("7\u03bcs", 7e-6),
        ("9ns", 9e-9),
        ("1s1h", 3601),  # any order, as in Go
        ("2562047h47m16s", 9223372036),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "1", "1x", "1s ", " 1s", "-1s", "1..5s", ".s", "1e3s", "\u0661s", "1S", "2562048h", "1h" * 40]
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration such as 30s"):
        duration(text)


@pytest.mark.parametrize("part", ["1", "1.", "1s", "0.1", " ", "1h1"])
@pytest.mark.parametrize("end", ["", "s", "x"])
def test_a_long_text_takes_no_time_and_a_short_error(part: str, end: str) -> None:
    """With findall over "[0-9]*\\.?[0-9]+" a file of 100 kB took minutes."""
    text = part * 200_000 + end
    began = time.process_time()
    with pytest.raises(ValueError, match="is not a duration") as refused:
        duration(text)
    assert time.process_time() - began < 0.5
    assert len(str(refused.value)) < 200


@given(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 59_999))
def test_what_go_prints_is_read_back(hours: int, minutes: int, milliseconds: int) -> None:
    text = f"{hours}h{minutes}m{milliseconds / 1000}s"
    assert duration(text) == pytest.approx(hours * 3600 + minutes * 60 + milliseconds / 1000)


def test_blanks_of_a_pool_take_linear_time() -> None:
    """The blanks around a range's hyphen were looked for at each blank."""
    began = time.process_time()
    pools, problems = parse({"data": {"addresses": "10.0.0.1 " + " " * 300_000 + "- 10.0.0.9, 10.1.0.0/30"}})
    assert time.process_time() - began < 1
    assert [str(pool.text) for pool in pools.ranges] == ["10.0.0.1-10.0.0.9", "10.1.0.0/30"]
    assert not problems
