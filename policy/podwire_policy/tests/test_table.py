"""Every row of the scenario table, judged by the oracle, by decide() and by traces of plans, in both families."""

from __future__ import annotations

import pytest

from podwire_base.testing.counts import examples
from podwire_policy.testing import table
from podwire_policy.testing.judge import judges, packet, play
from podwire_policy.testing.oracle import Object
from podwire_policy.testing.rows_cluster import ROWS as CLUSTER
from podwire_policy.testing.rows_cluster import UNKNOWN, X_A, cluster
from podwire_policy.testing.rows_more import ROWS as MORE
from podwire_policy.testing.rows_upstream import ROWS as UPSTREAM

EVERY = len(list(table.probes()))
ASKED, TRACED = examples(60, EVERY), examples(4, 150)


def test_upstream_has_its_rows_and_names_are_unique() -> None:
    names = [row.name for row in (*UPSTREAM, *MORE, *CLUSTER)]
    assert len(UPSTREAM) >= 50
    assert len(CLUSTER) >= 92
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("row", (*UPSTREAM, *MORE, *CLUSTER), ids=str)
def test_row(row: table.Row) -> None:
    assert play(row, asked=ASKED, traced=TRACED) == ""


@pytest.mark.parametrize(("rule", "reach"), UNKNOWN, ids=str)
def test_what_is_not_known_fails_closed(rule: Object, reach: tuple[str, ...]) -> None:
    """A rule that accepts matches nothing, here above one that denies; one that denies or passes denies everything."""
    world = table.world()
    world.clusters["c"] = cluster("c", "Admin", 1, X_A, ingress=[rule])
    nodes = judges(world)
    for key in table.PODS:
        asked = packet(table.address(key, "ip"), table.address("x/a", "ip"), "TCP", 80)
        if key != "x/a":
            assert all(node.decides(asked) for node in nodes) == (key in reach)
