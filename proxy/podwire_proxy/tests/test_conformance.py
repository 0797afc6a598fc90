"""Two of the three judges of the conformance table: the oracle and the planned rules. The third is netns-tests."""

from __future__ import annotations

import ipaddress

import pytest

from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.codec import TableDump
from podwire_base.kernel.nft.decode import Foreign
from podwire_base.kernel.nft.fake import FakeConnection
from podwire_proxy.dataplane import Balance, Key
from podwire_proxy.decide import Packet, chosen, decide, remembered
from podwire_proxy.explain import explain
from podwire_proxy.model import Destination
from podwire_proxy.nftables.layout import Layout
from podwire_proxy.nftables.live import Tables
from podwire_proxy.nftables.plan import Planner
from podwire_proxy.nftables.trace import Tracer
from podwire_proxy.testing.scenarios import (
    AFFINITY,
    BALANCER,
    NODE_IP,
    NODE_PORT,
    OUTSIDE,
    POD_A,
    POD_B,
    SCENARIOS,
    TARGET,
    UNUSED,
    VIP,
    Affinity,
    Scenario,
    packet,
)

STICKY = [row for one in AFFINITY for row in (one, one.v6())]
TABLE = [s for scenario in SCENARIOS for s in (scenario, scenario.v6())]


def planned(scenario: Scenario) -> Tracer:
    tracker = scenario.tracker()
    tracker.flush()
    layout, kernel = Layout("ip6" if ":" in scenario.node.addresses[0] else "ip"), FakeConnection()
    kernel.commit(Planner(layout, scenario.node).full(tracker.dataplane, None))
    return Tracer(kernel.state[layout.table], scenario.node)


@pytest.mark.parametrize("scenario", TABLE, ids=lambda s: s.name)
def test_decide(scenario: Scenario) -> None:
    tracker = scenario.tracker()
    tracker.flush()
    assert {p: decide(tracker.dataplane, p) for p in scenario.expect} == scenario.expect


@pytest.mark.parametrize("scenario", TABLE, ids=lambda s: s.name)
def test_trace_of_the_planned_rules(scenario: Scenario) -> None:
    tracer = planned(scenario)
    assert {p: tracer.outcome(p) for p in scenario.expect} == scenario.expect


@pytest.mark.parametrize("row", STICKY, ids=lambda row: row.name)
def test_affinity_as_decided(row: Affinity) -> None:
    tracker = row.scenario().tracker()
    tracker.flush()
    plane = tracker.dataplane
    free = {p: decide(plane, p) for p in (*row.same, *row.apart)}
    for first in row.same:
        frontend = plane.frontends[Key(first.dst, first.protocol, first.port)]  # type: ignore[arg-type]  # no ICMP here
        action = chosen(frontend, first, row.node)
        assert isinstance(action, Balance)
        assert action.sticky is not None
        for backend in action.destinations:
            memory = {remembered(action.sticky, first): backend}
            assert {b for p in row.same for b, _ in decide(plane, p, memory).to} == {backend}
            assert {p: decide(plane, p, memory) for p in row.apart} == {p: free[p] for p in row.apart}
        gone = {remembered(action.sticky, first): Destination("192.0.2.99", 1)}
        assert {p: decide(plane, p, gone) for p in row.same} == {p: free[p] for p in row.same}, "no endpoint any more"


@pytest.mark.parametrize("row", STICKY, ids=lambda row: row.name)
def test_affinity_as_planned(row: Affinity) -> None:
    """What the rules note of the first packet binds the others."""
    tracer = planned(row.scenario())
    free = {p: tracer.outcome(p) for p in (*row.same, *row.apart)}
    for first in row.same:
        assert tracer.outcome(first).to
        noted = sorted(tracer.noted)
        assert {
            Destination(str(ipaddress.ip_address(data[:-4])), int.from_bytes(data[-4:-2], "big"))
            for _, _, data in noted
        } == {backend for backend, _ in free[first].to}, "whatever is chosen is noted, and nothing else"
        for name, key, data in noted:
            tracer.dump.elements[name][key] = data
            outcomes = {p: tracer.outcome(p) for p in row.same}
            assert len({backend for outcome in outcomes.values() for backend, _ in outcome.to}) == 1
            assert {p: tracer.outcome(p) for p in row.apart} == {p: free[p] for p in row.apart}
            del tracer.dump.elements[name][key]


def tables(dump: TableDump) -> Tables:
    return Tables({"ip6" if dump.table.family == "ip6" else "ip": dump})


@pytest.mark.parametrize("scenario", TABLE, ids=lambda s: s.name)
def test_explanations_tell_the_same(scenario: Scenario) -> None:
    live = tables(planned(scenario).dump)
    for sent, outcome in scenario.expect.items():
        node = live.node(scenario.node.name, scenario.node.addresses)
        assert set(node.pod_cidrs) == set(scenario.node.pod_cidrs)
        found = explain(live, node, sent)
        assert (found.verdict, frozenset(found.to)) == (outcome.verdict.value, outcome.to), found.lines


def why(scenario: str, sent: Packet) -> str:
    row = next(s for s in TABLE if s.name == scenario)
    claims = {(sent.dst, "TCP", sent.port): ("default/my-service", 2, 0)}
    return explain(tables(planned(row).dump), row.node, sent, claims).lines[-1]


@pytest.mark.parametrize(
    ("scenario", "sent", "words"),
    [
        ("no endpoints", packet(POD_A, VIP), "no ready endpoint (2 in all)"),
        (
            "externalTrafficPolicy Local, none here",
            packet(OUTSIDE, NODE_IP, NODE_PORT),
            "no ready endpoint is on node n1",
        ),
        ("source ranges: the world outside", packet(POD_A, BALANCER), "loadBalancerSourceRanges"),
        ("source ranges, no endpoints", packet(OUTSIDE, BALANCER), "no ready endpoint"),
        ("wrong port or protocol of a known ClusterIP", packet(POD_A, VIP, 81), "no port 81/TCP"),
        ("unallocated Service address", packet(POD_A, UNUSED), "no Service has this address"),
        ("pod to pod is left alone", packet(POD_A, POD_B, TARGET), "pass: "),
    ],
)
def test_reasons(scenario: str, sent: Packet, words: str) -> None:
    assert words in why(scenario, sent)


def test_a_node_without_the_table_and_a_rule_of_somebody_else() -> None:
    row = TABLE[0]
    sent = next(iter(row.expect))
    assert "no table podwire" in explain(None, row.node, sent).lines[-2]
    dump = planned(row).dump
    dump.rules["prerouting"].insert(0, nft.Rule(dump.chains["prerouting"], (Foreign("queue"),)))
    assert "queue" in explain(tables(dump), row.node, sent).lines[-1]
