"""How many packets each policy and rule dropped, or would have dropped. Pure.

The kernel counts in rules, and a change replaces rules. So the totals are kept here, and grow by what a reading has
more than the last one of the same rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from podwire_base.kernel.reasons import Reason, reason_of, without_reason

from .cells import NO_RULE, Cell
from .model import Direction
from .tables import layout

MOST = 1000  # rows of the page; the smallest of the others are one
NAMED = 10  # policies of one row
OTHER = "other"


class Row(NamedTuple):
    """reason: POLICY, or STAGED: let pass. policy: "namespace/name", or the name of a ClusterNetworkPolicy; several,
    with commas, where none of their rules allows the packet. rule: index of the rule that denies, "" if none allows.
    """

    reason: Reason
    direction: Direction | str
    policy: str
    rule: str


Place = tuple[str, str, str]  # family, chain, comment


def rows(cells: Iterable[Cell]) -> dict[tuple[str, str], Row]:
    """Returns (chain, comment) -> row of all rules of these cells that count."""
    found = {}
    for cell in cells:
        for comment, (reason, origins) in layout.counted(cell).items():
            names = [one.policy for one in origins[:NAMED]]
            more = [f"{len(origins) - NAMED} more"] if len(origins) > NAMED else []
            rule = "" if origins[0].rule == NO_RULE else str(origins[0].rule)
            named = ",".join([*names, *more]) if not rule else names[0]
            found[layout.cell_chain(cell), comment] = Row(reason, cell.direction, named, rule)
    return found


def fixed(comment: str) -> Row | None:
    """Returns the row of a rule of the base chains that drops for no policy; None of one that drops nothing."""
    if reason_of(comment) is not Reason.POLICY:
        return None
    return Row(Reason.POLICY, "", "", without_reason(comment))


@dataclass(slots=True)
class Drops:
    """The totals since the role began. A reading is numbered when it begins, so a slow one that a newer has overtaken
    counts nothing twice.
    """

    totals: dict[Row, int] = field(default_factory=dict)
    _last: dict[Place, tuple[int, int]] = field(default_factory=dict)  # -> number of the reading, packets
    _numbers: int = 0

    def begin(self) -> int:
        self._numbers += 1
        return self._numbers

    def take(self, number: int, read: Mapping[Place, int], known: Mapping[tuple[str, str], Row]) -> None:
        """Takes a reading. known: the rows of the rules. A rule that counts less than before was made anew."""
        for place, count in read.items():
            row = known.get(place[1:]) or fixed(place[2])
            before, was = self._last.get(place, (0, 0))
            if row is None or before > number:
                continue
            self._last[place] = number, count
            self.totals[row] = self.totals.get(row, 0) + (count - was if count >= was else count)

    def forget(self, chains: Iterable[str]) -> None:
        """Forgets rules whose chains are deleted: if they come again, they count from nought."""
        gone = set(chains)
        for place in [place for place in self._last if place[1] in gone]:
            self._last[place] = self._numbers, 0

    def shown(self) -> list[tuple[Row, int]]:
        """Returns the rows of a page, the greatest first."""
        found = sorted(self.totals.items(), key=lambda one: (-one[1], one[0]))
        summed: dict[Row, int] = {}
        for row, count in found[MOST:]:
            other = Row(row.reason, row.direction, OTHER, "")
            summed[other] = summed.get(other, 0) + count
        return [*found[:MOST], *summed.items()]
