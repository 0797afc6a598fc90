"""The demo's result: one row for each proof."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """part: number in the list of what the demo proves. sent, source, back: what was sent, from where, what came back.

    detail: shown only where the row does not hold.
    """

    part: str
    sent: str
    source: str
    back: str
    ok: bool
    detail: str = ""


Check = Callable[..., Iterator[Row]]
