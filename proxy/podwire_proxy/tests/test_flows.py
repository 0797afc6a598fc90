"""Which flows a change ends. The rule is kube-proxy's: a UDP flow goes only if no serving endpoint answers it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_base.kernel.conntrack.codec import Flow, Tuple
from podwire_base.kube import meta
from podwire_proxy.changes import Tracker
from podwire_proxy.conntrack import serving, stale
from podwire_proxy.dataplane import Key
from podwire_proxy.model import PROTOCOLS, Destination, is_v6
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint

from .strategies import PODS, changes, play, services, slices

ENDING: dict[str, Any] = {"ready": False, "serving": True, "terminating": True}
ENDED: dict[str, Any] = {"ready": False, "serving": False, "terminating": True}
ZONE = {"hints": {"forZones": [{"name": "zone-a"}]}}
AWAY = {"hints": {"forZones": [{"name": "zone-b"}]}}


def flow(key: Key, answers: Destination, client: int = 1) -> Flow:
    """A flow to the frontend `key` whose answers come from `answers`."""
    return Flow(
        "ip6" if is_v6(key.ip) else "ip",
        PROTOCOLS[key.protocol],
        Tuple(s.OUTSIDE, client, key.ip, key.port),
        Tuple(answers.ip, answers.port, s.OUTSIDE, client),
    )


def keys(*, v6: bool = False) -> list[Key]:
    return [Key(s._v6(ip) if v6 else ip, "UDP", port) for ip, port in (*s.FRONTENDS, (s.VIP, s.PORT))]


@pytest.mark.parametrize("v6", [False, True], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize(
    ("b", "c", "spec", "stays"),
    [
        (ENDING, {}, {}, True),
        (ENDING, ENDING, {}, True),
        (ENDED, {}, {}, False),
        ({"ready": False, "serving": False}, {}, {}, False),
        ({"ready": False, "serving": True}, {}, {}, True),
        ({"ready": True, "serving": False}, {}, {}, True),
        (None, {}, {}, False),
        (None, ENDING, {}, False),
        (None, ENDED, {}, True),
        (AWAY, ZONE, {}, True),
        (None, {}, {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}, False),
        (ENDING, {}, {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}, True),
    ],
    ids=[
        "B terminates and serves",
        "all terminate and serve",
        "B terminates and serves no more",
        "B neither serves nor is ready",
        "B serves, is not ready",
        "B is ready without serving: publishNotReadyAddresses",
        "B is gone",
        "B is gone, C terminates and serves",
        "B is gone, nobody serves",
        "the hint prefers C",
        "B is gone, a Local policy",
        "B terminates, a Local policy",
    ],
)
def test_a_udp_flow_stays_with_its_endpoint_until_that_serves_no_more(
    b: dict[str, Any] | None, c: dict[str, Any], spec: dict[str, Any], stays: bool, v6: bool
) -> None:
    found = [
        endpoint(ip, node, **flags)
        for ip, node, flags in ((s.POD_B, s.NODE, b), (s.POD_C, "n2", c))
        if flags is not None
    ]
    row = s.Scenario("", (s.everything(protocol="UDP", **spec), s.some_slice(*found, protocol="UDP")), {})
    row = row.v6() if v6 else row
    tracker = row.tracker()
    delta = tracker.flush()
    at = Destination(s._v6(s.POD_B) if v6 else s.POD_B, s.TARGET)
    for key in keys(v6=v6):
        assert key in delta.frontends
        gone = list(stale([flow(key, at)], serving({key: tracker.dataplane.frontends[key]})))
        assert (not gone) == stays, key


def test_the_end_of_serving_is_a_change_although_new_connections_go_where_they_went() -> None:
    tracker = s.Scenario(
        "",
        (
            s.everything(protocol="UDP"),
            s.some_slice(endpoint(s.POD_B, s.NODE, **ENDING), endpoint(s.POD_C, "n2"), protocol="UDP"),
        ),
        {},
    ).tracker()
    tracker.flush()
    before = {key: tracker.dataplane.frontends[key].destinations for key in keys()}
    tracker.slice(
        "default/my-service-1",
        s.some_slice(endpoint(s.POD_B, s.NODE, **ENDED), endpoint(s.POD_C, "n2"), protocol="UDP"),
    )
    assert tracker.flush().frontends == set(keys())
    assert {key: tracker.dataplane.frontends[key].destinations for key in keys()} == before


def reference(objects: list[meta.Object], key: Key, owner: str) -> set[Destination]:
    """The serving endpoints of a frontend, from the objects alone: an address that is there twice counts once, and the
    one that does not terminate decides.
    """
    found = next(o for o in objects if o["kind"] == "Service" and meta.key(o) == owner)
    wanted = [
        p["name"]
        for p in found["spec"]["ports"]
        if p["protocol"] == "UDP" and key.port in (p["port"], p.get("nodePort"))
    ]
    every: dict[Destination, list[dict[str, Any]]] = {}
    for obj in objects:
        if (
            obj["kind"] != "EndpointSlice"
            or f"default/{obj['metadata']['labels']['kubernetes.io/service-name']}" != owner
        ):
            continue
        for taken in obj["ports"]:
            if (taken["name"], taken["protocol"]) in [(name, "UDP") for name in wanted[:1]]:
                for e in obj["endpoints"]:
                    every.setdefault(Destination(e["addresses"][0], taken["port"]), []).append(e["conditions"])
    return {at for at, conditions in every.items() if any(c.get("serving", True) for c in conditions)}


@settings(max_examples=100)
@given(objects=st.lists(st.one_of(services(), slices()), max_size=8))
def test_flows_of_random_services_stay_with_serving_endpoints(objects: list[meta.Object]) -> None:
    last = list({(o["kind"], meta.key(o)): o for o in objects}.values())
    tracker = Tracker(s.INFO)
    for obj in last:
        play(tracker, obj)
    tracker.flush()
    for key, frontend in tracker.dataplane.frontends.items():
        if key.protocol != "UDP":
            continue
        served = reference(last, key, frontend.service)
        for at in (Destination(ip, port) for ip in PODS for port in (9376, 9377)):
            gone = list(stale([flow(key, at)], serving({key: frontend})))
            assert not (gone and at in served and at not in _doubled(last)), (key, at)
            assert not (gone and at in frontend.destinations)


def _doubled(objects: list[meta.Object]) -> set[Destination]:
    """The endpoints that several entries name: one condition of them counts, and test_objects.py says which."""
    seen: list[Destination] = [
        Destination(e["addresses"][0], taken["port"])
        for obj in objects
        if obj["kind"] == "EndpointSlice"
        for taken in obj["ports"]
        for e in obj["endpoints"]
    ]
    return {at for at in seen if seen.count(at) > 1}


@settings(max_examples=60)
@given(done=changes)
def test_whatever_changes_which_flows_go_is_in_the_delta(done: list[Any]) -> None:
    """Else nobody looks at the flows of that frontend."""
    tracker = Tracker(s.INFO)
    before = serving(tracker.dataplane.frontends)
    for change in done:
        play(tracker, change)
        delta = tracker.flush()
        now = serving(tracker.dataplane.frontends)
        assert {key for key in before.keys() & now.keys() if before[key] != now[key]} <= delta.frontends
        before = now
