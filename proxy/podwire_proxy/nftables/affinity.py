"""Ends session affinity with the endpoint: deletes the clients that rules recorded for removed endpoints.

Pure: the tables are arguments, either real tables or a FakeConnection.
"""

from __future__ import annotations

import errno
from typing import Protocol

from podwire_base.kernel.nft import ruleset as nft

from .layout import AFFINITY
from .plan import Planner

TURNS = 5


class Noting(Protocol):
    """Tables whose elements rules also write."""

    def elements(self, set_: nft.Set, /) -> dict[bytes, nft.Value]: ...
    def commit(self, transaction: nft.Transaction, /) -> None: ...


def forget(planner: Planner, tables: Noting) -> int:
    """Ends the affinity of clients whose endpoint was removed. Returns the number of commits. Raises OSError.

    The function repeats the deletion, because elements can expire between the read and the commit.
    """
    commits = 0
    for local, name in enumerate(AFFINITY):
        set_ = planner.layout.sets()[name]
        for turn in range(TURNS):
            gone = planner.outdated(bool(local), tables.elements(set_))
            # In the last rounds each commit deletes one element, so that no other expiring element can interfere.
            parts = [gone] if turn < TURNS - 2 else [{key: value} for key, value in gone.items()]
            done = [_delete(tables, nft.Elements(set_, part)) for part in parts if part]
            commits += sum(done)
            if all(done):
                break
    return commits


def _delete(tables: Noting, elements: nft.Elements) -> bool:
    """Deletes elements. Returns False, and deletes nothing, if an element no longer exists."""
    try:
        tables.commit(nft.Transaction().delete(elements))
    except OSError as err:
        if err.errno != errno.ENOENT:
            raise
        return False
    return True
