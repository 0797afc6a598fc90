"""Numbers in texts: what int() would take, and what it would fail on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.numerals import decimal


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 1",
        "1 ",
        "+1",
        "-1",
        "1_0",
        "1.0",
        "0x1",
        "65536",
        "9" * 5000,
        "1" + "0" * 10_000,
        "\u0661",
        "\uff11",
        "\xb2",
    ],
)
def test_what_is_no_port(text: str) -> None:
    assert decimal(text) is None


@given(st.integers(0, 70_000), st.integers(0, 6000))
def test_a_number_and_leading_zeros(number: int, zeros: int) -> None:
    assert decimal("0" * zeros + str(number)) == (number if number < 65536 else None)
    assert decimal(str(number), 10) == (number if number <= 10 else None)
