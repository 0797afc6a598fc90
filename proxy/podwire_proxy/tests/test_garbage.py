"""Objects that no API server should send: they are logged by name and skipped, and never affect another object."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.client.informer import Informer
from podwire_base.kube.client.reflector import Event
from podwire_base.role import bugs
from podwire_base.testing.garbage import spoiled
from podwire_proxy import backends
from podwire_proxy.backend import AnyBackend, dry_run
from podwire_proxy.changes import DeduplicatedLog, Tracker
from podwire_proxy.convert import service_ports
from podwire_proxy.dataplane import Balance, Dataplane, Key
from podwire_proxy.model import Destination, NodeInfo
from podwire_proxy.settings import SERVICES
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

NODE = NodeInfo("n1", ("172.30.0.11",), "zone-a", ("10.244.0.0/16",), ("10.96.0.0/16",))
GARBAGE: tuple[Any, ...] = (
    None,
    0,
    -1,
    70000,
    10**12,
    1.5,
    True,
    "abc",
    "",
    "10.0.0.1",
    "1.2.3.4/33",
    [],
    [None],
    ["x"],
    [{}],
    {},
    {"a": 1},
)
SERVICE = service(
    "bad",
    "10.96.0.9",
    [port(80, node_port=30080)],
    type="LoadBalancer",
    ingress=[{"ip": "198.51.100.8", "ipMode": "VIP"}],
    ipFamilies=["IPv4"],
    externalIPs=["198.51.100.7"],
    externalTrafficPolicy="Local",
    internalTrafficPolicy="Cluster",
    healthCheckNodePort=30500,
    loadBalancerSourceRanges=["10.0.0.0/8"],
    sessionAffinity="ClientIP",
    sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
)
SERVICE["metadata"]["annotations"] = {"podwire.io/reset-on-endpoint-removal": "true"}
SLICE = endpoint_slice(
    "bad",
    [endpoint("10.244.1.9", "n1", ready=True, hints={"forZones": [{"name": "zone-a"}], "forNodes": [{"name": "n1"}]})],
    [("", "TCP", 8080)],
)
GOOD = Key("10.96.0.1", "TCP", 80)


@functools.cache
def different(kind: str) -> list[tuple[Any, Dataplane]]:
    """What comes of a spoiled object beside a good one: each dataplane once, with the first garbage that makes it."""
    found: list[tuple[Any, Dataplane]] = []
    for where, bad in spoiled(SERVICE if kind == "Service" else SLICE, GARBAGE):
        tracker = Tracker(NODE)
        tracker.service("default/good", service("good", "10.96.0.1", [port(80)]))
        tracker.slice("default/good-1", endpoint_slice("good", [endpoint("10.244.1.2")], [("", "TCP", 8080)]))
        tracker.service("default/bad", bad if kind == "Service" else SERVICE)
        tracker.slice("default/bad-1", bad if kind == "EndpointSlice" else SLICE)
        tracker.flush()
        assert tracker.dataplane.frontends[GOOD].internal == Balance((Destination("10.244.1.2", 8080),)), where
        if all(tracker.dataplane != one for _, one in found):
            found.append((where, tracker.dataplane))
    return found


@pytest.mark.parametrize("backend", backends.ALL, ids=lambda backend: backend.name)
@pytest.mark.parametrize("kind", ["Service", "EndpointSlice"])
def test_one_spoiled_object_costs_nobody_else_anything(backend: AnyBackend, kind: str) -> None:
    for where, dataplane in different(kind):
        assert list(dry_run(backend, dataplane)), where


def test_a_misshapen_object_is_told_and_what_it_said_before_stays() -> None:
    tracker = Tracker(NODE)
    assert tracker.service("default/bad", SERVICE) == tracker.slice("default/bad-1", SLICE) == []
    tracker.flush()
    before = dict(tracker.dataplane.frontends)
    for (problem,) in (
        tracker.service("default/bad", {**SERVICE, "spec": {**SERVICE["spec"], "ports": "all"}}),
        tracker.slice("default/bad-1", {**SLICE, "endpoints": [None]}),
    ):
        assert "passed over, what it said before stays" in problem
    assert not tracker.flush()
    assert tracker.dataplane.frontends == before


def test_the_field_of_a_misshapen_object_is_named() -> None:
    tracker = Tracker(NODE)
    (problem,) = tracker.service("default/bad", {**SERVICE, "spec": {**SERVICE["spec"], "ports": "all"}})
    assert "(spec.ports: should be a list, is 'all')" in problem
    (problem,) = tracker.slice("default/bad-1", {**SLICE, "endpoints": [None]})
    assert "(endpoints[0]: should be a map, is null)" in problem


def test_a_bug_of_the_converter_is_not_called_the_users_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is logged as our bug, once with its traceback; the other objects are served, and the previous state stays."""
    tracker = Tracker(NODE)
    tracker.service("default/bad", SERVICE)
    tracker.flush()
    before = dict(tracker.dataplane.frontends)

    def broken(obj: Any) -> Any:
        if obj["metadata"]["name"] == "bad":
            raise AttributeError("planted")
        return service_ports(obj)

    monkeypatch.setattr("podwire_proxy.changes.service_ports", broken)
    bugs.forget()
    informer = Informer(ApiClient(ClientConfig("http://127.0.0.1:1")), SERVICES, on_event=lambda e: print(told(e)))

    def told(event: Event) -> list[str]:
        return tracker.service(event.key, event.object)

    for name in ("bad", "bad", "good"):
        informer._emit(Event("MODIFIED", f"default/{name}", service(name, "10.96.0.1", [port(80)])))
    tracker.flush()
    captured = capsys.readouterr()
    assert captured.out == "[]\n", "one object was read, and without a problem"
    assert captured.err.count("bug of podwire: event handler failed") == 2
    assert captured.err.count("Traceback") == 1 and "planted" in captured.err
    assert tracker.dataplane.frontends.keys() == {*before, GOOD}


@pytest.mark.parametrize(
    ("field", "given", "used"),
    [
        ("spec.ports[0].nodePort", {"ports": [port(80, node_port=-1)]}, (0, 0)),
        ("spec.ports[0].nodePort", {"ports": [{**port(80), "nodePort": "30080"}]}, (0, 0)),
        (
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": -5}}},
            (0, 10800),
        ),
        (
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}},
            (0, 10800),
        ),
    ],
)
def test_numbers_out_of_range_are_told_and_the_rest_is_served(
    field: str, given: dict[str, Any], used: tuple[int, int]
) -> None:
    obj = service("bad", "10.96.0.9", [port(80)], type="NodePort")
    obj["spec"].update(given)
    (made,), (problem,) = service_ports(obj)
    assert problem.startswith(f"{field}: ")
    assert (made.node_port, made.affinity_seconds) == used


def test_what_is_told_once_is_not_told_again_until_it_was_right() -> None:
    told = DeduplicatedLog()
    assert told.news("Service", "n/a", ["x", "y"]) == ["x", "y"]
    assert told.news("Service", "n/a", ["y", "z"]) == ["z"]
    assert told.news("EndpointSlice", "n/a", ["y"]) == ["y"]
    assert told.news("Service", "n/a", []) == []
    assert told.news("Service", "n/a", ["y"]) == ["y"]
