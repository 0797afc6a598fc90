"""Evaluation of rules in memory: hooks by priority, verdicts, jumps, NAT, every random choice."""

from __future__ import annotations

from typing import Literal

import pytest

from podwire_base.kernel.ip import packed
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.decode import Foreign
from podwire_base.kernel.nft.eval import Evaluator, Result, State, headers
from podwire_base.kernel.nft.expr import R0
from podwire_base.kernel.nft.fake import FakeConnection

TABLE = nft.Table("ip", "t")
SRC, DST, OTHER = packed("10.0.0.1"), packed("10.0.0.2"), packed("10.0.0.3")
TO_22 = (nft.Payload("transport", 2, 2), nft.Cmp((22).to_bytes(2, "big")))
Hook = Literal["prerouting", "postrouting"]


def base(name: str, priority: int, kind: Literal["filter", "nat"] = "filter", hook: Hook = "prerouting") -> nft.Chain:
    return nft.Chain(TABLE, name, hook, kind, priority)


def run(
    *things: nft.Chain | nft.Rule | nft.Set | nft.Elements, port: int = 80, hook: str = "prerouting"
) -> list[Result]:
    kernel = FakeConnection()
    kernel.commit(nft.Transaction().add(TABLE, *things))
    first = headers(SRC, DST, 6, port, "eth0")
    return list(Evaluator([kernel.state[TABLE]], lambda of, address: 2).hook(hook, State(first, first)))


def test_base_chains_run_by_priority_and_a_drop_ends_the_way() -> None:
    late, early = base("late", 10), base("early", -10)
    rules = [
        nft.Rule(late, (nft.Counter(), nft.drop()), "all"),
        nft.Rule(early, (*TO_22, nft.Reject("ip", tcp_reset=True)), "ssh"),
        nft.Rule(early, (nft.accept(),), "the rest goes on"),
    ]
    (refused,), (dropped,) = run(late, early, *rules, port=22), run(late, early, *rules)
    assert (refused.verdict, refused.rule and refused.rule.comment) == ("reject", "ssh")
    assert (dropped.verdict, dropped.rule and dropped.rule.comment) == ("drop", "all")
    assert [step.comment for step in dropped.state.steps if isinstance(step, nft.Rule)] == ["the rest goes on", "all"]


def test_the_policy_decides_where_no_rule_does() -> None:
    closed = nft.Chain(TABLE, "closed", "prerouting", "filter", 0, "drop")
    assert [result.verdict for result in run(closed)] == ["drop"]
    assert [result.verdict for result in run(closed, hook="postrouting")] == ["accept"], "no chain there"


@pytest.mark.parametrize(("jump", "verdict"), [(nft.jump("aside"), "drop"), (nft.goto("aside"), "accept")])
def test_a_jump_comes_back_and_a_goto_does_not(jump: nft.Immediate, verdict: str) -> None:
    aside, main = nft.Chain(TABLE, "aside"), base("main", 0)
    rules = [nft.Rule(aside, (*TO_22, nft.accept())), nft.Rule(main, (jump,)), nft.Rule(main, (nft.drop(),))]
    assert [result.verdict for result in run(aside, main, *rules)] == [verdict]
    assert [result.verdict for result in run(aside, main, *rules, port=22)] == ["accept"]


def test_the_first_translation_of_a_hook_is_the_last_and_filters_see_it() -> None:
    first, second, after = base("first", -100, "nat"), base("second", -95, "nat"), base("after", 0)
    to = (nft.Immediate(OTHER, R0), nft.Immediate((8080).to_bytes(2, "big"), R0 + 1), nft.Dnat("ip", R0, R0 + 1))
    rules = [
        nft.Rule(first, to),
        nft.Rule(second, (nft.drop(),)),
        nft.Rule(after, (nft.Payload("network", 16, 4), nft.Cmp(OTHER, "!="), nft.drop())),
    ]
    (result,) = run(first, second, after, *rules)
    assert result.verdict == "accept"
    assert (result.state.packet.daddr, result.state.packet.dport) == (OTHER, 8080)
    assert result.state.original.daddr == DST
    assert result.state.translated


def test_every_random_draw_is_followed() -> None:
    chain, ends = base("main", 0), nft.Set(TABLE, "ends", ("mark",), ("verdict",))
    elements = nft.Elements(ends, {nft.host32(0): nft.Verdict(0), nft.host32(1): nft.Verdict(1)})
    rule = nft.Rule(chain, (nft.Numgen(2), nft.Lookup("ends", dreg=0)))
    assert sorted(result.verdict for result in run(ends, chain, elements, rule)) == ["accept", "drop"]


@pytest.mark.parametrize(
    ("op", "holds"), [("==", False), ("!=", True), ("<", True), ("<=", True), (">", False), (">=", False)]
)
def test_comparisons(op: Literal["==", "!=", "<", "<=", ">", ">="], holds: bool) -> None:
    chain = base("main", 0)
    rule = nft.Rule(chain, (nft.Payload("transport", 2, 2), nft.Cmp((81).to_bytes(2, "big"), op), nft.drop()))
    assert [result.verdict for result in run(chain, rule)] == ["drop" if holds else "accept"]


def test_intervals_inverted_lookups_and_what_rules_note() -> None:
    chain, nets = base("main", 0), nft.Set(TABLE, "nets", ("ipv4_addr",), interval=True)
    seen = nft.Set(TABLE, "seen", ("ipv4_addr",), ("ipv4_addr",), dynamic=10)
    held = nft.Elements(nets, nft.intervals(["10.0.0.0/31"]))
    saddr, daddr = nft.Payload("network", 12, 4), nft.Payload("network", 16, 4)
    rules = [
        nft.Rule(chain, (saddr, nft.Lookup("nets", invert=True), nft.drop()), "not of the nets"),
        nft.Rule(chain, (saddr, nft.Payload("network", 16, 4, R0 + 1), nft.Update("seen", 60, data=R0 + 1))),
        nft.Rule(chain, (daddr, nft.Lookup("nets"), nft.drop()), "to the nets"),
    ]
    (result,) = run(nets, seen, chain, held, *rules)
    assert result.verdict == "accept"
    assert {tuple(noted) for noted in result.state.noted} == {("seen", SRC, DST)}


def test_what_is_not_known_is_not_guessed() -> None:
    chain = base("main", 0)
    with pytest.raises(NotImplementedError, match="queue"):
        run(chain, nft.Rule(chain, (Foreign("queue"),)))
