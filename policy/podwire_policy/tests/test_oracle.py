"""The oracle, decide() and the plan agree on random clusters, also after changes written as differences."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_base.testing.counts import examples
from podwire_policy.testing import oracle
from podwire_policy.testing.judge import NodeJudge, judges, packet
from podwire_policy.testing.worlds import Chance, probes

EXAMPLES = examples(12, 400)
ASKED, TRACED = 300, 40  # probes of each world


def agree(world: oracle.World, nodes: list[NodeJudge], rng: Random) -> None:
    every = list(probes(world))
    for number, (src, dst, protocol, port) in enumerate(rng.sample(every, min(ASKED, len(every)))):
        truth, asked = oracle.allowed(world, src, dst, protocol, port), packet(src, dst, protocol, port)
        assert all(node.decides(asked) for node in nodes) == truth, (src, dst, protocol, port, world)
        if number < TRACED:
            assert all(node.traces(asked) for node in nodes) == truth, (src, dst, protocol, port, world)


@pytest.mark.parametrize("changes", [0, 1, 6])
@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_oracle_decide_and_the_plan_agree(changes: int, seed: int) -> None:
    chance = Chance(Random(seed))
    world = chance.world()
    nodes = judges(world)
    for _ in range(changes):
        kind, key = chance.change(world)
        for node in nodes:
            node.take(world, kind, key)
            node.change()
    agree(world, nodes, chance.rng)


@settings(max_examples=EXAMPLES * 3, deadline=None)
@given(seed=st.integers(0, 2**32), together=st.integers(1, 5))
def test_any_sequence_of_changes_equals_a_fresh_build(seed: int, together: int) -> None:
    """together: as many changes are written in one transaction."""
    chance = Chance(Random(seed))
    world = chance.world()
    nodes = judges(world)
    for number in range(15):
        kind, key = chance.change(world)
        for node in nodes:
            node.take(world, kind, key)
            if number % together == 0:
                node.change()
    for node, fresh in zip(nodes, judges(world), strict=True):
        node.change()
        assert node.compiler.compiled == fresh.compiler.compiled
        assert node.content() == fresh.content()
        assert node.whole() == 0  # a restart reads back and writes nothing
