"""The Event about what the server mended is made once, by the feeder."""

from __future__ import annotations

from typing import Any

import pytest

from podwire_dns.nodeevents import Told


def status(count: int, what: str = "address 10.96.0.10 on lo, nft table ip podwire-dns") -> dict[str, Any]:
    return {"figures": {"repairs": count, "repaired": f"{what}, 2026-01-01T00:00:00Z"}}


@pytest.mark.parametrize("nothing", [{}, {"figures": {}}, {"figures": {"answers": 3}}])
def test_nothing_was_mended(nothing: dict[str, Any]) -> None:
    assert Told("node1").news(nothing, 0.0) is None


def test_each_mending_is_told_once() -> None:
    told = Told("node1")
    made = told.news(status(1), 0.0)
    assert made is not None
    assert made["message"].endswith("mended: address 10.96.0.10 on lo, nft table ip podwire-dns")
    assert made["involvedObject"]["name"] == "node1"
    assert told.news(status(1), 1.0) is None
    assert told.news(status(2), 2.0) is not None
    assert told.news({}, 3.0) is None, "the server started again"
    assert told.news(status(1), 4.0) is not None
