"""Makes docs/benchmarks.md and its pictures from bench/results/*.json. Pure, except that `main` reads and writes files.

A result file: {"machine": {...}, "rows": [{"name", "unit", "podwire", "peer", "peer_name", "ratio", "runs"}]}. runs is
{"podwire": [...], "peer": [...]}, or a list of {"value", "peer"?}, or the number of runs where the single figures were
not kept.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
TITLES = {
    "up": "The whole cluster",
    "api": "API server",
    "cni": "CNI plugin",
    "proxy": "Service proxy",
    "policy": "Network policies",
    "dns": "Cluster DNS",
    "observe": "The flow log",
}
MINE, THEIRS, INK = "#0969da", "#8c959f", "#1f2328"
Row = Mapping[str, Any]
INTRODUCTION = """`make bench` measures all of this and writes this page. Each figure is a median; what a peer does was
measured in the same run, interleaved. A peer that was not on the machine is called absent, and nothing is put in its
place. Times on a shared machine mean little: trust ratios. The raw figures are in [bench/results](../bench/results)."""
COUNTS = """Counts do not depend on how busy a machine is; a test holds the budgets
([bench/budgets.toml](../bench/budgets.toml))."""
WORDS = {
    "ratio_at_most": "ratio ≤ {}",
    "ratio_at_least": "ratio ≥ {}",
    "value_at_most": "≤ {} {unit}",
    "value_at_least": "≥ {} {unit}",
}


def runs(row: Row, who: str) -> list[float]:
    """Returns the single figures of "podwire" or "peer"; [] if the file does not contain them."""
    kept = row["runs"]
    if isinstance(kept, Mapping):
        return [float(x) for x in kept.get(who) or ()]
    if isinstance(kept, list):
        key = "value" if who == "podwire" else "peer"
        return [float(x[key]) for x in kept if key in x]
    return []


def number(value: Any) -> str:
    """Returns a number as text with three significant digits."""
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value) if value else "–"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def spread(values: list[float]) -> str:
    return f"{number(min(values))} – {number(max(values))}" if len(values) > 1 else "–"


def verdict(row: Row, target: Mapping[str, float]) -> tuple[str, str]:
    """Returns (text of the target, whether this run reached the target)."""
    if not target:
        return "", ""
    ((kind, bound),) = target.items()
    subject = row["ratio"] if kind.startswith("ratio") else row["podwire"]
    wanted = WORDS[kind].format(number(bound), unit=row["unit"])
    if not isinstance(subject, (int, float)):
        return wanted, "no peer"
    return wanted, "yes" if (subject <= bound if kind.endswith("most") else subject >= bound) else "**no**"


def table(rows: Iterable[Row], targets: Mapping[str, Mapping[str, float]]) -> str:
    out = ["| | podwire | from – to | peer | from – to | podwire / peer | wanted | reached |", "|---" * 8 + "|"]
    for row in rows:
        peer = f"{number(row['peer'])} ({row['peer_name']})" if isinstance(row["peer"], (int, float)) else "absent"
        wanted, reached = verdict(row, targets.get(row["name"], {}))
        cells = (
            row["name"],
            f"{number(row['podwire'])} {row['unit']}",
            spread(runs(row, "podwire")),
            peer,
            spread(runs(row, "peer")),
            number(row["ratio"]),
            wanted,
            reached,
        )
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def machine(found: Mapping[str, Any]) -> str:
    flat = {k: v for k, v in found.items() if not isinstance(v, Mapping)}
    for value in found.values():
        if isinstance(value, Mapping):
            flat |= value
    return "; ".join(
        f"{key} {', '.join(map(str, v)) if isinstance(v, list) else number(v) if isinstance(v, float) else v}"
        for key, v in flat.items()
    )


# ---- pictures


def _svg(width: int, height: int, body: list[str]) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return (
        "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
                '<rect width="100%" height="100%" fill="#ffffff"/>',
                *body,
                "</svg>",
            ]
        )
        + "\n"
    )


def _text(x: float, y: float, words: str, **more: str) -> str:
    extra = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in more.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}"{extra}>{escape(words)}</text>'


def bars(title: str, rows: list[Row]) -> str:
    """Returns a picture with two bars for each row that has a peer: podwire's bar and the peer's bar. Each row has its
    own scale. The whiskers show the least and the greatest value.
    """
    left, wide, high = 270, 520, 46
    body = [_text(10, 24, title, font_size="16", font_weight="bold")]
    for x, who, colour in ((left, "podwire", MINE), (left + 90, "peer", THEIRS)):
        body += [f'<rect x="{x - 16}" y="14" width="11" height="11" fill="{colour}"/>', _text(x, 24, who)]
    for index, row in enumerate(rows):
        y = 44 + index * high
        groups = [("podwire", float(row["podwire"]), MINE), ("peer", float(row["peer"]), THEIRS)]
        top = max(max([value, *runs(row, who)]) for who, value, _ in groups) or 1.0
        body.append(_text(left - 10, y + 20, f"{row['name']}, {row['unit']}", text_anchor="end"))
        for line, (who, value, colour) in enumerate(groups):
            at, length = y + 3 + line * 17, wide * value / top
            body.append(f'<rect x="{left}" y="{at}" width="{length:.1f}" height="14" rx="2" fill="{colour}"/>')
            body += _whisker(left, wide / top, at + 7, runs(row, who))
            name = f" {row['peer_name'].split(' ')[0].rstrip(',')}" if who == "peer" else ""
            body.append(_text(left + wide * max([value, *runs(row, who)]) / top + 8, at + 11, number(value) + name))
    return _svg(left + wide + 230, 54 + len(rows) * high, body)


def _whisker(left: float, scale: float, y: float, values: list[float]) -> list[str]:
    if len(values) < 2:
        return []
    low, high = left + min(values) * scale, left + max(values) * scale
    ends = f"M{low:.1f} {y - 4}V{y + 4}M{low:.1f} {y}H{high:.1f}M{high:.1f} {y - 4}V{y + 4}"
    return [f'<path d="{ends}" stroke="{INK}" fill="none"/>']


SIZE = re.compile(r"^(?P<what>.+) (?P<size>\d+)k$")


def against_size(title: str, rows: list[Row]) -> str:
    """Returns a picture of the cost over the number of Services, with logarithmic axes. Each kind of row that was
    measured at several sizes is one line.
    """
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["unit"] == "ms" and (found := SIZE.match(row["name"])):
            lines.setdefault(found["what"], []).append((float(found["size"]) * 1000, float(row["podwire"])))
    lines = {what: sorted(points) for what, points in lines.items() if len(points) > 1}
    if not lines:
        return ""
    left, top, wide, high = 80, 50, 520, 300
    points = [p for line in lines.values() for p in line]
    xs, ys = [math.log10(x) for x, _ in points], [math.log10(y) for _, y in points]
    x0, x1, y0, y1 = min(xs), max(xs), math.floor(min(ys)), math.ceil(max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        return left + wide * (math.log10(x) - x0) / (x1 - x0), top + high * (y1 - math.log10(y)) / (y1 - y0)

    body = [_text(10, 24, title, font_size="16", font_weight="bold")]
    for power in range(y0, y1 + 1):
        y = at(10**x0, 10.0**power)[1]
        body += [
            f'<path d="M{left} {y:.1f}H{left + wide}" stroke="#d0d7de"/>',
            _text(left - 8, y + 4, f"{10.0**power:g} ms", text_anchor="end"),
        ]
    for x in sorted({x for x, _ in points}):
        body.append(_text(at(x, 10.0**y0)[0], top + high + 18, f"{x / 1000:g}k Services", text_anchor="middle"))
    for index, (what, line) in enumerate(lines.items()):
        colour = (MINE, "#cf222e", "#2da44e", "#8250df")[index % 4]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in line))
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in (at(*p) for p in line)]
        body.append(_text(left + wide + 10, at(*line[-1])[1] + 4, what))
    return _svg(left + wide + 110, top + high + 40, body)


# ---- the page


def page(
    results: Mapping[str, Any],
    targets: Mapping[str, Any],
    counters: Mapping[str, Mapping[str, int]],
    budgets: Mapping[str, Mapping[str, int]],
) -> tuple[str, dict[str, str]]:
    """Returns (Markdown, file name -> SVG)."""
    out = ["# Benchmarks", "", INTRODUCTION, ""]
    pictures: dict[str, str] = {}
    for name in [*TITLES, *sorted(set(results) - set(TITLES))]:
        if name not in results:
            continue
        found, title = results[name], TITLES.get(name, name)
        out += [f"## {title}", "", f"Machine: {machine(found['machine'])}.", ""]
        compared = [row for row in found["rows"] if isinstance(row["peer"], (int, float))]
        for file, svg in (
            (f"{name}.svg", bars(title, compared) if compared else ""),
            (f"{name}-size.svg", against_size(f"{title}: cost against size", found["rows"])),
        ):
            if svg:
                pictures[file] = svg
                out += [f"![{title}](benchmarks/{file})", ""]
        out += [table(found["rows"], targets.get(name, {})), ""]
    out += ["## Work of one act", "", COUNTS, "", "| act | what | used | budget |", "|---" * 4 + "|"]
    for act, budget in budgets.items():
        used = counters.get(act, {})
        out += [f"| {act} | {what} | {number(used.get(what))} | {number(most)} |" for what, most in budget.items()]
    return "\n".join(out) + "\n", pictures


def main() -> None:
    from counters import budgets, measure

    results = {path.stem: json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))}
    targets = tomllib.loads((HERE / "targets.toml").read_text())
    text, pictures = page(results, targets, measure(), budgets(sys.version_info[:2]))
    (DOCS / "benchmarks").mkdir(parents=True, exist_ok=True)
    (DOCS / "benchmarks.md").write_text(text)
    for name, svg in pictures.items():
        (DOCS / "benchmarks" / name).write_text(svg)
    print(f"wrote docs/benchmarks.md and {len(pictures)} pictures")


if __name__ == "__main__":
    main()
