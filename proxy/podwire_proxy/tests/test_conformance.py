"""Two of the three judges of the conformance table: the oracle and the planned rules. The third is netns-tests."""

from __future__ import annotations

import pytest

from podwire_proxy.decide import decide
from podwire_proxy.nft.fake import FakeConnection
from podwire_proxy.nftables.layout import Layout
from podwire_proxy.nftables.plan import Planner
from podwire_proxy.nftables.trace import Tracer
from podwire_proxy.testing.scenarios import SCENARIOS, Scenario

TABLE = [s for scenario in SCENARIOS for s in (scenario, scenario.v6())]


@pytest.mark.parametrize("scenario", TABLE, ids=lambda s: s.name)
def test_decide(scenario: Scenario) -> None:
    tracker = scenario.tracker()
    tracker.flush()
    assert {p: decide(tracker.dataplane, p) for p in scenario.expect} == scenario.expect


@pytest.mark.parametrize("scenario", TABLE, ids=lambda s: s.name)
def test_trace_of_the_planned_rules(scenario: Scenario) -> None:
    tracker = scenario.tracker()
    tracker.flush()
    layout, kernel = Layout("ip6" if ":" in scenario.node.addresses[0] else "ip"), FakeConnection()
    planner = Planner(layout, scenario.node)
    kernel.commit(planner.full(tracker.dataplane, kernel.dump(layout.table)))
    tracer = Tracer(kernel.state[layout.table], scenario.node)
    assert {p: tracer.outcome(p) for p in scenario.expect} == scenario.expect
