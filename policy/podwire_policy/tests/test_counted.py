"""Counters of policies: totals that survive changes of the rules, and the page that shows them."""

from __future__ import annotations

import pytest

from podwire_base.kernel import nflog
from podwire_base.kernel.ip import FAMILIES
from podwire_base.kernel.reasons import Reason
from podwire_base.role.metrics import ProcessFigures
from podwire_policy import counted
from podwire_policy.cells import NO_RULE, Cell, Origin, Step
from podwire_policy.config import PolicyConfig
from podwire_policy.counted import Drops, Row
from podwire_policy.metrics import Figures, page
from podwire_policy.model import DIRECTIONS, TIERS, Block
from podwire_policy.tables import layout

ISOLATED = Cell("ingress", (Step(Block("10.0.0.0/8"), "allow", (Origin("a/p", 0),)),), "deny", ("a/p", "a/q"))
GUARD = Cell("egress", (Step(None, "deny", (Origin("guard", 2),)),), "allow", ("guard",))
WAITING = Cell("ingress", (Step(None, "log", (Origin("a/s", NO_RULE),)),), "allow", ())
CELLS = (ISOLATED, GUARD, WAITING)
ROWS = {
    Row(Reason.POLICY, "ingress", "a/p,a/q", ""),
    Row(Reason.POLICY, "egress", "guard", "2"),
    Row(Reason.STAGED, "ingress", "a/s", ""),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_rule_that_counts_has_a_row(family: str) -> None:
    known = counted.rows(CELLS)
    assert set(known.values()) == ROWS
    counting = {
        (chain.name, rule.comment)
        for chain, rules in (layout.cell_rules(family, cell, True) for cell in CELLS)  # type: ignore[arg-type]
        for rule in rules
        if any(type(expr).__name__ == "Counter" for expr in rule.exprs)
    }
    assert counting == set(known)


def test_names_without_room_are_cut_and_all_fits() -> None:
    for names in (("n" * 63 + "/" + "p" * 253,), tuple(f"{'n' * 20}/{i}" for i in range(1000)), ("a/b",)):
        for direction in DIRECTIONS:
            _, rules = layout.cell_rules("ip", Cell(direction, (), "deny", names), True)
            assert all(len(rule.comment.encode()) <= 126 for rule in rules)
            (log,) = (e for rule in rules for e in rule.exprs if type(e).__name__ == "Log")
            assert log.prefix.startswith("podwire policy ") and log.prefix.endswith("allows it")  # type: ignore[attr-defined]
            assert len(log.prefix) < nflog.LONGEST  # type: ignore[attr-defined]
            assert names[0][:10] in rules[-1].comment


def place(cell: Cell) -> counted.Place:
    (found,) = counted.rows([cell])
    return "ip", *found


def test_totals_grow_by_the_difference_and_survive_new_rules() -> None:
    drops, known, at = Drops(), counted.rows(CELLS), place(ISOLATED)
    row = known[at[1:]]
    for read, total in ((5, 5), (7, 7), (1, 8), (1, 8)):  # 1: somebody flushed the table
        drops.take(drops.begin(), {at: read}, known)
        assert drops.totals[row] == total
    drops.forget([at[1]])
    drops.take(drops.begin(), {at: 3}, known)
    assert drops.totals[row] == 11


def test_a_slow_reading_counts_nothing_twice() -> None:
    drops, known, at = Drops(), counted.rows(CELLS), place(GUARD)
    slow, fast = drops.begin(), drops.begin()
    drops.take(fast, {at: 12}, known)
    drops.forget([at[1]])
    drops.take(slow, {at: 10}, known)
    assert drops.totals[known[at[1:]]] == 12


def test_rules_of_the_base_chain_have_a_row_and_others_none() -> None:
    drops = Drops()
    read = {("ip", "forward", "from a pod that nobody has judged yet [policy]"): 3, ("ip", "forward", "a flow"): 9}
    drops.take(drops.begin(), read, {})
    assert drops.totals == {Row(Reason.POLICY, "", "", "from a pod that nobody has judged yet"): 3}


def test_the_page_is_bounded_and_loses_nothing() -> None:
    drops = Drops({Row(Reason.POLICY, "ingress", f"a/{i}", ""): i for i in range(1, counted.MOST + 11)})
    shown = drops.shown()
    assert len(shown) == counted.MOST + 1
    assert sum(count for _, count in shown) == sum(drops.totals.values())
    assert (shown[-1][0].policy, shown[-1][1]) == (counted.OTHER, sum(range(1, 11)))
    text = page(shown, Figures(dict.fromkeys(TIERS, 1), 0, 0, 2, 3, 4), ProcessFigures())
    assert 'podwire_policy_dropped_packets_total{direction="ingress",policy="other",rule=""} 55.0' in text
    assert 'podwire_policy_policies{tier="admin"} 1.0' in text


@pytest.mark.parametrize("address", ["127.0.0.1", "x", "127.0.0.1:0", ":70000", "127.0.0.1:http"])
def test_a_bad_address_of_the_page(address: str) -> None:
    from pathlib import Path

    with pytest.raises(ValueError, match="metrics_address"):
        PolicyConfig("n1", None, Path("/run"), metrics_address=address)
