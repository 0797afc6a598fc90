"""The scenario table of NetworkPolicy and random clusters, judged by real packets on two nodes, both families: TCP,
UDP, SCTP and ICMP, also after changes that are written as differences.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random

import pytest

from lab.netns import Lab
from lab.policyworld import OUTSIDE, SLOTS, PolicyWorld, Probe, addresses, node_of
from podwire_base.kernel.ip import FAMILIES
from podwire_policy.testing import oracle, table
from podwire_policy.testing.rows_cluster import ROWS as CLUSTER
from podwire_policy.testing.rows_more import ROWS as MORE
from podwire_policy.testing.rows_upstream import ROWS as UPSTREAM
from podwire_policy.testing.worlds import Chance, probes

LONG = bool(os.environ.get("PODWIRE_LONG"))
ASKED = 200 if LONG else 70  # probes of a row's stage, of both families
TABLES = 600 if LONG else 60
AT_ONCE = 20  # random tables in one test


@pytest.fixture(scope="module")
def world() -> Iterator[PolicyWorld]:
    with Lab() as lab:
        yield PolicyWorld(lab)


def rows() -> list[table.Row]:
    """Every row of upstream's; of the others each that has changes, and one of 24 by its place."""
    more = [*(row for at, row in enumerate(MORE) if LONG or row.then or at % 24 == 3)]
    return [*UPSTREAM, *more, *(row for at, row in enumerate(CLUSTER) if LONG or row.then or at % 6 == 0)]


def compare(world: PolicyWorld, asked: list[Probe], expected: list[bool], about: object) -> None:
    found = world.passed(asked, expected)
    wrong = [(p, f"passed: {was}") for p, was, wanted in zip(asked, found, expected, strict=True) if was != wanted]
    assert not wrong, (wrong[:5], about)


@pytest.mark.parametrize("row", rows(), ids=str)
def test_row(world: PolicyWorld, row: table.Row) -> None:
    rng, every = Random(row.name), [p for p in table.probes() if p.src != p.dst]
    world.load(table.world())
    for objects, lines, _ in table.stages(row):
        for judge in world.judges:
            judge.take_all(objects)
            judge.change()
        there, asked, expected = {*reachable(objects), *OUTSIDE}, list[Probe](), list[bool]()
        for probe in rng.sample(every, min(ASKED, len(every))):
            family = rng.choice(FAMILIES)
            src, dst = (table.address(key, family) for key in probe[:2])
            if not {src, dst} <= there:  # a pod that ended has no address
                continue
            asked.append(Probe(src, dst, probe.protocol, probe.port))
            expected.append(table.expected(lines, probe))
        compare(world, asked, expected, lines)


def reachable(objects: oracle.World) -> set[str]:
    """The addresses whose pods run where the address is. (A young pod of the other node may claim one.)"""
    found = set[str]()
    for slot in SLOTS:
        for ip in addresses(slot):
            owner = oracle.pod_at(objects, ip)
            if owner is not None and owner["spec"]["nodeName"] == node_of(slot):
                found.add(ip)
    return found


@pytest.mark.parametrize("first", range(0, TABLES, AT_ONCE))
def test_random_truth_tables(world: PolicyWorld, first: int) -> None:
    """Three tables of four come after a change."""
    for seed in range(first, first + AT_ONCE, 4):
        chance = Chance(Random(seed))
        objects = chance.world()
        world.load(objects)
        for stage in range(4):
            if stage:
                kind, key = chance.change(objects)
                for judge in world.judges:
                    judge.take(objects, kind, key)
                    judge.change()
            there = {*reachable(objects), *OUTSIDE}
            every = [Probe(*p) for p in probes(objects) if p[0] != p[1] and {p[0], p[1]} <= there]
            every = [p for p in every if not {p.src, p.dst} <= {*OUTSIDE}]
            asked = chance.rng.sample(every, min(300, len(every)))
            compare(world, asked, [oracle.allowed(objects, *probe) for probe in asked], (seed, stage, objects))


def test_a_fault_in_the_kernel_is_seen(world: PolicyWorld) -> None:
    """The judge can fail: an element that is gone lets packets pass."""
    objects = table.world()
    objects.policies["x/p"] = UPSTREAM[0].policies[0]
    world.load(objects)
    asked = Probe(table.address("y/a", "ip"), table.address("x/a", "ip"), "TCP", 80)
    compare(world, [asked], [False], "")
    for node in world.nodes.values():
        node.run(["nft", "flush", "map", "ip", "podwire-policy", "pods-in"])
    assert world.passed([asked], [True]) == [True]
