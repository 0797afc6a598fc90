"""Random clusters: every answer equals the obvious resolver's, and every history of changes equals a fresh build."""

from __future__ import annotations

import copy
from typing import Any

import dns.message
import hypothesis.strategies as st
from hypothesis import given

from podwire_dns import feed, names, native
from podwire_dns.answertable import AnswerTable
from podwire_dns.build import Builder
from podwire_dns.testing import builders, judge
from podwire_dns.testing.cases import HTTP, ZONE, endpoint, endpoint_slice, namespace, service
from podwire_dns.testing.obvious import Obvious

Object = dict[str, Any]
NETWORKS = ("10.96.0.0/16", "fd00:96::/112", "10.244.0.0/16")
TYPES = {1: "A", 2: "NS", 5: "CNAME", 12: "PTR", 16: "TXT", 28: "AAAA", 33: "SRV"}

namespaces = st.sampled_from(["a", "b"])
service_names = st.sampled_from(["s1", "s2", "s3"])
# Few addresses, so that Services share endpoints and PTRs are merged; some lie outside our reverse zones.
pod_ips = st.sampled_from(["10.244.0.1", "10.244.0.2", "10.244.1.1", "192.0.2.42", "fd00:10::", "fd00:10::1", "::1"])
cluster_ips = st.sampled_from(["10.96.0.1", "10.96.0.2", "10.96.1.1", "fd00:96::1"])
ports = st.lists(
    st.sampled_from([HTTP, {"name": "dns", "protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 9}]),
    max_size=3,
    unique_by=str,
)
external = st.sampled_from(["www.example.com", f"s1.a.svc.{ZONE}", f"s2.b.svc.{ZONE}", "missing.example.com."])


@st.composite
def services(draw: st.DrawFn) -> Object:
    name, where, kind = draw(service_names), draw(namespaces), draw(st.integers(0, 3))
    if kind == 0:
        return service(name, where, type="ExternalName", externalName=draw(external))
    if kind == 1:
        return service(name, where, ip=draw(st.lists(cluster_ips, max_size=2, unique=True)), ports=draw(ports))
    return service(name, where, ip="None", ports=draw(ports), publishNotReadyAddresses=draw(st.booleans()))


@st.composite
def slices(draw: st.DrawFn) -> Object:
    ready, hostname = st.sampled_from([True, False, None]), st.sampled_from(["", "web-0"])
    addresses = draw(st.lists(pod_ips, max_size=4))
    found = [endpoint(address, ready=draw(ready), hostname=draw(hostname)) for address in addresses]
    return endpoint_slice(
        draw(service_names), found, namespace=draw(namespaces), suffix=draw(st.sampled_from("xy")), ports=draw(ports)
    )


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, Object, bool]:
    """(kind, object, deleted)."""
    kind = draw(st.sampled_from(["service", "slice", "slice", "namespace"]))
    made = {"service": services(), "slice": slices(), "namespace": st.builds(namespace, namespaces)}[kind]
    return kind, draw(made), draw(st.integers(0, 3)) == 0


def _final(history: list[tuple[str, Object, bool]]) -> dict[str, dict[str, Object]]:
    """The objects that exist after the history."""
    left: dict[str, dict[str, Object]] = {"service": {}, "slice": {}, "namespace": {}}
    for kind, obj, deleted in history:
        key = f"{obj['metadata'].get('namespace', '')}/{obj['metadata']['name']}"
        if deleted:
            left[kind].pop(key, None)
        else:
            left[kind][key] = obj
    return left


def _apply(target: Builder, change: tuple[str, Object, bool]) -> None:
    kind, obj, deleted = change
    {"service": target.service, "slice": target.slice, "namespace": target.namespace}[kind](obj, deleted=deleted)


@given(st.lists(changes(), max_size=25))
def test_every_answer_is_what_the_obvious_resolver_says(history: list[tuple[str, Object, bool]]) -> None:
    left = _final(history)
    zone = builders.fed(builders.builder(left["service"].values(), left["slice"].values(), left["namespace"].values()))
    answerer = builders.answerer(zone)
    obvious = Obvious(
        ZONE, left["service"].values(), left["slice"].values(), left["namespace"].values(), NETWORKS, ["10.96.0.10"]
    )
    assert isinstance(zone.answers, dict)
    assert isinstance(zone.names, set)
    assert isinstance(zone.places, dict)
    asked = {(names.from_wire(key[:-4]), TYPES[key[-3]]) for key in zone.answers}
    asked |= {(names.from_wire(name), rtype) for name in zone.names for rtype in ("A", "SRV")}
    asked |= {(f"no.{names.from_wire(name)}", "A") for name in zone.names}
    asked |= {(f"10-244-0-1.{names.from_wire(key[:-4])}", "A") for key in zone.answers if key[-3] in (1, 28)}
    asked |= {
        (names.from_wire(names.reverse_wire(address)), rtype) for address in zone.places for rtype in ("PTR", "A")
    }
    asked |= {(name, rtype) for name, rtype, _ in obvious.records}
    for name, rtype in asked:
        expected = obvious.resolve(name, rtype)
        data = answerer.handle(dns.message.make_query(name, rtype, flags=0).to_wire(), udp=False)
        assert isinstance(data, bytes)
        rcode, (answer, authority, _) = judge.read(data)
        if expected is None:
            assert rcode == "REFUSED"
            continue
        told = {" ".join((n, t.upper(), d)) for n, _ttl, t, d in (record.split(" ", 3) for record in answer)}
        if rtype in ("A", "AAAA"):  # an alias is followed: its own record comes with those of the target
            told = {r for r in told if r.startswith(f"{name} ")}
        assert (name, rtype, rcode, told) == (name, rtype, *expected)
        assert bool(authority) != bool(answer)


@given(st.lists(changes(), max_size=20), st.lists(st.tuples(changes(), st.booleans()), max_size=30))
def test_any_history_of_changes_equals_a_fresh_build(
    listed: list[tuple[str, Object, bool]], history: list[tuple[tuple[str, Object, bool], bool]]
) -> None:
    incremental = builders.builder()
    for change in listed:
        _apply(incremental, copy.deepcopy(change))
    incremental.fill()
    module = native.load()
    servers = [
        builders.fed(incremental),
        *([builders.fed(incremental, memory=AnswerTable(module))] if module is not None else []),
    ]
    ever = set(incremental.answers) | {name + b"\0\1\0\1" for name in incremental.names}
    for change, push in history:
        _apply(incremental, copy.deepcopy(change))
        if push:
            for piece in feed.pieces(incremental.flush(2), most=3):
                for server in servers:
                    server.apply(piece)
            ever |= set(incremental.answers) | {name + b"\0\1\0\1" for name in incremental.names}
    last = incremental.flush(3)
    for server in servers:
        server.apply(last)
    left = _final([*listed, *(change for change, _ in history)])
    fresh = builders.fed(builders.builder(left["service"].values(), left["slice"].values(), left["namespace"].values()))
    assert servers[0].answers == fresh.answers
    assert servers[0].names == fresh.names
    assert servers[0].places == fresh.places == dict(incremental.placed())
    assert incremental.answers == fresh.answers
    for server in servers:
        assert len(server.answers) == len(fresh.answers)
        for key in ever | set(incremental.answers):
            assert server.answers.get(key) == fresh.answers.get(key)
            address = names.unreversed(key[:-4])
            assert address is None or server.pointers(key[:-4]) == fresh.pointers(key[:-4])
            assert (key in server.answers, key[:-4] in server.names) == (key in fresh.answers, key[:-4] in fresh.names)


def test_a_change_costs_what_it_touches() -> None:
    many = [service(f"web{i}", "a", ip=f"10.96.{i // 250}.{i % 250 + 1}", ports=[HTTP]) for i in range(2000)]
    source = builders.builder(many, namespaces=[namespace("a")])
    whole = source.flush(1)
    assert whole.size > 3 * 2000
    source.service(service("web7", "a", ip="10.96.99.99", ports=[HTTP]))
    moved = source.flush(2)
    # A, PTR old and new, SRV at the port's name and at the Service's own; the two reverse names and their common
    # parent.
    assert len(moved.answers) == 4
    assert len(moved.gone) == 1
    assert moved.size <= 10
    source.service(service("web8", "a", ip="10.96.0.9", ports=[HTTP]))
    assert source.flush(3).size == 0, "an object written again without a change for the DNS"
    source.service(many[9], deleted=True)
    assert 0 < source.flush(4).size <= 12


def test_one_endpoint_of_a_large_headless_service() -> None:
    pieces = [
        endpoint_slice("big", [endpoint(f"10.244.{s}.{i}") for i in range(1, 101)], suffix=str(s), namespace="a")
        for s in range(10)
    ]
    source = builders.builder([service("big", "a", ip="None")], pieces)
    source.flush(1)
    source.slice(endpoint_slice("big", [endpoint(f"10.244.3.{i}") for i in range(2, 101)], suffix="3", namespace="a"))
    delta = source.flush(2)
    # The Service's own A and two SRV sets; the endpoint's A and PTR are gone.
    assert (len(delta.answers), len(delta.gone), len(delta.names), len(delta.lost)) == (3, 2, 0, 0)


def test_bad_objects_are_named_once_and_the_rest_is_served() -> None:
    source = builders.builder(
        [
            service("good", ip="10.96.0.1", ports=[HTTP]),
            service("bad-ip", ip="10.96.0.300"),
            service("bad_ext!", type="ExternalName", externalName="x"),
            service("ext-ip", type="ExternalName", externalName="192.0.2.1"),
            service("ext-empty", type="ExternalName", externalName=""),
            service("bad-port", ip="10.96.0.2", ports=[{"name": "http", "port": 70000}]),
            service("h", ip="None"),
        ],
        [endpoint_slice("h", [endpoint("10.244.0.1"), endpoint("010.244.0.2"), endpoint("10.244.0.3", hostname="-x")])],
    )
    source.flush(1)
    told = {problem.key: problem.error for problem in source.problems}
    assert set(told) == {f"testns/{name}" for name in ("bad-ip", "bad_ext!", "ext-ip", "ext-empty", "bad-port", "h-1")}
    assert "spec.clusterIPs" in told["testns/bad-ip"]
    assert "spec.externalName" in told["testns/ext-ip"]
    assert "endpoints[1].addresses" in told["testns/h-1"]
    assert "endpoints[2].hostname" in told["testns/h-1"]
    answers = source.answers
    assert any(key.startswith(b"\x04good") for key in answers)
    assert any(key.startswith(b"\x0a10-244-0-1") for key in answers)
    source.problems.clear()
    source.service(service("bad-ip", ip="10.96.0.300"))
    source.flush(2)
    assert not source.problems, "the same problem reported twice"
