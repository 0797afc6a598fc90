"""The benchmark page agrees with the figures: targets that were reached, targets that were missed, absent peers."""

from __future__ import annotations

import importlib
import json
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))
report = importlib.import_module("report")  # bench/ is no package


def row(name: str, podwire: float, peer: float | None = None, runs: Any = None, unit: str = "ms") -> dict[str, Any]:
    return {
        "name": name,
        "unit": unit,
        "podwire": podwire,
        "peer": peer if peer is not None else "absent",
        "peer_name": "other 1.0" if peer is not None else "absent",
        "ratio": podwire / peer if peer else None,
        "runs": runs if runs is not None else {"podwire": [podwire], "peer": []},
    }


@pytest.mark.parametrize(
    ("target", "reached"),
    [
        ({"ratio_at_most": 0.5}, "yes"),
        ({"ratio_at_most": 0.4}, "**no**"),
        ({"ratio_at_least": 0.5}, "yes"),
        ({"value_at_most": 9}, "**no**"),
        ({"value_at_least": 10}, "yes"),
        ({}, ""),
    ],
)
def test_a_target_is_held_against_the_figure_it_names(target: dict[str, float], reached: str) -> None:
    assert report.verdict(row("x", 10, 20), target)[1] == reached


def test_without_a_peer_no_ratio_is_reached() -> None:
    assert report.verdict(row("x", 10), {"ratio_at_most": 0.5}) == ("ratio ≤ 0.500", "no peer")


@pytest.mark.parametrize(
    ("runs", "mine", "theirs"),
    [
        ({"podwire": [1, 2], "peer": [3]}, [1, 2], [3]),
        ([{"value": 1, "peer": 3}, {"value": 2, "peer": 4}], [1, 2], [3, 4]),
        ([{"value": 1, "cpu": 9}], [1], []),
        (15, [], []),
    ],
)
def test_single_figures_of_every_form(runs: Any, mine: list[float], theirs: list[float]) -> None:
    assert (report.runs(row("x", 1, 2, runs), "podwire"), report.runs(row("x", 1, 2, runs), "peer")) == (mine, theirs)


def test_the_page_and_its_pictures() -> None:
    sized = [row(f"change {size}k", size / 10) for size in (1, 10, 44)]
    results = {
        "proxy": {
            "machine": {"kernel": "6.1", "kube-proxy": "absent"},
            "rows": [
                *sized,
                row(
                    "first packet 44k",
                    105.0,
                    100.0,
                    {"podwire": [99.0, 105.0, 130.0], "peer": [98.0, 100.0, 101.0]},
                    "us",
                ),
            ],
        }
    }
    text, pictures = report.page(
        results,
        {"proxy": {"change 44k": {"value_at_most": 4}}},
        {"one": {"syscalls": 5}},
        {"one": {"syscalls": 6, "messages": 2}},
    )
    assert "| change 44k | 4.40 ms | – | absent | – | – | ≤ 4 ms | **no** |" in text
    assert "| first packet 44k | 105 us | 99.0 – 130 | 100 (other 1.0) | 98.0 – 101 | 1.05 |" in text
    assert "kube-proxy absent" in text
    assert "| one | syscalls | 5 | 6 |" in text
    assert "| one | messages | – | 2 |" in text
    assert set(pictures) == {"proxy.svg", "proxy-size.svg"} and all(f"benchmarks/{name}" in text for name in pictures)
    widths = [
        float(x.get("width", 0))
        for x in ET.fromstring(pictures["proxy.svg"]).iter("{http://www.w3.org/2000/svg}rect")
        if x.get("rx")
    ]
    assert widths[0] / widths[1] == pytest.approx(1.05, rel=0.01)  # bars are to scale
    points = next(ET.fromstring(pictures["proxy-size.svg"]).iter("{http://www.w3.org/2000/svg}polyline")).get(
        "points", ""
    )
    (x0, _), (x1, _), (x2, _) = ([float(n) for n in point.split(",")] for point in points.split())
    assert (x1 - x0) / (x2 - x1) == pytest.approx(1 / 0.6435, rel=0.01)  # log 10 against log 4.4


@pytest.mark.parametrize("name", ["cni", "dns", "proxy", "up"])
def test_every_target_is_of_a_row_that_was_measured(name: str) -> None:
    """A target for a row that no benchmark writes would never be reported as missed."""
    rows = {row["name"] for row in json.loads((BENCH / "results" / f"{name}.json").read_text())["rows"]}
    assert set(tomllib.loads((BENCH / "targets.toml").read_text())[name]) <= rows
