"""The behaviour of every backend, tested in memory: the conformance table, random Services and packets, random
sequences of changes. netns-tests check the same table with packets.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kernel.ip import Family
from podwire_base.kernel.reasons import Reason
from podwire_base.kube import meta
from podwire_proxy import backends
from podwire_proxy.backend import AnyBackend, Fake, Live, Planner, Trace, families
from podwire_proxy.changes import Tracker
from podwire_proxy.dataplane import Balance, Dataplane, Key
from podwire_proxy.decide import Packet, chosen, decide, remembered
from podwire_proxy.explain import explain
from podwire_proxy.model import Destination, NodeInfo
from podwire_proxy.proxier import Engine
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service
from podwire_proxy.verdict import NO_ENDPOINTS, Verdict, combined

from .strategies import VIPS, changes, fresh, packets, play, services, slices
from .toy import Toy

SUBJECTS: tuple[AnyBackend, ...] = (*backends.ALL, Toy())
each_backend = pytest.mark.parametrize("backend", SUBJECTS, ids=lambda backend: backend.name)
each_row = pytest.mark.parametrize("row", s.SCENARIOS, ids=lambda row: row.name)
each_memory = pytest.mark.parametrize("row", s.AFFINITY, ids=lambda row: row.name)
AnyFake = Fake[Any, Any, Any]
AnyPlanner = Planner[Any, Any]


def programmed(backend: AnyBackend, dataplane: Dataplane) -> tuple[AnyFake, Engine]:
    """Rules in memory that serve the dataplane."""
    fake: AnyFake = backend.fake()
    engine = Engine([backend.planner(family, dataplane.node) for family in families(dataplane.node)], fake)
    engine.sync(dataplane, None)
    return fake, engine


def live(backend: AnyBackend, fake: AnyFake, node: NodeInfo) -> Live:
    return backend.live({family: state for family in families(node) if (state := fake.read(family)) is not None})


def serving(backend: AnyBackend, row: s.Scenario) -> tuple[AnyFake, Live]:
    tracker = row.tracker()
    tracker.flush()
    fake, _ = programmed(backend, tracker.dataplane)
    return fake, live(backend, fake, row.node)


def judged(rules: Live, node: NodeInfo, sent: Any) -> dict[Packet, Verdict]:
    return {packet: combined(trace.verdict for trace in rules.traces(packet, node)) for packet in sent}


# ---- the conformance table: verdict, reason, deliveries; each row in both IP families


@each_row
def test_the_oracle_decides_as_the_table_says(row: s.Scenario) -> None:
    for one in (row, row.v6()):
        tracker = one.tracker()
        tracker.flush()
        assert {packet: decide(tracker.dataplane, packet) for packet in one.expect} == one.expect


@pytest.mark.parametrize("backend", backends.ALL, ids=lambda backend: backend.name)
@each_row
def test_the_rules_and_their_explanation_do_as_the_table_says(backend: AnyBackend, row: s.Scenario) -> None:
    as_the_table_says(backend, row)


def test_the_table_serves_a_backend_that_it_does_not_know() -> None:
    for row in s.SCENARIOS:
        as_the_table_says(Toy(), row)


def as_the_table_says(backend: AnyBackend, row: s.Scenario) -> None:
    for one in (row, row.v6()):
        _, rules = serving(backend, one)
        assert judged(rules, one.node, one.expect) == one.expect
        node = rules.node(one.node.name, one.node.addresses)
        assert set(node.pod_cidrs) <= set(one.node.pod_cidrs)
        assert set(node.service_cidrs) == set(one.node.service_cidrs)
        assert {packet: explain(rules, node, packet).verdict for packet in one.expect} == one.expect


@each_memory
def test_the_oracle_remembers_clients(row: s.Affinity) -> None:
    for one in (row, row.v6()):
        tracker = one.scenario().tracker()
        tracker.flush()
        plane = tracker.dataplane
        free = {p: decide(plane, p) for p in (*one.same, *one.apart)}
        for first in one.same:
            frontend = plane.frontends[Key(first.dst, first.protocol, first.port)]  # type: ignore[arg-type]  # no ICMP here
            balance = chosen(frontend, first, one.node)
            assert isinstance(balance, Balance)
            assert balance.sticky is not None
            for backend in balance.destinations:
                memory = {remembered(balance.sticky, first): backend}
                assert {b for p in one.same for b, _ in decide(plane, p, memory).to} == {backend}
                assert {p: decide(plane, p, memory) for p in one.apart} == {p: free[p] for p in one.apart}
            gone = {remembered(balance.sticky, first): Destination("192.0.2.99", 1)}
            assert {p: decide(plane, p, gone) for p in one.same} == {p: free[p] for p in one.same}, "no endpoint now"


@each_backend
@each_memory
def test_what_rules_note_of_the_first_packet_binds_the_others(backend: AnyBackend, row: s.Affinity) -> None:
    for one in (row, row.v6()):
        fake, rules = serving(backend, one.scenario())
        family: Family = "ip6" if ":" in one.node.addresses[0] else "ip"
        free = judged(rules, one.node, (*one.same, *one.apart))
        for first in one.same:
            ways = list(rules.traces(first, one.node))
            assert {delivery for way in ways for delivery in way.verdict.to} == free[first].to
            assert all(len(way.noted) == 1 for way in ways), "whatever is chosen is noted, and nothing else"
            for way in ways:
                ((to, _),), (noted,) = way.verdict.to, way.noted
                fake.note(family, noted)
                now = live(backend, fake, one.node)
                assert {b for p in one.same for b, _ in judged(now, one.node, [p])[p].to} == {to}
                assert judged(now, one.node, one.apart) == {p: free[p] for p in one.apart}
                fake.forget(family, noted)


# ---- reasons


@each_backend
@pytest.mark.parametrize(
    ("name", "sent", "reason", "words"),
    [
        ("no endpoints", s.packet(s.POD_A, s.VIP), Reason.NO_ENDPOINTS, "no ready endpoint (2 in all)"),
        (
            "externalTrafficPolicy Local, none here",
            s.packet(s.OUTSIDE, s.NODE_IP, s.NODE_PORT),
            Reason.NO_LOCAL_ENDPOINTS,
            "no ready endpoint is on node n1",
        ),
        (
            "source ranges: the world outside",
            s.packet(s.POD_A, s.BALANCER),
            Reason.SOURCE_RANGE,
            "loadBalancerSourceRanges",
        ),
        ("source ranges, no endpoints", s.packet(s.OUTSIDE, s.BALANCER), Reason.NO_ENDPOINTS, "no ready endpoint"),
        (
            "wrong port or protocol of a known ClusterIP",
            s.packet(s.POD_A, s.VIP, 81),
            Reason.WRONG_PORT,
            "no port 81/TCP",
        ),
        (
            "unallocated Service address",
            s.packet(s.POD_A, s.UNUSED),
            Reason.UNALLOCATED_ADDRESS,
            "no Service has this address",
        ),
        (
            "NodePorts on 127.0.0.1: TCP",
            s.packet(s.OUTSIDE, s.LOCALHOST, s.NODE_PORT),
            Reason.LOOPBACK_MARTIAN,
            "a loopback address",
        ),
        ("pod to pod is left alone", s.packet(s.POD_A, s.POD_B, s.TARGET), None, "pass: "),
    ],
)
def test_reasons_in_words(backend: AnyBackend, name: str, sent: Packet, reason: Reason | None, words: str) -> None:
    row = next(row for row in s.SCENARIOS if row.name == name)
    _, rules = serving(backend, row)
    claims = {(sent.dst, "TCP", sent.port): ("default/my-service", 2, 0)}
    found = explain(rules, row.node, sent, claims)
    assert found.verdict is not None
    assert found.verdict.reason is reason
    assert words in found.lines[-1]


NAMES = (
    *Reason,
    "no-local-endpoint-test",
    "a Local traffic policy",
    "unallocated",
    "other ports",
    "loopback",
    "rule sources-x",
    "not in the source ranges",
    "map services",
    "map outside",
    "x [source-range]",
    'x" [policy] #12345678',
    "[no-local-endpoints]",
)


@each_backend
@pytest.mark.parametrize("sticky", [False, True], ids=["plain", "sticky"])
def test_a_services_name_is_never_taken_for_a_reason(backend: AnyBackend, sticky: bool) -> None:
    """A name may contain any word of a rule's text; the API refuses some of these, but the rules must not rely on
    it.
    """
    for name in NAMES:
        tracker = Tracker(s.INFO)
        affinity: dict[str, Any] = {"sessionAffinity": "ClientIP"} if sticky else {}
        obj = service(name, s.VIP, [port(80)], type="LoadBalancer", ingress=[{"ip": s.BALANCER}], **affinity)
        tracker.service(f"default/{name}", obj)
        sent = [s.packet(s.POD_A, s.VIP), s.packet(s.OUTSIDE, s.BALANCER)]
        for served in (False, True):
            if served:
                tracker.slice("x", endpoint_slice(name, [endpoint(s.POD_B, s.NODE)], [("", "TCP", 80)]))
            tracker.flush()
            fake, _ = programmed(backend, tracker.dataplane)
            rules = live(backend, fake, s.INFO)
            expected = {p: decide(tracker.dataplane, p) for p in sent}
            assert judged(rules, s.INFO, sent) == expected, name
            for packet in sent:
                found = explain(rules, s.INFO, packet)
                assert found.verdict == expected[packet], name
                assert served or (found.verdict == NO_ENDPOINTS and "no ready endpoint" in found.lines[-1]), name


def test_a_node_without_rules() -> None:
    found = explain(None, s.INFO, s.packet(s.POD_A, s.VIP), absent=backends.places())
    assert "here is no table podwire, no chains PODWIRE-*, no socket hooks: no proxy has run" in found.lines[-2]


class Broken:
    """Rules that cannot be followed, or that decide by chance."""

    place = "chains of mine"

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = verdicts

    def node(self, name: str, addresses: tuple[str, ...]) -> NodeInfo:
        return NodeInfo(name, addresses)

    def traces(self, packet: Packet, node: NodeInfo) -> Any:
        if not self.verdicts:
            raise NotImplementedError("match --u32")
        return iter(Trace(verdict) for verdict in self.verdicts)


def test_rules_of_somebody_else_and_verdicts_by_chance() -> None:
    found = explain(Broken(), s.INFO, s.packet(s.POD_A, s.VIP))
    assert found.verdict is None
    assert found.lines[-1].endswith("another program put a rule into chains of mine: match --u32")
    unknown = explain(Broken(replace(NO_ENDPOINTS, reason=None)), s.INFO, s.packet(s.POD_A, s.VIP))
    assert unknown.lines[-1].endswith("reject: a rule that is not the proxy's, or one that changed, decides")
    with pytest.raises(AssertionError):
        combined([NO_ENDPOINTS, s.ALL])


# ---- random Services, packets and changes


@each_backend
@given(objects=st.lists(st.one_of(services(), slices()), max_size=8), sent=st.lists(packets(), min_size=1, max_size=20))
def test_oracle_and_rules_agree(backend: AnyBackend, objects: list[meta.Object], sent: list[Packet]) -> None:
    tracker = fresh(objects)
    fake, _ = programmed(backend, tracker.dataplane)
    assert judged(live(backend, fake, s.INFO), s.INFO, sent) == {p: decide(tracker.dataplane, p) for p in sent}


def played(
    backend: AnyBackend, done: list[Any], syncs: set[int], sweeps: set[int], restarts: set[int], sent: list[Packet]
) -> tuple[Tracker, AnyFake, AnyPlanner]:
    """The changes, merged at random, swept at once or late, with restarts in between that read the rules back."""
    tracker, fake = Tracker(s.INFO), backend.fake()
    tracker.flush()
    engine = Engine([planner := backend.planner("ip", s.INFO)], fake)
    engine.sync(tracker.dataplane, None)
    for index, change in enumerate([*done, None]):
        if change is not None:
            play(tracker, change)
        if index in restarts:
            tracker.flush()
            engine = Engine([planner := backend.planner("ip", tracker.dataplane.node)], fake)
            engine.sync(tracker.dataplane, None)
        elif index in syncs or change is None:
            engine.sync(tracker.dataplane, tracker.flush())
        else:
            continue
        # Not swept yet: a rule that is still to be removed may decide about a new packet.
        node = tracker.dataplane.node
        agree = judged(live(backend, fake, node), node, sent) == {p: decide(tracker.dataplane, p) for p in sent}
        assert agree or engine.unswept
        if index in sweeps or change is None:
            engine.sweep_rules()
            assert not engine.unswept
        assert fake.holds(planner)
    return tracker, fake, planner


@each_backend
@given(
    done=changes,
    syncs=st.sets(st.integers(0, 12)),
    sweeps=st.sets(st.integers(0, 12)),
    restarts=st.sets(st.integers(0, 12)),
    sent=st.lists(packets(), max_size=4),
)
def test_any_sequence_of_changes_equals_a_fresh_build(
    backend: AnyBackend, done: list[Any], syncs: set[int], sweeps: set[int], restarts: set[int], sent: list[Packet]
) -> None:
    tracker, fake, _ = played(backend, done, syncs, sweeps, restarts, sent)
    expected = fresh(done)
    assert tracker.dataplane == expected.dataplane
    other, _ = programmed(backend, expected.dataplane)
    assert fake.content("ip") == other.content("ip")


@each_backend
@given(done=changes, cut=st.integers(0, 20), stop=st.integers(0, 12))
def test_a_kill_at_any_moment_of_a_sync_is_made_good_by_the_next_start(
    backend: AnyBackend, done: list[Any], cut: int, stop: int
) -> None:
    tracker = Tracker(s.INFO)
    tracker.flush()
    fake, engine = programmed(backend, tracker.dataplane)
    for change in done[:stop]:
        play(tracker, change)
        engine.sync(tracker.dataplane, tracker.flush())
    for change in done[stop:]:
        play(tracker, change)
    (planner,) = engine.planners
    for part in fake.stages(planner, planner.change(tracker.dataplane, tracker.flush()))[:cut]:
        fake.commit(planner, part)
    again = Engine([backend.planner("ip", tracker.dataplane.node)], fake)
    again.sync(tracker.dataplane, None)
    again.sweep_rules()
    other, _ = programmed(backend, tracker.dataplane)
    assert fake.content("ip") == other.content("ip")


def cluster(count: int, size: int = 5) -> Tracker:
    """`count` Services of `size` endpoints, not flushed."""
    tracker = Tracker(s.INFO)
    for number in range(count):
        name, ip = f"s{number}", f"10.96.{number // 200}.{number % 200 + 1}"
        tracker.service(f"default/{name}", service(name, ip, [port(80)]))
        tracker.slice(f"default/{name}-1", endpoints(name, size))
    return tracker


def endpoints(name: str, count: int) -> meta.Object:
    return endpoint_slice(name, [endpoint(f"10.244.2.{i + 1}", "n2") for i in range(count)], [("", "TCP", 9376)])


@each_backend
def test_nothing_to_do_is_nothing_written_and_a_restart_writes_nothing(backend: AnyBackend) -> None:
    tracker = cluster(50)
    tracker.flush()
    fake, engine = programmed(backend, tracker.dataplane)
    tracker.slice("default/s3-1", endpoints("s3", 5))
    assert not (delta := tracker.flush())
    assert engine.sync(tracker.dataplane, delta).operations == 0
    again = Engine([planner := backend.planner("ip", s.INFO)], fake)
    assert again.sync(tracker.dataplane, None).operations == 0
    assert not planner.sweep()


@each_backend
def test_what_others_break_is_mended(backend: AnyBackend) -> None:
    tracker = cluster(50)
    tracker.flush()
    fake, engine = programmed(backend, tracker.dataplane)
    whole = fake.content("ip")
    fake.damage("ip")
    assert fake.content("ip") != whole
    assert engine.sync(tracker.dataplane, None).operations
    assert fake.content("ip") == whole
    assert engine.sync(tracker.dataplane, None).operations == 0


@each_backend
def test_a_client_is_not_remembered_for_an_endpoint_that_comes_back(backend: AnyBackend) -> None:
    tracker = Tracker(s.INFO)
    tracker.service("default/a", service("a", VIPS[0], [port(80)], sessionAffinity="ClientIP"))
    tracker.slice("x", endpoints("a", 2))
    tracker.flush()
    fake, engine = programmed(backend, tracker.dataplane)
    packet = s.packet(s.POD_A, VIPS[0])
    last = next(
        way
        for way in live(backend, fake, s.INFO).traces(packet, s.INFO)
        if (Destination("10.244.2.2", 9376), False) in way.verdict.to
    )
    for noted in last.noted:
        fake.note("ip", noted)
    assert len(judged(live(backend, fake, s.INFO), s.INFO, [packet])[packet].to) == 1
    for count in (1, 2):
        tracker.slice("x", endpoints("a", count))
        engine.sync(tracker.dataplane, tracker.flush())
        engine.sweep_rules()
        assert len(judged(live(backend, fake, s.INFO), s.INFO, [packet])[packet].to) == count


@each_backend
def test_rules_are_counted_by_table(backend: AnyBackend) -> None:
    tracker = cluster(3)
    tracker.flush()
    _, engine = programmed(backend, tracker.dataplane)
    (planner,) = engine.planners
    counts = planner.rule_counts()
    assert counts
    assert all(count > 0 for count in counts.values())
