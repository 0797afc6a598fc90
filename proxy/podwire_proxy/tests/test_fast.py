"""Which pods the bypass carries: what makes one slow, and the order of changes. Pure."""

from __future__ import annotations

import pytest

from podwire_base.kernel.conntrack.codec import TCP, Flow, Tuple
from podwire_proxy.ebpf import fast
from podwire_proxy.ebpf.fast import QUIET, Entry, Judged, Seat

A, B, VIP, NODE = "10.244.0.2", "10.244.0.3", "10.96.0.20", "192.0.2.1"
MAC = b"\2\0\0\0\0\1"
SEAT = Seat((A, "fd00::2"), 7, MAC)
NOW = 10 * QUIET
BOTH = frozenset({False, True})


def flow(source: str, destination: str, answers: str, to: str) -> Flow:
    return Flow("ip", TCP, Tuple(source, 1000, destination, 80), Tuple(answers, 80, to, 1000))


@pytest.mark.parametrize(
    ("seat", "judged", "translated", "why"),
    [
        (SEAT, Judged(), frozenset(), ""),
        (SEAT._replace(limited=True), Judged(), frozenset(), "bandwidth"),
        (SEAT, Judged(BOTH), frozenset(), "policy"),  # nobody has judged it
        (SEAT, Judged(BOTH, frozenset(SEAT.ips)), frozenset(), ""),
        (SEAT, Judged(BOTH, frozenset(SEAT.ips), frozenset({"fd00::2"})), frozenset(), "policy"),
        (SEAT, Judged(frozenset({True}), frozenset({"fd00::2"})), frozenset(), ""),  # IPv4 has no policies
        (SEAT, Judged(), frozenset({A}), "translated-flows"),
        (SEAT, Judged(), frozenset({B}), ""),
    ],
)
def test_why_a_pod_is_slow(seat: Seat, judged: Judged, translated: frozenset[str], why: str) -> None:
    assert fast.why_slow(seat, judged, translated) == why


def test_only_flows_whose_answers_need_the_rules_make_their_client_slow() -> None:
    flows = [
        flow(A, VIP, B, A),  # a Service: the answer comes from B and must show the VIP
        flow(B, NODE, A, NODE),  # masqueraded: the answers go to the node
        flow("10.244.0.9", B, B, "10.244.0.9"),
        flow("10.244.0.8", "198.51.100.1", "198.51.100.1", NODE),
    ]
    assert fast.translated(flows) == {A}


def test_flows_between_fast_pods_are_forgotten_unless_they_are_translated() -> None:
    plain, other = flow(A, B, B, A), flow(A, "10.244.0.9", "10.244.0.9", A)
    assert fast.between([plain, other, flow(A, VIP, B, A)], frozenset({A, B})) == [plain]


def test_a_new_pod_is_asked_for_and_becomes_fast_at_once() -> None:
    assert fast.candidates([SEAT], {}, Judged(), NOW) == set(SEAT.ips)
    made = fast.plan([SEAT], {}, Judged(), frozenset(), NOW)
    assert made.fast == {ip: Entry(7, True, MAC) for ip in SEAT.ips} and not made.slow
    assert not fast.plan([SEAT], made.fast, Judged(), frozenset(), NOW), "nothing differs"
    assert fast.candidates([SEAT], made.fast, Judged(), NOW) == set()


def test_a_pod_that_just_sent_to_a_service_keeps_its_mark() -> None:
    seat = SEAT._replace(ips=(A,))
    young, old = Entry(7, True, MAC, NOW - 1), Entry(7, True, MAC, NOW - QUIET - 1)
    assert fast.candidates([seat], {A: young}, Judged(), NOW) == set()
    assert not fast.plan([seat], {A: young}, Judged(), frozenset({A}), NOW).fast
    assert fast.candidates([seat], {A: old}, Judged(), NOW) == {A}
    assert fast.plan([seat], {A: old}, Judged(), frozenset({A}), NOW).slow == {A: old._replace(fast=False)}
    assert fast.plan([seat], {A: old}, Judged(), frozenset(), NOW).fast == {A: Entry(7, True, MAC)}


def test_an_address_of_another_pod_starts_anew_and_one_without_a_pod_goes() -> None:
    have = {A: Entry(3, True, b"\2\0\0\0\0\3", NOW - 1), B: Entry(4, True, MAC)}
    made = fast.plan([SEAT._replace(ips=(A,))], have, Judged(), frozenset(), NOW)
    assert made.fast == {A: Entry(7, True, MAC)} and made.drop == [B]


def test_an_element_is_read_as_it_is_written() -> None:
    for entry in (Entry(7, True, MAC, 5), Entry(1 << 20, False, MAC)):
        assert fast.entry_of(fast.element(A, entry)[1]) == entry
    assert len(fast.element(A, Entry(7, True, MAC))[1]) == 24
    assert fast.door(8088, TCP) == b"\x1f\x98\x06\0"
