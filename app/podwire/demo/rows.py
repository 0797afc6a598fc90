"""The demo's result: one row for each proof."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One proof. part: the number of its part of the demo. sent: the request. source: the sender. back: the response.

    detail: shown only if the row fails.
    """

    part: str
    sent: str
    source: str
    back: str
    ok: bool
    detail: str = ""


Check = Callable[..., Iterator[Row]]
