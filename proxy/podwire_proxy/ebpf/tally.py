"""The rows of the maps `counts` and `totals`, in the structures of native/count.h. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ..dataplane import Frontend, Key
from ..model import Destination, is_v6
from ..tally import Tallies, Tally
from .maps import CHOSEN, UNKNOWN, WHY_LEFT, destination_of, endpoint, key_of, place

_PLACE = 20
_WHY = 2 * _PLACE - 1  # the byte that has the reason


def row_key(key: Key, to: Destination | None, why: int = 0) -> bytes:
    """Returns the key of an element of the map `counts`, in the structure of native/count.h."""
    if to is None:
        return place(key) + bytes(_PLACE - 1) + bytes([why])
    data = endpoint(to)  # begins as a place does
    return place(key) + data[:18] + place(key)[18:19] + b"\0"


def tally_of(data: bytes, number: int) -> Tally:
    key = key_of(data[:_PLACE])
    if data[_WHY]:
        return Tally(key, None, WHY_LEFT.get(data[_WHY], str(data[_WHY])), number)
    to = data[_PLACE:]
    return Tally(key, destination_of(to[:18] + bytes(6)) if any(to) else None, "", number)


def tallies(rows: Iterable[Tally], totals: Mapping[int, int]) -> Tallies:
    """totals: by answer of look.h."""
    left = {name: totals.get(answer, 0) for answer, name in WHY_LEFT.items()}
    return Tallies(tuple(rows), totals.get(CHOSEN, 0), left, totals.get(UNKNOWN, 0))


def stale(
    found: Tallies, frontend: Callable[[Key], Frontend | None], *, v6: bool
) -> list[tuple[Key, frozenset[Destination]]]:
    """Returns the frontends of a family with the endpoints that have a row and are gone. A start finds them."""
    ends: dict[Key, set[Destination]] = {}
    for row in found.rows:
        if is_v6(row.key.ip) != v6:
            continue
        one = frontend(row.key)
        if one is None or (row.to and row.to not in one.destinations):
            ends.setdefault(row.key, set()).update([row.to] if row.to else [])
    return [(key, frozenset(gone)) for key, gone in ends.items()]
