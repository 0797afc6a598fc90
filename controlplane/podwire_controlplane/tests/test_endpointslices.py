"""EndpointSlices, mirrored slices and Endpoints, as pure functions of a snapshot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube.meta import Object, labels, name
from podwire_base.testing.builders import NOW, meta, node, pod, running, service, stored
from podwire_controlplane.controllers import endpointslices as es
from podwire_controlplane.controllers.base import Controller, Write

from ..testing.builders import snapshot

WEB: dict[str, Any] = {"selector": {"app": "web"}}


def web(**spec: Any) -> Object:
    return stored(
        service(
            **{
                **WEB,
                "clusterIP": "10.96.0.1",
                "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "port": 80, "targetPort": 9376}],
                **spec,
            }
        )
    )


def apply(slices: dict[str, Object], changes: Iterable[Write]) -> None:
    """Apply changes as the API server would."""
    for change in changes:
        assert change.kind == "EndpointSlice"
        if change.verb == "delete":
            del slices[change.name]
        else:
            assert (change.verb == "create") == (change.name not in slices)
            slices[change.name] = stored(change.obj)


def reconcile(*objects: Object, slices: dict[str, Object] | None = None) -> list[Write]:
    return es.reconcile_selector("default/web", snapshot(*objects, *(slices or {}).values()), NOW)


def only_slice(*objects: Object) -> Object:
    (change,) = reconcile(*objects)
    assert change.verb == "create"
    return change.obj


def addresses(found: Object) -> list[str]:
    return [a for e in found["endpoints"] for a in e["addresses"]]


def test_one_slice_of_the_selected_pods() -> None:
    found = only_slice(
        web(),
        running("a", "10.244.0.2"),
        running("b", "10.244.1.2", "n2"),
        running("c", "10.244.0.9", labels={"app": "other"}),
        node("n2", labels={es.ZONE: "z2"}),
    )
    assert found["addressType"] == "IPv4" and found["ports"] == [{"name": "http", "protocol": "TCP", "port": 9376}]
    assert labels(found) == {es.SERVICE_NAME: "web", es.MANAGED_BY: es.SELECTOR}
    assert found["metadata"]["ownerReferences"][0]["uid"] == "uid-web"
    assert found["metadata"]["annotations"] == {es.TRIGGER_TIME: "2027-01-15T07:30:00Z"}
    assert addresses(found) == ["10.244.0.2", "10.244.1.2"]
    assert found["endpoints"][1] == {
        "addresses": ["10.244.1.2"],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "nodeName": "n2",
        "zone": "z2",
        "targetRef": {"kind": "Pod", "namespace": "default", "name": "b", "uid": "uid-b"},
    }


@pytest.mark.parametrize(
    ("ready", "deleted", "publish", "expected"),
    [
        (True, False, False, (True, True, False)),
        (False, False, False, (False, False, False)),
        (True, True, False, (False, True, True)),
        (False, True, False, (False, False, True)),
        (False, False, True, (True, False, False)),
        (True, True, True, (True, True, True)),
        (False, True, True, (True, False, True)),
    ],
)
def test_conditions(ready: bool, deleted: bool, publish: bool, expected: tuple[bool, bool, bool]) -> None:
    found = only_slice(web(publishNotReadyAddresses=publish), running("a", "10.0.0.2", ready=ready, deleted=deleted))
    conditions = found["endpoints"][0]["conditions"]
    assert (conditions["ready"], conditions["serving"], conditions["terminating"]) == expected


@pytest.mark.parametrize(
    "left_out",
    [
        running("a", "10.0.0.2", labels={"app": "x"}),
        stored(pod("a", nodeName="n1"), status={"phase": "Pending"}),
        stored(running("a", "10.0.0.2"), status={"phase": "Succeeded"}),
        stored(running("a", "10.0.0.2"), status={"phase": "Failed"}),
        stored(running("a", "10.0.0.2"), namespace="elsewhere"),
        running("a", "fd00::2"),
    ],
    ids=lambda p: str(p["status"]),
)
def test_pods_that_are_no_endpoints(left_out: Object) -> None:
    assert reconcile(web(), left_out) == []


def test_named_target_ports_differ_by_pod() -> None:
    def with_port(own: str, address: str, number: int, port_name: str = "http-api", protocol: str = "TCP") -> Object:
        return running(
            own,
            address,
            containers=[
                {
                    "name": "c",
                    "image": "i",
                    "ports": [{"name": port_name, "containerPort": number, "protocol": protocol}],
                }
            ],
        )

    pods = (
        with_port("a", "10.0.0.1", 8080),
        with_port("b", "10.0.0.2", 8081),
        with_port("c", "10.0.0.3", 8080),
        with_port("d", "10.0.0.4", 8080, "other"),
        with_port("e", "10.0.0.5", 8080, protocol="UDP"),
    )
    changes = reconcile(web(ports=[{"name": "http", "port": 80, "targetPort": "http-api"}]), *pods)
    found = {tuple(p["port"] for p in c.obj["ports"] or []): addresses(c.obj) for c in changes}
    assert found == {(8080,): ["10.0.0.1", "10.0.0.3"], (8081,): ["10.0.0.2"], (): ["10.0.0.4", "10.0.0.5"]}


def test_a_named_port_may_be_a_sidecars() -> None:
    ports = [{"name": "proxy", "containerPort": 15001}]
    beside = {"name": "s", "image": "i", "restartPolicy": "Always", "ports": ports}
    for init, target in ((beside, 15001), ({**beside, "restartPolicy": None}, None)):
        made = running("a", "10.0.0.1", initContainers=[init])
        assert es.target_port(made, {"port": 80, "targetPort": "proxy"}) == target


def test_headless_is_labelled_and_names_hosts() -> None:
    found = only_slice(
        web(clusterIP="None", ports=[]),
        running("a", "10.0.0.2", hostname="db-0", subdomain="web"),
        running("b", "10.0.0.3", hostname="db-1", subdomain="other"),
        running("c", "10.0.0.4"),
    )
    assert es.HEADLESS in labels(found) and found["ports"] is None
    assert [e.get("hostname") for e in found["endpoints"]] == ["db-0", None, None]
    slices: dict[str, Object] = {}
    apply(slices, reconcile(web(clusterIP="None"), running("a", "10.0.0.2")))
    (change,) = reconcile(web(), running("a", "10.0.0.2"), slices=slices)
    assert change.verb == "update" and es.HEADLESS not in labels(change.obj), "the label follows the Service"


def test_dual_stack_makes_a_slice_a_family() -> None:
    both = stored(running("a", "10.0.0.2"), status={"podIPs": [{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]})
    changes = reconcile(web(ipFamilies=["IPv4", "IPv6"]), both)
    assert {c.obj["addressType"]: addresses(c.obj) for c in changes} == {"IPv4": ["10.0.0.2"], "IPv6": ["fd00::2"]}


@pytest.mark.parametrize(
    "now",
    [
        None,
        stored(service(type="ExternalName", externalName="x", **WEB)),
        stored(service()),
    ],
    ids=["gone", "external", "no selector"],
)
def test_slices_go_with_their_service(now: Object | None) -> None:
    slices: dict[str, Object] = {}
    apply(slices, reconcile(web(), running("a", "10.0.0.2")))
    foreign = {**slices[min(slices)], "metadata": meta("hand-made", labels={es.SERVICE_NAME: "web"})}
    apply(slices, reconcile(*([now] if now else []), running("a", "10.0.0.2"), foreign, slices=slices))
    assert slices == {}


def test_a_service_of_the_same_name_takes_the_slices_over() -> None:
    slices: dict[str, Object] = {}
    apply(slices, reconcile(web(), running("a", "10.0.0.2")))
    again = web()
    again["metadata"]["uid"] = "another"
    apply(slices, reconcile(again, running("a", "10.0.0.2"), slices=slices))
    assert [s["metadata"]["ownerReferences"][0]["uid"] for s in slices.values()] == ["another"], (
        "else they are garbage-collected"
    )


def test_pods_of_one_address_are_endpoints_of_their_own() -> None:
    old, new = running("old", "10.0.0.2", deleted=True, ready=False), running("new", "10.0.0.2")
    for pods in ((old, new), (new, old)):
        found = only_slice(web(), *pods)["endpoints"]
        assert [(e["targetRef"]["name"], e["conditions"]["ready"]) for e in found] == [("new", True), ("old", False)]
        slices = {"s": stored({**only_slice(web(), *pods)}, uid="s")}
        slices["s"]["metadata"]["name"] = "s"
        assert reconcile(web(), *pods, slices=slices) == []
        (write,) = reconcile(web(), new, slices=slices)
        assert [e["targetRef"]["name"] for e in write.obj["endpoints"]] == ["new"]


def test_a_service_that_waits_for_its_finalizer_goes_on_being_served() -> None:
    waits = stored(web(), deletionTimestamp="2027-01-15T08:00:00Z", finalizers=["a.example/b"])
    assert [e["addresses"] for e in only_slice(waits, running("a", "10.0.0.2"))["endpoints"]] == [["10.0.0.2"]]


def test_labels_and_app_protocols_are_those_of_the_service() -> None:
    ports = [{"name": "h", "port": 80, "appProtocol": "kubernetes.io/h2c"}, {"name": "g", "port": 81}]
    mine = {"team": "a", es.MANAGED_BY: "me", es.HEADLESS: "", es.SERVICE_NAME: "other"}
    made = only_slice({**web(ports=ports), "metadata": {**web()["metadata"], "labels": mine}}, running("a", "10.0.0.2"))
    assert labels(made) == {"team": "a", es.MANAGED_BY: es.SELECTOR, es.SERVICE_NAME: "web"}
    assert [p.get("appProtocol") for p in made["ports"]] == ["kubernetes.io/h2c", None]
    slices = {name(made): stored(made)}
    (write,) = reconcile(web(ports=ports), running("a", "10.0.0.2"), slices=slices)
    assert write.verb == "update" and "team" not in labels(write.obj), "they follow"


@pytest.mark.parametrize(
    ("distribution", "hints"),
    [
        (None, None),
        ("PreferClose", {"forZones": [{"name": "z1"}]}),
        ("PreferSameZone", {"forZones": [{"name": "z1"}]}),
        ("PreferSameNode", {"forZones": [{"name": "z1"}], "forNodes": [{"name": "n1"}]}),
    ],
)
def test_traffic_distribution_gives_ready_endpoints_hints(distribution: str | None, hints: Object | None) -> None:
    spec = {"trafficDistribution": distribution} if distribution else {}
    where = node("n1", labels={es.ZONE: "z1"})
    pods = running("a", "10.0.0.2"), running("b", "10.0.0.3", ready=False)
    ready, unready = only_slice(web(**spec), where, *pods)["endpoints"]
    assert ready.get("hints") == hints and "hints" not in unready


def test_mirrors_have_the_labels_and_annotations_of_the_endpoints() -> None:
    made = hand_made(SUBSET, labels={"team": "a"}, annotations={"a.example/b": "c", es.TRIGGER_TIME: "t"})
    (write,) = mirror(stored(service()), made)
    assert labels(write.obj)["team"] == "a" and write.obj["metadata"]["annotations"] == {"a.example/b": "c"}
    assert mirror(stored(service()), made, stored(write.obj)) == []


def test_hundreds_of_endpoints_and_one_change_writes_one_slice() -> None:
    pods = {f"p{n}": running(f"p{n}", f"10.0.{n // 200}.{n % 200 + 1}") for n in range(250)}
    slices: dict[str, Object] = {}
    apply(slices, reconcile(web(), *pods.values()))
    assert sorted(len(s["endpoints"]) for s in slices.values()) == [50, 100, 100]
    assert reconcile(web(), *pods.values(), slices=slices) == []
    for edit in ("unready", "remove", "add"):
        if edit == "unready":
            pods["p7"] = running("p7", "10.0.0.8", ready=False)
        elif edit == "remove":
            del pods["p140"]
        else:
            pods["new"] = running("new", "10.0.9.9")
        changes = reconcile(web(), *pods.values(), slices=slices)
        assert [c.verb for c in changes] == ["update"], edit
        apply(slices, changes)
    assert sorted(a for s in slices.values() for a in addresses(s)) == sorted(
        p["status"]["podIP"] for p in pods.values()
    )


_POD = st.one_of(st.none(), st.tuples(st.integers(1, 12), st.booleans(), st.booleans(), st.sampled_from([80, 81])))
_CHANGES = st.lists(st.tuples(st.integers(0, 9), _POD), max_size=25)


@given(_CHANGES)
def test_any_sequence_of_changes_ends_like_a_fresh_build(changes: list[tuple[int, Any]]) -> None:
    """Updated slices have the same endpoints as newly made slices, and never more than the maximum."""
    limit, es.MAX_ENDPOINTS = es.MAX_ENDPOINTS, 3
    try:
        pods: dict[str, Object] = {}
        slices: dict[str, Object] = {}
        target = web(ports=[{"name": "http", "port": 80, "targetPort": "p"}])
        for number, made in changes:
            own = f"p{number}"
            pods.pop(own, None)
            if made:
                host, ready, deleted, port = made
                pods[own] = running(
                    own,
                    f"10.0.0.{host}",
                    ready=ready,
                    deleted=deleted,
                    containers=[{"name": "c", "image": "i", "ports": [{"name": "p", "containerPort": port}]}],
                )
            apply(slices, reconcile(target, *pods.values(), slices=slices))
        assert reconcile(target, *pods.values(), slices=slices) == [], "correct slices are not written"
        fresh: dict[str, Object] = {}
        apply(fresh, reconcile(target, *pods.values()))

        def content(found: dict[str, Object]) -> list[str]:
            return sorted(repr((s["ports"], e)) for s in found.values() for e in s["endpoints"])

        assert content(slices) == content(fresh)
        assert all(0 < len(s["endpoints"]) <= 3 for s in slices.values())
    finally:
        es.MAX_ENDPOINTS = limit


# ---- mirroring


def hand_made(*subsets: Object, **metadata: Any) -> Object:
    return stored(
        {"apiVersion": "v1", "kind": "Endpoints", "metadata": meta("web"), "subsets": list(subsets)}, **metadata
    )


SUBSET = {"addresses": [{"ip": "192.0.2.42"}], "notReadyAddresses": [{"ip": "192.0.2.43"}], "ports": [{"port": 9376}]}


def mirror(*objects: Object) -> list[Write]:
    return es.reconcile_mirror("default/web", snapshot(*objects), NOW)


def test_hand_made_endpoints_are_mirrored() -> None:
    found = {
        c.obj["addressType"]: c.obj
        for c in mirror(stored(service()), hand_made(SUBSET, {"addresses": [{"ip": "fd00::1", "hostname": "h"}]}))
    }
    assert found["IPv4"]["endpoints"] == [
        {"addresses": ["192.0.2.42"], "conditions": {"ready": True}},
        {"addresses": ["192.0.2.43"], "conditions": {"ready": False}},
    ]
    assert found["IPv4"]["ports"] == [{"name": "", "protocol": "TCP", "port": 9376}]
    assert found["IPv6"]["endpoints"][0]["hostname"] == "h" and found["IPv6"]["ports"] is None
    assert labels(found["IPv4"])[es.MANAGED_BY] == es.MIRROR
    kept = [stored(c) for c in found.values()]
    assert (
        mirror(stored(service()), hand_made(SUBSET, {"addresses": [{"ip": "fd00::1", "hostname": "h"}]}), *kept) == []
    )


@pytest.mark.parametrize(
    "objects",
    [
        (hand_made(SUBSET),),
        (stored(service(**WEB)), hand_made(SUBSET)),
        (stored(service()), hand_made(SUBSET, labels={es.SKIP_MIRROR: "true"})),
        (stored(service()), hand_made(SUBSET, annotations={es.LEADER: "{}"})),
        (stored(service()),),
    ],
    ids=["no service", "selector", "skip label", "leader election", "no endpoints"],
)
def test_what_is_not_mirrored_loses_its_slices(objects: tuple[Object, ...]) -> None:
    (made,) = mirror(stored(service()), hand_made(SUBSET))
    assert [(c.verb, c.name) for c in mirror(*objects, stored(made.obj))] == [("delete", made.name)]
    assert mirror(*objects) == []


def test_an_address_in_both_lists_is_ready() -> None:
    both = {"addresses": [{"ip": "192.0.2.1"}], "notReadyAddresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 1}]}
    (change,) = mirror(stored(service()), hand_made(both))
    assert change.obj["endpoints"] == [{"addresses": ["192.0.2.1"], "conditions": {"ready": True}}]


# ---- Endpoints


def test_endpoints_follow_the_pods() -> None:
    pods = [running("a", "10.0.0.2"), running("b", "10.0.0.3", ready=False), running("c", "10.0.0.4", deleted=True)]
    (change,) = es.reconcile_endpoints("default/web", snapshot(web(), *pods), NOW)
    (subset,) = change.obj["subsets"]
    assert change.verb == "create" and es.SKIP_MIRROR not in labels(change.obj)
    assert [a["ip"] for a in subset["addresses"]] == ["10.0.0.2"]
    assert [a["ip"] for a in subset["notReadyAddresses"]] == ["10.0.0.3"]
    assert es.reconcile_endpoints("default/web", snapshot(web(), *pods, stored(change.obj)), NOW) == []
    (emptied,) = es.reconcile_endpoints("default/web", snapshot(web(), stored(change.obj)), NOW)
    assert emptied.verb == "update" and emptied.obj["subsets"] == []


# ---- which keys an event touches


def _controller(own: str) -> Controller:
    return next(c for c in es.CONTROLLERS if c.name == own)


def test_a_pod_touches_the_services_that_select_it_and_those_that_name_it() -> None:
    selected, named = running("a", "10.0.0.2"), running("b", "10.0.0.3")
    slices: dict[str, Object] = {}
    apply(slices, reconcile(web(), named))
    moved = running("b", "10.0.0.3", labels={"app": "gone"})
    seen = snapshot(web(), stored(service("blind", selector={"app": "x"})), stored(service("bare")), *slices.values())
    mapper = _controller("endpointslice").watches["Pod"]
    assert set(mapper(selected, seen)) == {"default/web"} == set(mapper(moved, seen))
    assert set(mapper(running("c", "10.0.0.4", labels={"app": "y"}), seen)) == set()
    found = next(iter(slices.values()))
    assert set(_controller("endpointslice").watches["EndpointSlice"](found, seen)) == {"default/web"}
    assert name(found).startswith("web-")
