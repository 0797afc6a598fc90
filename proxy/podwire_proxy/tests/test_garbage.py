"""Objects that no API server should send: told by name, passed over, and never more than one object's loss."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from podwire_proxy import backends
from podwire_proxy.changes import DeduplicatedLog, Tracker
from podwire_proxy.config import BACKENDS
from podwire_proxy.convert import service_ports
from podwire_proxy.dataplane import Balance, Key
from podwire_proxy.model import Destination, NodeInfo
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


def _places(obj: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    internal = obj.items() if isinstance(obj, dict) else enumerate(obj) if isinstance(obj, list) else ()
    for name, value in internal:
        yield from _places(value, (*path, name))


def _spoiled(obj: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The object with garbage in each of its places in turn; the informer lets no object pass without a sane name."""
    for path in _places(obj):
        if path and path not in (("metadata",), ("metadata", "name"), ("metadata", "namespace")):
            for value in GARBAGE:
                made = copy.deepcopy(obj)
                at = made
                for name in path[:-1]:
                    at = at[name]
                at[path[-1]] = value
                yield (*path, value), made


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["Service", "EndpointSlice"])
def test_one_spoiled_object_costs_nobody_else_anything(backend: str, kind: str) -> None:
    plan = backends.choose(backend, "auto").plan
    for where, spoiled in _spoiled(SERVICE if kind == "Service" else SLICE):
        tracker = Tracker(NODE)
        tracker.service("default/good", service("good", "10.96.0.1", [port(80)]))
        tracker.slice("default/good-1", endpoint_slice("good", [endpoint("10.244.1.2")], [("", "TCP", 8080)]))
        tracker.service("default/bad", spoiled if kind == "Service" else SERVICE)
        tracker.slice("default/bad-1", spoiled if kind == "EndpointSlice" else SLICE)
        tracker.flush()
        assert tracker.dataplane.frontends[GOOD].internal == Balance((Destination("10.244.1.2", 8080),)), where
        assert list(plan(tracker.dataplane)), where


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


@pytest.mark.parametrize(
    ("field", "changes", "used"),
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
    field: str, changes: dict[str, Any], used: tuple[int, int]
) -> None:
    obj = service("bad", "10.96.0.9", [port(80)], type="NodePort")
    obj["spec"].update(changes)
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
