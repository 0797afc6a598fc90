"""The results of the conformance table for each dataplane, as Markdown and as an SVG picture. No I/O here."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Literal

Result = Literal["passed", "failed", "lacking"]
MARKS: dict[Result | None, tuple[str, str]] = {
    "passed": ("✓", "#2da44e"),
    "failed": ("✗", "#cf222e"),
    "lacking": ("–", "#9a6700"),
    None: (" ", "#d0d7de"),
}
LEGEND: tuple[tuple[Result, str], ...] = (
    ("passed", "held"),
    ("failed", "failed"),
    ("lacking", "lacks what is named below"),
)
CELL, LEFT, TOP = 26, 430, 190


@dataclass(frozen=True, order=True)
class Cell:
    """One behaviour on one dataplane, over one IP family ("IPv4", "IPv6"). note: one line with the reason for "failed"
    or "lacking".
    """

    group: str
    row: str
    dataplane: str
    family: str
    result: Result
    note: str = ""


def sampled(row: str) -> bool:
    """Whether `make test` tests this row with packets. It tests every IPv4 row and a third of the IPv6 rows. A hash of
    the name chooses the same third each time. The same code makes the rules of both families, and `make conformance`
    tests all rows.
    """
    return not row.endswith(" (IPv6)") or zlib.crc32(row.encode()) % 3 == 0


class Matrix:
    """A table of cells. A row is (group, behaviour), in the order of addition. A column is (dataplane, family)."""

    def __init__(self, cells: Iterable[Cell], title: str) -> None:
        self.title = title
        self.cells: dict[tuple[str, str, str, str], Cell] = {}
        for cell in cells:
            key = (cell.group, cell.row, cell.dataplane, cell.family)
            before = self.cells.get(key)  # several tests can make one row, which passes only if all of them pass
            if before is None or before.result == "passed":
                self.cells[key] = cell
        self.rows = list(dict.fromkeys((c.group, c.row) for c in self.cells.values()))
        self.columns = sorted({(c.dataplane, c.family) for c in self.cells.values()})

    def counts(self, column: tuple[str, str]) -> tuple[int, int, int]:
        """Return the number of (passed, failed, lacking) cells in one column."""
        found = [c.result for c in self.cells.values() if (c.dataplane, c.family) == column]
        return found.count("passed"), found.count("failed"), found.count("lacking")

    def markdown(self) -> str:
        """Return one Markdown table, with a row above each group, and a line for each failed or lacking cell."""
        heads = [f"{name} {family}" for name, family in self.columns]
        out = [f"# {self.title}", "", "| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        sums = [self.counts(column) for column in self.columns]
        out.append("| **held, of all** | " + " | ".join(f"{p} of {p + f + x}" for p, f, x in sums) + " |")
        group = ""
        for row in self.rows:
            if row[0] != group:
                group = row[0]
                out.append(f"| **{group}** |" + " |" * len(heads))
            marks = [MARKS[self._result(row, column)][0] for column in self.columns]
            out.append(f"| {row[1].replace('|', '/')} | " + " | ".join(marks) + " |")
        notes = [
            f"- {c.dataplane} {c.family}, {c.row}: {c.result}: {c.note}"
            for c in self.cells.values()
            if c.result != "passed"
        ]
        legend = ", ".join(f"{MARKS[one][0]} {word}" for one, word in LEGEND)
        out += ["", f"{legend}.", "", *notes]
        return "\n".join(out).rstrip() + "\n"

    def svg(self) -> str:
        """Return a picture with one square for each cell, green, red or amber. A tooltip shows the cell's note."""
        width, height = LEFT + CELL * len(self.columns) + 120, TOP + 18 * len(self.rows) + 20
        size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        out = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">',
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            f'<text x="10" y="24" font-size="16" font-weight="bold">{escape(self.title)}</text>',
        ]
        for index, (one, word) in enumerate((*LEGEND, (None, "not asked"))):
            out += [
                f'<rect x="10" y="{40 + 18 * index}" width="{CELL - 4}" height="15" rx="3" fill="{MARKS[one][1]}"/>',
                f'<text x="{16 + CELL}" y="{52 + 18 * index}">{word}</text>',
            ]
        for index, (name, family) in enumerate(self.columns):
            x, y = LEFT + CELL * index + 14, TOP - 8
            out.append(f'<text x="{x}" y="{y}" transform="rotate(-50 {x} {y})">{escape(name)} {family}</text>')
        for number, row in enumerate(self.rows):
            y = TOP + 18 * number
            out.append(f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(row[1])}</text>')
            for index, column in enumerate(self.columns):
                result = self._result(row, column)
                note = self.cells[(*row, *column)].note if result else "not asked"
                out.append(
                    f'<rect x="{LEFT + CELL * index}" y="{y}" width="{CELL - 4}" height="15" rx="3" '
                    f'fill="{MARKS[result][1]}"><title>{escape(f"{row[1]}: {result or note}")}</title></rect>'
                )
        return "\n".join([*out, "</svg>"]) + "\n"

    def _result(self, row: tuple[str, str], column: tuple[str, str]) -> Result | None:
        cell = self.cells.get((*row, *column))
        return cell.result if cell else None
