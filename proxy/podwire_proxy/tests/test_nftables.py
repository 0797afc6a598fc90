"""The nftables backend's own: slots, affinity maps, verdict maps, and the cost of a change. test_backends.py tests the
behaviour of every backend.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.decode import Foreign
from podwire_base.kernel.nft.fake import FakeConnection
from podwire_base.kernel.nft.objects import Elements
from podwire_base.kernel.reasons import Reason, reason_of
from podwire_proxy.changes import Tracker
from podwire_proxy.decide import Packet, decide
from podwire_proxy.explain import explain
from podwire_proxy.nftables.backend import Nftables
from podwire_proxy.nftables.layout import Layout, static_rules
from podwire_proxy.nftables.live import Tables
from podwire_proxy.nftables.plan import Planner, assign
from podwire_proxy.nftables.trace import Tracer
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service
from podwire_proxy.verdict import Kind, combined

from .strategies import VIPS, changes, fresh
from .test_backends import cluster, played
from .test_backends import endpoints as some

LAYOUT = Layout("ip")


@given(changes, *[st.sets(st.integers(0, 12))] * 3)
def test_after_any_changes_the_same_endpoints_may_be_remembered(
    done: list[Any], syncs: set[int], sweeps: set[int], restarts: set[int]
) -> None:
    _, _, planner = played(Nftables(), done, syncs, sweeps, restarts, [])
    assert isinstance(planner, Planner)
    expected = fresh(done).dataplane
    new = Planner(LAYOUT, expected.node)
    new.full(expected, None)
    assert {key: planner.allowed[key] for key in new.allowed} == new.allowed


def test_a_rule_of_somebody_else_is_named() -> None:
    row = s.SCENARIOS[0]
    tracker, kernel = row.tracker(), FakeConnection()
    tracker.flush()
    kernel.commit(Planner(LAYOUT, row.node).full(tracker.dataplane, None))
    dump = kernel.state[LAYOUT.table]
    dump.rules["prerouting"].insert(0, nft.Rule(dump.chains["prerouting"], (Foreign("queue"),)))
    live = Tables({"ip": dump})
    assert "queue" in explain(live, row.node, next(iter(row.expect))).lines[-1]
    assert set(live.node("n1", ()).pod_cidrs) == set(row.node.pod_cidrs)


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_every_rule_that_drops_or_refuses_carries_its_reason(family: str) -> None:
    node = s.INFO if family == "ip" else s.SCENARIOS[0].v6().node
    made = static_rules(Layout(family), node)  # type: ignore[arg-type]  # the two literals above
    for rule in (rule for rules in made.rules.values() for rule in rules):
        ends = any(isinstance(expr, nft.Reject) or expr == nft.drop() for expr in rule.exprs)
        assert (reason_of(rule.comment) is not None) is ends, rule.comment
    logged, *refusing = made.rules["wrong-port"]
    assert {reason_of(rule.comment) for rule in refusing} == {Reason.WRONG_PORT}
    assert [type(expr) for expr in logged.exprs] == [nft.Limit, nft.Log], "the first one tells of it, and goes on"


@given(st.lists(st.binary(min_size=1, max_size=1), unique=True), st.sets(st.binary(min_size=1, max_size=1)))
def test_slots_stay_dense_and_move_as_little_as_can_be(old: list[bytes], wanted: set[bytes]) -> None:
    new = assign(old, sorted(wanted))
    assert set(new) == wanted
    assert len(new) == len(wanted)
    kept = [value for value in old[: len(new)] if value in wanted]
    assert [value for index, value in enumerate(new) if index < len(old) and old[index] == value] == kept


@settings(deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(1, 5)), st.booleans()), max_size=10))
def test_sweeping_late_or_early_never_takes_a_slot_in_use(steps: list[tuple[set[int], bool]]) -> None:
    """One Service grows and shrinks; after each commit every slot that can be drawn exists, and after a sweep no
    other.
    """
    tracker, kernel, planner = Tracker(s.INFO), FakeConnection(), Planner(LAYOUT, s.INFO)
    tracker.service("default/a", service("a", VIPS[0], [port(80)]))
    tracker.flush()
    kernel.commit(tx := planner.full(tracker.dataplane, None))
    planner.committed(tx)
    for members, swept in steps:
        tracker.slice("x", endpoint_slice("a", [endpoint(f"10.244.2.{n}") for n in members], [("", "TCP", 80)]))
        tx = planner.change(tracker.dataplane, tracker.flush())
        kernel.commit(tx)
        planner.committed(tx)
        if swept:
            kernel.commit(tx := planner.sweep())
            planner.committed(tx)
        slots = kernel.state[LAYOUT.table].elements["endpoints"]
        tracer = Tracer(kernel.state[LAYOUT.table], s.INFO)
        packet = s.packet(s.POD_A, VIPS[0], 80)
        assert combined(way.verdict for way in tracer.traces(packet)) == decide(tracker.dataplane, packet)
        assert len(slots) == len(members) if swept else len(slots) >= len(members)


def cost(size: int, endpoints: int) -> tuple[int, int, int]:
    """(elements written, verdicts among them, elements swept later) when one of `size` Services gets `endpoints`
    endpoints."""
    tracker, kernel, planner = cluster(size), FakeConnection(), Planner(LAYOUT, s.INFO)
    tracker.flush()
    for tx in (planner.full(tracker.dataplane, None), planner.sweep()):
        kernel.commit(tx)
        planner.committed(tx)
    tracker.slice("default/s3-1", some("s3", endpoints))
    tx = planner.change(tracker.dataplane, tracker.flush())
    kernel.commit(tx)
    planner.committed(tx)
    verdicts = sum(
        len(op.thing.items) for op in tx if isinstance(op.thing, Elements) and op.thing.set.name == "services"
    )
    return tx.elements, verdicts, planner.sweep().elements


def test_a_change_costs_what_it_is_and_not_what_the_cluster_is() -> None:
    # One more endpoint: its slot, and the Service's verdict deleted and written. One less: only the verdict, the slot
    # later.
    assert cost(10, 6) == cost(500, 6) == (3, 2, 0)
    assert cost(10, 4) == cost(500, 4) == (2, 2, 1)


def test_what_others_break_is_mended_and_only_that() -> None:
    tracker, kernel, planner = cluster(50), FakeConnection(), Planner(LAYOUT, s.INFO)
    tracker.flush()
    kernel.commit(planner.full(tracker.dataplane, None))
    whole = kernel.dump(LAYOUT.table)
    broken = kernel.dump(LAYOUT.table)
    assert whole is not None
    assert broken is not None
    broken.rules["postrouting"].pop()
    broken.elements["cluster-ips"].popitem()
    broken.elements["endpoints"].popitem()
    kernel.state[LAYOUT.table] = broken
    tx = planner.full(tracker.dataplane, kernel.dump(LAYOUT.table))
    assert tx.elements == 2
    kernel.commit(tx)
    now = kernel.dump(LAYOUT.table)
    assert now is not None
    assert (now.elements, now.rules) == (whole.elements, whole.rules)


def test_a_table_of_another_shape_is_replaced_in_one_transaction() -> None:
    kernel, planner = FakeConnection(), Planner(LAYOUT, s.INFO)
    tracker = cluster(3)
    tracker.flush()
    kernel.commit(planner.full(tracker.dataplane, None))
    old = kernel.dump(LAYOUT.table)
    assert old is not None
    old.sets["services"] = Layout("ip6").sets()["services"]
    kernel.commit(Planner(LAYOUT, s.INFO).full(tracker.dataplane, old))
    tracer = Tracer(kernel.state[LAYOUT.table], s.INFO)
    sent = Packet(s.POD_A, "10.96.0.1", "TCP", 80)
    assert {way.verdict.kind for way in tracer.traces(sent)} == {Kind.FORWARD}
    assert len(kernel.committed) == 2


def test_only_two_base_chains_reach_the_verdict_map_of_services() -> None:
    """At each commit that adds an element to a verdict map, the kernel checks all its elements again for each base
    chain that leads to it. A third base chain would make a change of an endpoint half as expensive again: milliseconds
    with 44,000 Services.
    """
    tracker, kernel = cluster(3), FakeConnection()
    tracker.flush()
    kernel.commit(Planner(LAYOUT, s.INFO).full(tracker.dataplane, None))
    dump = kernel.state[LAYOUT.table]

    def maps(chain: str) -> set[str]:
        found: set[str] = set()
        for expr in (expr for rule in dump.rules[chain] for expr in rule.exprs):
            if isinstance(expr, nft.Lookup) and dump.sets[expr.set].data == ("verdict",):
                found.add(expr.set)
            elif isinstance(expr, nft.Immediate) and isinstance(expr.value, nft.Verdict) and expr.value.chain:
                found |= maps(expr.value.chain)
        return found

    reach = {name: maps(name) for name, chain in dump.chains.items() if chain.hook}
    assert {name for name, found in reach.items() if "services" in found} == {"prerouting", "output"}
    assert {name for name, found in reach.items() if "outside" in found} == {"prerouting"}
