"""Which flows a change ends. The rule is kube-proxy's: a UDP flow goes only if no serving endpoint answers it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_base.kernel.conntrack.codec import SEEN_REPLY, SYN_SENT, Flow, Tuple
from podwire_base.kube import meta
from podwire_base.testing.counts import examples
from podwire_proxy.changes import Tracker
from podwire_proxy.conntrack import Closed, serving, stale, stale_attempts
from podwire_proxy.dataplane import Balance, Dataplane, Frontend, Key
from podwire_proxy.decide import decide
from podwire_proxy.flows import FlowKeeper
from podwire_proxy.model import PROTOCOLS, Destination, Protocol, is_v6
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, port, service
from podwire_proxy.verdict import NO_ENDPOINTS, PASS, UNALLOCATED, WRONG_PORT

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


# ---- flows from before their address had rules


NO_SERVICE, OUTSIDE_RANGE, BOUND = "10.96.0.99", "192.0.2.50", "10.96.0.10"


def before(ip: str, number: int, protocol: Protocol = "UDP", client: int = 1, *, status: int = 0) -> Flow:
    """A flow that no rule translated; TCP and SCTP without an answer yet."""
    made = flow(Key(ip, protocol, number), Destination(ip, number), client)
    return replace(made, tcp_state=SYN_SENT if protocol == "TCP" else 0, ident=bytes((client,)), status=status)


@pytest.mark.parametrize(
    ("served", "spec"),
    [
        ([], {}),
        ([endpoint(s.POD_C, "n2")], {}),
        ([endpoint(s.POD_C, "n2")], {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}),
        ([endpoint(s.POD_B, s.NODE, **ENDED)], {}),
        ([], {"loadBalancerSourceRanges": ["203.0.113.0/24"]}),
    ],
    ids=["no endpoints", "an endpoint", "endpoints only elsewhere", "none serves", "not in range"],
)
@pytest.mark.parametrize("protocol", ["UDP", "TCP", "SCTP"])
@pytest.mark.parametrize("v6", [False, True], ids=["IPv4", "IPv6"])
def test_a_flow_from_before_its_frontend_meets_the_rules(
    served: list[Any], spec: dict[str, Any], protocol: Protocol, v6: bool
) -> None:
    row = s.Scenario("", (s.everything(protocol=protocol, **spec), s.some_slice(*served, protocol=protocol)), {})
    plane = flushed(row.v6() if v6 else row)
    for one in keys(v6=v6):
        key = one._replace(protocol=protocol)
        assert _lost(plane, [before(key.ip, key.port, protocol)]) == {1}, key
        answered = before(key.ip, key.port, protocol, status=SEEN_REPLY)
        assert _lost(plane, [answered]) == ({1} if protocol == "UDP" else set()), "a connection is left alone"
        translated = replace(flow(key, Destination(s.HOST, 1)), tcp_state=SYN_SENT if protocol == "TCP" else 0)
        assert served or not _lost(plane, [translated]), "no other endpoint exists"


def flushed(row: s.Scenario) -> Dataplane:
    tracker = row.tracker()
    tracker.flush()
    return tracker.dataplane


def _lost(plane: Dataplane, flows: list[Flow]) -> set[int]:
    """The client ports of the flows that a look at everything ends."""
    closed = Closed(plane.frontends, plane.cluster_ips, plane.node.service_cidrs)
    found = [
        *stale(flows, serving(plane.frontends)),
        *stale_attempts(flows, plane.frontends),
        *closed.missed(flows, lambda: {BOUND}),
    ]
    return {one.original.source_port for one in found}


@pytest.mark.parametrize("protocol", ["UDP", "TCP", "SCTP"])
def test_a_flow_from_before_meets_the_refusal_of_a_wrong_port_or_an_unallocated_address(protocol: Protocol) -> None:
    plane = flushed(s.Scenario("", (service("my-service", s.VIP, [port(s.PORT)]),), {}))
    places = [(s.VIP, 81), (NO_SERVICE, 80), (BOUND, 53), (OUTSIDE_RANGE, 80), (s.POD_B, s.TARGET), (s.NODE_IP, 53)]
    flows = [before(ip, number, protocol, n) for n, (ip, number) in enumerate(places)]
    assert _lost(plane, flows) == {0, 1}
    for verdict, one in zip((WRONG_PORT, UNALLOCATED, PASS, PASS, PASS, PASS), places, strict=True):
        assert decide(plane, s.packet(s.POD, *one, protocol, bound=one[0] == BOUND)) == verdict
    translated = [replace(one, reply=one.reply._replace(source=s.HOST)) for one in flows]
    assert _lost(plane, translated) == set(), "another program's business"


def test_a_frontend_that_lets_packets_pass_keeps_their_flows() -> None:
    """An endpoint may have the very address and port of the frontend."""
    key = Key(s.EXTERNAL, "UDP", s.PORT)
    made = Frontend(key, "ExternalIP", "default/x", PASS, None, "always")
    plane = flushed(s.Scenario("", (), {}))
    plane.frontends[key] = made
    assert _lost(plane, [before(*key[::2])]) == set()
    plane.frontends[key] = replace(made, internal=Balance((Destination(*key[::2]),)))
    assert _lost(plane, [before(*key[::2])]) == set()
    plane.frontends[key] = replace(made, internal=NO_ENDPOINTS)
    assert _lost(plane, [before(*key[::2])]) == {1}


@pytest.mark.parametrize(("ip", "looks"), [(s.VIP, False), (OUTSIDE_RANGE, True)])
def test_a_new_address_is_looked_at_only_if_it_was_open_before(ip: str, looks: bool) -> None:
    """A look costs a walk through the whole table; inside the Service ranges nothing can have begun."""
    tracker = Tracker(s.INFO)
    keeper = FlowKeeper(("ip",))
    tracker.service("default/x", service("x", ip, [port(80)]))
    keeper.note(tracker.dataplane, tracker.flush())
    assert bool(keeper.look().closed) == looks
    assert not keeper.pending
    keeper.note(tracker.dataplane, None)
    assert keeper.look().closed, "after a start anything can have begun"
    tracker.service("default/x", None)
    keeper.note(tracker.dataplane, tracker.flush())
    assert not keeper.look().closed


# ---- random Services


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


@settings(max_examples=examples(20, 400))
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
        for at in (Destination(ip, number) for ip in PODS for number in (9376, 9377)):
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


@settings(max_examples=25)
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


@pytest.mark.parametrize("number", [30080, 0], ids=["a NodePort", "a ClusterIP"])
def test_a_hostports_flow_ends_when_a_node_port_takes_its_number(number: int) -> None:
    """The NodePort wins, also where it refuses; the datagrams of an old client went on to the pod. A flow to an
    endpoint of the Service itself stays when the last one goes: nobody else would answer.
    """
    spec: dict[str, Any] = {"type": "NodePort" if number else "ClusterIP"}
    tracker, keeper = Tracker(s.INFO), FlowKeeper(["ip"])
    keeper.note(tracker.dataplane, None)
    keeper.look()

    def change(**more: Any) -> set[str]:
        made = service("new", s.VIP, [port(80, "UDP", node_port=number)], **spec, **more)
        tracker.service("default/new", made)
        keeper.note(tracker.dataplane, tracker.flush())
        look = keeper.look()
        of_pods = [flow(key, Destination("10.244.1.77", 53)) for key in look.frontends]
        return {f.original.destination for f in stale(of_pods, serving(look.frontends), look.fresh)}

    assert change() == (set(s.INFO.node_port_ips) if number else set())
    assert change(internalTrafficPolicy="Local", externalTrafficPolicy="Local") == set(), "a Service that is known"


def test_which_frontends_are_new_is_known_after_a_restart_and_a_removal() -> None:
    tracker, keeper = Tracker(s.INFO), FlowKeeper(["ip"])
    made = service("new", s.VIP, [port(80, "UDP", node_port=30080)], type="NodePort")
    tracker.service("default/new", made)
    tracker.flush()
    keeper.note(tracker.dataplane, None)
    assert keeper.look().fresh == frozenset(), "it may have been there before the start"
    tracker.service("default/new", None)
    keeper.note(tracker.dataplane, tracker.flush())
    tracker.service("default/new", made)
    keeper.note(tracker.dataplane, tracker.flush())
    look = keeper.look()
    assert look.fresh and all(tracker.dataplane.frontends[key].kind == "NodePort" for key in look.fresh)
    assert keeper.look().fresh == frozenset()
