"""Session affinity ends with the endpoint: deletes the clients that rules recorded for endpoints that are gone. Pure:
the tables are arguments, real ones or a FakeConnection.
"""

from __future__ import annotations

import errno
from typing import Protocol

from podwire_base.kernel.nft import ruleset as nft

from .layout import AFFINITY
from .plan import Planner

TURNS = 5


class Noting(Protocol):
    """Tables that rules write to as well."""

    def elements(self, set_: nft.Set, /) -> dict[bytes, nft.Value]: ...
    def commit(self, transaction: nft.Transaction, /) -> None: ...


def forget(planner: Planner, tables: Noting) -> int:
    """End the affinity of clients whose endpoint is gone; returns the number of commits. Elements can expire in
    between, so it repeats. Raises OSError.
    """
    commits = 0
    for local, name in enumerate(AFFINITY):
        set_ = planner.layout.sets()[name]
        for turn in range(TURNS):
            gone = planner.outdated(bool(local), tables.elements(set_))
            # The last rounds delete one element each, so that no other expiring element can interfere.
            parts = [gone] if turn < TURNS - 2 else [{key: value} for key, value in gone.items()]
            done = [_delete(tables, nft.Elements(set_, part)) for part in parts if part]
            commits += sum(done)
            if all(done):
                break
    return commits


def _delete(tables: Noting, elements: nft.Elements) -> bool:
    """Returns False if one of them was gone already; then none is deleted."""
    try:
        tables.commit(nft.Transaction().delete(elements))
    except OSError as err:
        if err.errno != errno.ENOENT:
            raise
        return False
    return True
