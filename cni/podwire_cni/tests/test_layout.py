"""The node's tables carry their layout: rules of another version are noticed, and a newer layout is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kube.client.config import ClientConfig
from podwire_base.role import layout
from podwire_cni import agent, nodetable, tablesets
from podwire_cni.nodetable import LAYOUT, NodeRules, layout_of

NODE = NodeRules(("10.244.1.0/24",), frozenset({"10.244.0.0/16"}))


def marks(tx: nft.Transaction) -> list[nft.Chain]:
    return [op.thing for op in tx if isinstance(op.thing, nft.Chain) and layout_of(op.thing)]


def test_each_table_has_a_mark_that_follows_its_rules() -> None:
    tx = nodetable.plan(NODE, [])
    first = marks(tx)
    assert [mark.table for mark in first] == list(nodetable.tables()) and {layout_of(mark) for mark in first} == {
        LAYOUT
    }
    assert marks(nodetable.plan(NODE, [])) == first
    for index, op in enumerate(tx.ops):  # a counter more in one rule, with the comment as before
        if isinstance(op.thing, nft.Rule):
            changed = nft.Transaction(list(tx.ops))
            changed.ops[index] = replace(op, thing=replace(op.thing, exprs=(nft.Counter(), *op.thing.exprs)))
            fresh = nodetable._marks_of(changed)
            differ = [mark.table for mark, before in zip(fresh, first, strict=True) if mark != before]
            assert differ == [op.thing.chain.table], op.thing.comment


@pytest.mark.parametrize(("name", "number"), [("layout-7", 7), ("layout-2-ab", 2), ("layout-", 0), ("a-layout-3", 0)])
def test_what_is_a_mark(name: str, number: int) -> None:
    assert layout_of(nft.Chain(tablesets.BRIDGE_TABLE, name)) == number
    assert layout_of(nft.Chain(nft.Table("ip", "podwire"), name)) == 0, "another table"


def test_the_agent_refuses_newer_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tables:
        def layout(self) -> int:
            return LAYOUT + 1

        def close(self) -> None:
            pass

    class Nothing:
        def close(self) -> None:
            pass

    monkeypatch.setattr(agent, "Firewall", Tables)
    monkeypatch.setattr(agent, "Kernel", Nothing)
    monkeypatch.setattr(agent, "Agent", None)  # nothing may be made
    monkeypatch.setattr("podwire_base.kube.client.config.load", lambda _: ClientConfig("http://127.0.0.1:1"))
    with pytest.raises(layout.NewerLayout, match=r"podwire-cni.* layout 2"):
        agent.run(agent.WiringConfig("n1", None, tmp_path))
