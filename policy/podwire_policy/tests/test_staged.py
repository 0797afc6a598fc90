"""Policies that are not in force let everything pass, and tell of exactly what they would deny."""

from __future__ import annotations

from random import Random

import pytest

from podwire_policy.cells import NO_RULE, Origin
from podwire_policy.convert import STAGED
from podwire_policy.convert import policy as convert
from podwire_policy.decide import decide
from podwire_policy.testing import oracle, table
from podwire_policy.testing.judge import NodeJudge, judges, packet
from podwire_policy.testing.oracle import Object, World
from podwire_policy.testing.rows_cluster import ALL, X_A, Y, cluster, rule
from podwire_policy.testing.worlds import Chance, probes

WORLDS, ASKED, TRACED = 25, 150, 25


def staged(policy: Object, value: str = "true") -> Object:
    return {**policy, "metadata": {**policy["metadata"], "annotations": {STAGED: value}}}


def told(nodes: list[NodeJudge], src: str, dst: str, protocol: str, port: int) -> tuple[Origin, ...]:
    asked = packet(src, dst, protocol, port)
    trails = [trail for node in nodes for trail in decide(node.compiler.compiled, asked).trails]
    return tuple(one for trail in trails for one in trail.staged)


@pytest.mark.parametrize("some", [False, True], ids=["all", "some"])
@pytest.mark.parametrize("seed", range(WORLDS))
def test_random_worlds(seed: int, some: bool) -> None:
    """all: what is told is what would be denied. some: the others judge as if those were not there."""
    chance = Chance(Random(seed))
    world = chance.world()
    world.clusters = {} if not some else world.clusters
    strict = World(world.namespaces, world.pods, dict(world.policies), dict(world.clusters), world.nodes)
    for kind in (world.policies, world.clusters):
        for at, key in enumerate(sorted(kind)):
            if not some or at % 2:
                kind[key] = staged(kind[key])
    nodes = judges(world)
    every = list(probes(world))
    for number, probe in enumerate(chance.rng.sample(every, min(ASKED, len(every)))):
        truth, asked = oracle.allowed(world, *probe), packet(*probe)
        assert all(node.decides(asked) for node in nodes) == truth, probe
        if number < TRACED:
            assert all(node.traces(asked) for node in nodes) == truth, probe
        if not some:
            assert truth
            assert bool(told(nodes, *probe)) != oracle.allowed(strict, *probe), probe


def judged(*policies: Object) -> list[NodeJudge]:
    world = table.world()
    for one in policies:
        (world.policies if "namespace" in one["metadata"] else world.clusters)[
            "/".join(filter(None, (one["metadata"].get("namespace"), one["metadata"]["name"])))
        ] = one
    return judges(world)


def asks(nodes: list[NodeJudge], src: str, port: int = 80) -> tuple[Origin, ...]:
    return told(nodes, table.address(src, "ip"), table.address("x/a", "ip"), "TCP", port)


def test_it_names_the_policies_and_a_policy_in_force_makes_them_silent() -> None:
    first = staged(table.on(table.has(pod="a"), "x/p", policyTypes=["Ingress"]))
    second = staged(
        table.on(table.has(pod="a"), "x/q", ingress=[table.frm(table.pods(table.has(pod="b")), ports=[table.port(80)])])
    )
    nodes = judged(first, second)
    assert asks(nodes, "x/c") == (Origin("x/p", NO_RULE), Origin("x/q", NO_RULE))
    assert asks(nodes, "x/b") == ()
    assert asks(nodes, "x/b", 81) != ()
    in_force = table.on(table.has(pod="a"), "x/r", ingress=[table.frm(table.pods(table.has(pod="c")))])
    assert asks(judged(first, second, in_force), "x/c") == (), "one more policy can only allow more"


def test_a_clusters_policy_is_told_by_its_rule() -> None:
    rules = [rule("Accept", "ingress", Y), rule("Deny", "ingress", ALL)]
    nodes = judged(staged(cluster("guard", "Admin", 1, X_A, ingress=rules)))
    assert asks(nodes, "x/c") == (Origin("guard", 1),)
    assert asks(nodes, "y/a") == ()


@pytest.mark.parametrize(("value", "waits", "problem"), [("true", True, 0), ("false", False, 0), ("yes", False, 1)])
def test_the_annotation(value: str, waits: bool, problem: int) -> None:
    made = convert(staged(table.on({}), value))
    assert (made.staged, len(made.problems)) == (waits, problem)
