"""What `podwire explain` says is what happens: random flows, and the common faults."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from lab import explained as x
from lab.dataplane import Ours
from lab.netns import Lab
from lab.serviceworld import SILENCE, World, ask
from podwire_proxy.testing import scenarios as s

FLOWS = 500 if os.environ.get("PODWIRE_LONG") else 50
EACH = 5  # packets for each random cluster


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        made = World(lab)
        yield made
        made.close()


@pytest.fixture
def clean(world: World) -> Iterator[World]:
    yield world
    world.node.run(["nft", "flush", "ruleset"])


def test_random_flows_meet_the_fate_that_was_explained(clean: World, tmp_path: Path) -> None:
    world, run_dir = clean, x.announcing(tmp_path)
    seed = Random().randrange(1 << 30) if os.environ.get("PODWIRE_LONG") else 14
    random, wrong = Random(seed), list[str]()
    for _ in range(FLOWS // EACH):
        drawn = x.draw(random)
        program = s.Scenario("random", drawn.objects, {})
        Ours("nftables").program(world, program)
        x.install(world, drawn)
        try:
            for _ in range(EACH):
                src, dst, number, protocol = x.packet(random)
                said = x.explained(world, run_dir, drawn.objects, src, dst, number, protocol)
                world.forget()
                got = ask(world.client(src), dst, number, protocol, src=src, timeout=SILENCE)
                if problem := x.disagreement(said, got, src):
                    wrong.append(f"seed {seed}: {problem}\n{x.told(drawn, said)}")
        finally:
            x.remove(world.node, drawn)
    assert not wrong, f"{len(wrong)} of {FLOWS}\n\n" + "\n\n".join(wrong[:5])
