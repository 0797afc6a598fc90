"""Every row of the scenario table, judged by the oracle, by decide() and by traces of plans, in both families."""

from __future__ import annotations

import pytest

from podwire_base.testing.counts import examples
from podwire_policy.testing import table
from podwire_policy.testing.judge import play
from podwire_policy.testing.rows_more import ROWS as MORE
from podwire_policy.testing.rows_upstream import ROWS as UPSTREAM

EVERY = len(list(table.probes()))
ASKED, TRACED = examples(60, EVERY), examples(4, 150)


def test_upstream_has_its_50_rows_and_names_are_unique() -> None:
    names = [row.name for row in (*UPSTREAM, *MORE)]
    assert len(UPSTREAM) >= 50
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("row", (*UPSTREAM, *MORE), ids=str)
def test_row(row: table.Row) -> None:
    assert play(row, asked=ASKED, traced=TRACED) == ""
