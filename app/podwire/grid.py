"""Tables as text: aligned cells, nothing cut, no character that a terminal obeys. Pure."""

from __future__ import annotations

import textwrap

from podwire_base.role import logtext

WIDTH = 80
LEAST = 14  # columns of the last cell, however wide the others are


def clean(told: object) -> str:
    """Return a text that a node or an object told, without characters that a terminal obeys."""
    return logtext.printable(str(told))


def folded(line: str, width: int = WIDTH) -> list[str]:
    """Return the lines of a text that is wider than `width`; what continues is indented. Long words stay whole."""
    if len(line) <= width:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def table(titles: list[str], rows: list[list[str]], width: int) -> list[str]:
    """Return aligned lines of at most `width` columns; 0: of any width. The last cell continues on further lines, and a
    first cell that leaves no room for the others has a line of its own. Nothing is cut.
    """
    grid = [titles, *([clean(cell) for cell in row] for row in rows)]
    sizes = [max(len(row[i]) for row in grid) for i in range(len(titles) - 1)]
    if width:
        room = width - sum(sizes[1:]) - 2 * len(sizes) - min(LEAST, max(len(row[-1]) for row in grid))
        sizes[0] = min(sizes[0], max(room, len(titles[0])))
    lines = []
    for row in grid:
        cells = list(row[:-1])
        if len(cells[0]) > sizes[0]:
            lines.append(cells[0])
            cells[0] = ""
        head = "".join(cell.ljust(size) + "  " for cell, size in zip(cells, sizes, strict=True))
        room = max(LEAST, width - len(head)) if width else max(1, len(row[-1]))
        first, *more = textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""]
        lines += [(head + first).rstrip(), *(" " * len(head) + line for line in more)]
    return lines
