"""Names of pods in the mode "verified": they are answered while such a pod exists, and deltas equal a fresh build."""

from __future__ import annotations

import dataclasses
from typing import Any

import dns.message
import hypothesis.strategies as st
import pytest
from hypothesis import given

from podwire_dns.answer import Answerer
from podwire_dns.build import Builder
from podwire_dns.testing import builders, cases, judge
from podwire_dns.testing.cases import ZONE

Object = dict[str, Any]


def pod(name: str, *addresses: str, namespace: str = "testns", phase: str = "Running") -> Object:
    return {
        "metadata": {"name": name, "namespace": namespace},
        "status": {"phase": phase, "podIPs": [{"ip": address} for address in addresses]},
    }


def verified(*pods: Object) -> Builder:
    made = builders.builder(namespaces=cases.NAMESPACES)
    for obj in pods:
        made.pod(obj)
    return made


def served(source: Builder) -> Answerer:
    return builders.answerer(dataclasses.replace(builders.fed(source), pods=False))


@pytest.mark.parametrize(
    ("name", "rtype", "rcode", "answers"),
    [
        (f"10-244-0-5.testns.pod.{ZONE}", "A", "NOERROR", {f"10-244-0-5.testns.pod.{ZONE} 5 a 10.244.0.5"}),
        (f"fd00--5.testns.pod.{ZONE}", "AAAA", "NOERROR", {f"fd00--5.testns.pod.{ZONE} 5 aaaa fd00::5"}),
        (f"10-244-0-5.testns.pod.{ZONE}", "AAAA", "NOERROR", set()),
        (f"10-244-0-6.testns.pod.{ZONE}", "A", "NXDOMAIN", set()),
        (f"10-244-0-7.testns.pod.{ZONE}", "A", "NXDOMAIN", set()),
        (f"10-244-0-5.empty.pod.{ZONE}", "A", "NXDOMAIN", set()),
        (f"testns.pod.{ZONE}", "A", "NOERROR", set()),
    ],
)
def test_only_pods_that_run_have_names(name: str, rtype: str, rcode: str, answers: set[str]) -> None:
    answerer = served(
        verified(pod("a", "10.244.0.5", "fd00::5"), pod("done", "10.244.0.6", phase="Succeeded"), pod("new"))
    )
    query = dns.message.make_query(name, rtype)
    data = answerer.handle(query.to_wire(), udp=True)
    assert isinstance(data, bytes)
    got, (records, _, _) = judge.read(data)
    assert (got, records) == (rcode, answers)


def test_a_bad_pod_is_named() -> None:
    source = verified(pod("bad", "10.244.0.300"))
    assert [(p.kind, p.key) for p in source.problems] == [("Pod", "testns/bad")]
    assert "status.podIPs" in source.problems[0].error


changes = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1"]), max_size=2),
        st.booleans(),
        st.booleans(),
    ),
    max_size=20,
)


@given(changes)
def test_any_history_of_pods_equals_a_fresh_build(history: list[tuple[str, list[str], bool, bool]]) -> None:
    source, left = verified(), {}
    server = builders.fed(source)
    for name, addresses, deleted, push in history:
        obj = pod(name, *addresses)
        source.pod(obj, deleted=deleted)
        left[name] = [] if deleted else addresses
        if push:
            server.apply(source.flush(2))
    server.apply(source.flush(3))
    fresh = builders.fed(verified(*(pod(name, *addresses) for name, addresses in left.items() if addresses)))
    assert server.answers == fresh.answers
    assert server.names == fresh.names
