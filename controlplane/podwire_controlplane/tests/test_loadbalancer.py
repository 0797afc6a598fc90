"""Load balancer addresses: pools, allocation, release, and the message if no address is free."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube import loadbalancer as lb
from podwire_base.kube.meta import Object, key
from podwire_base.kube.patch import merge
from podwire_base.testing.builders import NOW, service, stored
from podwire_controlplane.controllers import loadbalancer
from podwire_controlplane.controllers.base import Write

from ..testing.builders import snapshot

POOL = "192.0.2.16/30"


def config(addresses: str = POOL, **data: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "data": {"addresses": addresses, **data},
        "metadata": {"name": lb.CONFIG_NAME, "namespace": lb.CONFIG_NAMESPACE, "uid": "c"},
    }


def balancer(
    own: str = "web", *held: str, born: int = 0, annotations: dict[str, str] | None = None, **spec: Any
) -> Object:
    made = service(own, type=spec.pop("type", "LoadBalancer"), clusterIP="10.96.0.7", **spec)
    status = {"loadBalancer": {"ingress": [{"ip": ip, "ipMode": "VIP"} for ip in held]} if held else {}}
    return stored(
        made,
        uid=f"u-{own}",
        status=status,
        creationTimestamp=f"2026-01-01T00:00:{born:02}Z",
        annotations=annotations or {},
    )


def changes(wanted: Object, *others: Object) -> list[Write]:
    return loadbalancer.reconcile(key(wanted), snapshot(wanted, *others), NOW)


def given_to(wanted: Object, *others: Object) -> tuple[list[str] | None, list[str]]:
    """Return (addresses written to the status or None for no change, reasons of the Events)."""
    found = changes(wanted, *others)
    status = [c.obj["status"]["loadBalancer"]["ingress"] for c in found if c.verb == "status"]
    ips = None if not status else [i["ip"] for i in status[0] or []]
    return ips, [c.obj["reason"] for c in found if c.kind == "Event"]


@pytest.mark.parametrize(
    ("wanted", "others", "expected"),
    [
        (balancer(), [config()], (["192.0.2.16"], [])),
        (balancer(), [config(), balancer("a", "192.0.2.16"), balancer("b", "192.0.2.18")], (["192.0.2.17"], [])),
        (balancer("web", "192.0.2.18"), [config()], (None, [])),
        (balancer(), [], (None, [])),
        (balancer(loadBalancerClass="example.com/other"), [config()], (None, [])),
        (balancer(loadBalancerClass="podwire.io/l2"), [config()], (["192.0.2.16"], [])),
        (balancer(), [config(**{"require-class": "true"})], (None, [])),
        (balancer(loadBalancerIP="192.0.2.19"), [config()], (["192.0.2.19"], [])),
        (balancer("web", "192.0.2.16", loadBalancerIP="192.0.2.19"), [config()], (["192.0.2.19"], [])),
        (
            balancer(annotations={lb.WANTED: "192.0.2.18"}, loadBalancerIP="192.0.2.19"),
            [config()],
            (["192.0.2.18"], []),
        ),
        (balancer(loadBalancerIP="198.51.100.1"), [config()], (None, ["AddressNotInPool"])),
        (balancer(loadBalancerIP="192.0.2.16"), [config(), balancer("a", "192.0.2.16")], (None, ["AddressInUse"])),
        (balancer(loadBalancerIP="one"), [config()], (["192.0.2.16"], ["InvalidAddress"])),
        (balancer(), [config("192.0.2.16"), balancer("a", "192.0.2.16")], (None, ["PoolExhausted"])),
        (balancer(ipFamilies=["IPv6"]), [config()], (None, ["NoPool"])),
        (balancer(ipFamilies=["IPv4", "IPv6"], ipFamilyPolicy="PreferDualStack"), [config()], (["192.0.2.16"], [])),
        (
            balancer(ipFamilies=["IPv4", "IPv6"], ipFamilyPolicy="RequireDualStack"),
            [config()],
            (["192.0.2.16"], ["NoPool"]),
        ),
        (
            balancer(ipFamilies=["IPv6", "IPv4"]),
            [config(f"{POOL}, 2001:db8::10/126")],
            (["2001:db8::10", "192.0.2.16"], []),
        ),
        (balancer("web", "192.0.2.16", type="ClusterIP"), [config()], ([], [])),
        (balancer("web", "192.0.2.16", type="NodePort"), [], ([], [])),
        (balancer("web", "198.51.100.9"), [config()], (["192.0.2.16"], [])),
        (
            balancer("young", "192.0.2.16", born=9),
            [config(), balancer("old", "192.0.2.16", born=1)],
            (["192.0.2.17"], []),
        ),
        (balancer("old", "192.0.2.16", born=1), [config(), balancer("young", "192.0.2.16", born=9)], (None, [])),
    ],
)
def test_addresses(wanted: Object, others: list[Object], expected: tuple[list[str] | None, list[str]]) -> None:
    assert given_to(wanted, *others) == expected


FOREIGN = "example.com/other"


def with_finalizers(wanted: Object, *finalizers: str, given: str | None = None, gone: bool = False) -> Object:
    metadata = {**wanted["metadata"], "finalizers": list(finalizers), "resourceVersion": "7"}
    metadata["annotations"] = {**metadata["annotations"], **({lb.GIVEN: given} if given is not None else {})}
    return {**wanted, "metadata": {**metadata, **({"deletionTimestamp": "2026-01-01T00:00:00Z"} if gone else {})}}


@pytest.mark.parametrize(
    ("wanted", "finalizers", "given", "addresses"),
    [
        # podwire gives an address
        (with_finalizers(balancer()), [lb.FINALIZER], "192.0.2.16", ["192.0.2.16"]),
        (with_finalizers(balancer(), FOREIGN), [FOREIGN, lb.FINALIZER], "192.0.2.16", ["192.0.2.16"]),
        # the finalizer is that of a cloud's controller, which gave an address before
        (with_finalizers(balancer(), lb.FINALIZER), [lb.FINALIZER], None, ["192.0.2.16"]),
        # another address than before
        (
            with_finalizers(balancer("web", "198.51.100.9"), lb.FINALIZER, given="198.51.100.9"),
            [lb.FINALIZER],
            "192.0.2.16",
            ["192.0.2.16"],
        ),
        # deletion, a change of the type, a change of the class, a pool that asks for a class
        (with_finalizers(balancer("web", "192.0.2.16"), lb.FINALIZER, given="192.0.2.16", gone=True), [], None, []),
        (
            with_finalizers(balancer("web", "192.0.2.16"), FOREIGN, lb.FINALIZER, given="192.0.2.16", gone=True),
            [FOREIGN],
            None,
            [],
        ),
        (
            with_finalizers(balancer("web", "192.0.2.16", type="ClusterIP"), lb.FINALIZER, given="192.0.2.16"),
            [],
            None,
            [],
        ),
        (
            with_finalizers(balancer("web", "192.0.2.16", loadBalancerClass=FOREIGN), lb.FINALIZER, given="192.0.2.16"),
            [],
            None,
            [],
        ),
        # the other controller has written its address already
        (
            with_finalizers(
                balancer("web", "203.0.113.9", loadBalancerClass=FOREIGN), lb.FINALIZER, given="192.0.2.16"
            ),
            [],
            None,
            ["203.0.113.9"],
        ),
    ],
)
def test_the_finalizer_comes_and_goes_with_podwires_address(
    wanted: Object, finalizers: list[str], given: str | None, addresses: list[str]
) -> None:
    (change,) = [c for c in changes(wanted, config()) if c.verb == "status"]
    after = merge(wanted, change.obj)
    assert (after["metadata"].get("finalizers") or []) == finalizers
    assert (after["metadata"].get("annotations") or {}).get(lb.GIVEN) == given
    assert [i["ip"] for i in (after["status"]["loadBalancer"].get("ingress") or [])] == addresses
    if "finalizers" in change.obj.get("metadata", {}):
        assert change.obj["metadata"]["resourceVersion"] == "7", "a list is replaced whole, so not blindly"
    assert not [c for c in changes(after, config()) if c.verb == "status"], "and it is settled"


@pytest.mark.parametrize(
    "wanted",
    [
        with_finalizers(balancer(loadBalancerClass=FOREIGN), lb.FINALIZER),
        with_finalizers(balancer("web", "203.0.113.9", loadBalancerClass=FOREIGN), lb.FINALIZER, gone=True),
        with_finalizers(balancer("web", "192.0.2.16"), lb.FINALIZER, given="192.0.2.16"),
        with_finalizers(balancer("web", "192.0.2.16"), FOREIGN, gone=True),
        with_finalizers(balancer(), gone=True),
    ],
)
def test_another_controllers_finalizer_is_never_touched(wanted: Object) -> None:
    assert not changes(wanted, config())


def test_without_pools_a_service_can_still_be_deleted() -> None:
    gone = with_finalizers(balancer("web", "192.0.2.16"), lb.FINALIZER, given="192.0.2.16", gone=True)
    (change,) = changes(gone)
    assert change.obj["metadata"]["finalizers"] is None
    kept = with_finalizers(balancer("web", "192.0.2.16"), lb.FINALIZER, given="192.0.2.16")
    assert not changes(kept), "the pools may come back"


@pytest.mark.parametrize("status", ["x", *({"loadBalancer": part} for part in ("x", {"ingress": 5}, {"ingress": [5]}))])
def test_a_status_that_cannot_be_read_keeps_nobody_from_an_address(status: Any) -> None:
    strange = {**balancer("strange"), "status": status}
    assert given_to(balancer(), config(), strange) == (["192.0.2.16"], [])
    assert given_to(strange, config(), balancer("a", "192.0.2.16")) == (["192.0.2.17"], [])


def test_an_event_names_pool_and_fix_and_is_told_once() -> None:
    first, again = (changes(balancer(), config("192.0.2.16"), balancer("a", "192.0.2.16")) for _ in range(2))
    assert "192.0.2.16 of ConfigMap kube-system/podwire-load-balancer" in first[0].obj["message"]
    assert first[0].obj["metadata"]["name"] == again[0].obj["metadata"]["name"]


@pytest.mark.parametrize(
    ("text", "ranges", "problems"),
    [
        ("192.0.2.0/30\n 2001:db8::/126 # two\n#all", 2, 0),
        ("192.0.2.1 - 192.0.2.9,192.0.2.20", 2, 0),
        ("", 0, 0),
        ("192.0.2.9-192.0.2.1, 192.0.2.300, 192.0.2.1/24, 192.0.2.4", 1, 3),
        ("192.0.2.1-2001:db8::1", 0, 1),
    ],
)
def test_pools(text: str, ranges: int, problems: int) -> None:
    pools, found = lb.parse(config(text))
    assert (len(pools.ranges), len(found)) == (ranges, problems)
    assert all("data.addresses: " in problem for problem in found)


def test_what_is_announced() -> None:
    pools = lb.parse(config())[0]
    services = [
        balancer("a", "192.0.2.16"),
        balancer("b", "198.51.100.1"),
        balancer("c", "192.0.2.17", type="ClusterIP"),
        balancer("d", "192.0.2.18", loadBalancerClass="example.com/x"),
    ]
    assert [(ip, key(s)) for ip, s in lb.announced(services, pools)] == [("192.0.2.16", "default/a")]
    assert not list(lb.announced(services, lb.Pools()))


@pytest.mark.parametrize(("objects", "made"), [([], True), ([config("")], False), ([config("")], False)])
def test_the_pool_of_the_flag_is_made_where_there_is_none(objects: list[Object], made: bool) -> None:
    _, pools = loadbalancer.controllers((POOL,))
    system = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system", "uid": "n"}}
    found = pools.reconcile(loadbalancer.CONFIG_KEY, snapshot(system, *objects), NOW)
    assert [(c.verb, c.obj["data"]) for c in found] == ([("create", {"addresses": POOL})] if made else [])
    assert pools.reconcile(loadbalancer.CONFIG_KEY, snapshot(), NOW) == [], "not before its namespace"


def test_a_bad_pool_is_told_on_the_configmap() -> None:
    (change,) = loadbalancer.controllers(())[1].reconcile(loadbalancer.CONFIG_KEY, snapshot(config("x")), NOW)
    assert (change.kind, change.obj["reason"], change.obj["involvedObject"]["kind"]) == (
        "Event",
        "InvalidPool",
        "ConfigMap",
    )


STEPS = st.lists(
    st.tuples(st.sampled_from(["make", "delete", "type", "pool", "ask"]), st.integers(0, 5), st.integers(0, 3)),
    max_size=40,
)


@given(STEPS)
def test_no_address_is_ever_given_twice_and_none_is_lost(steps: list[tuple[str, int, int]]) -> None:
    """The order of the driver: an event queues keys, and each key's changes are applied before the next key."""
    run, _ = loadbalancer.controllers(())
    world: dict[str, Object] = {"config": config()}
    pools = [POOL, "192.0.2.16/31", "192.0.2.18/31, 192.0.2.40", ""]

    def settle(queue: list[str]) -> None:
        while queue:
            now = queue.pop(0)
            for change in run.reconcile(now, snapshot(*world.values()), NOW):
                if change.verb == "status":
                    before = world[change.name]
                    world[change.name] = merge(before, change.obj)
                    queue += [
                        k
                        for seen in (before, world[change.name])
                        for k in run.watches["Service"](seen, snapshot(*world.values()))
                        if k not in queue
                    ]

    for what, number, extra in steps:
        own, before = f"s{number}", world.get(f"s{number}")
        if what == "pool":
            world["config"] = config(pools[extra])
            settle(list(run.watches["ConfigMap"](world["config"], snapshot(*world.values()))))
        elif what == "make" and before is None:
            world[own] = balancer(own, born=number)
        elif what == "delete" and before is not None:
            del world[own]
        elif what == "type" and before is not None:
            world[own] = merge(before, {"spec": {"type": ["LoadBalancer", "ClusterIP"][extra % 2]}})
        elif what == "ask" and before is not None:
            world[own] = merge(before, {"spec": {"loadBalancerIP": f"192.0.2.{16 + extra}"}})
        keys = [
            k
            for seen in (before, world.get(own))
            if seen
            for k in run.watches["Service"](seen, snapshot(*world.values()))
        ]
        settle(list(dict.fromkeys(keys)))
        now, found = lb.parse(world["config"])[0], [s for s in world.values() if s["kind"] == "Service"]
        held = [ip for s in found for ip in lb.ingress(s)]
        assert len(held) == len(set(held)), "twice"
        assert all(s["spec"]["type"] == "LoadBalancer" for s in found if lb.ingress(s)), "released on a change of type"
        if now:
            assert all(ip in now for ip in held)
            waiting = [s for s in found if lb.ours(s, now) and not lb.ingress(s) and not lb.wanted(s)]
            assert not waiting or not now.free(4, set(held)), "no Service waits while an address is free"


# ---- addresses that somebody has


def machine(own: str, *ips: str, kind: str = "InternalIP", **spec: Any) -> Object:
    status = {"addresses": [{"type": kind, "address": ip} for ip in ips]}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": own, "uid": own}, "spec": spec, "status": status}


def pod(own: str, ip: str, host: str = "198.51.100.1", phase: str = "Running") -> Object:
    status = {"podIP": ip, "podIPs": [{"ip": ip}], "hostIP": host, "phase": phase}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": own, "namespace": "default"}, "status": status}


def api_server(*ips: str) -> Object:
    endpoints = [{"addresses": [ip]} for ip in ips]
    where = {"name": "kubernetes", "namespace": "default"}
    return {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": where, "endpoints": endpoints}


@pytest.mark.parametrize(
    ("owner", "words"),
    [
        (machine("n1", "192.0.2.16"), "Node n1"),
        (machine("n1", "198.51.100.1", "192.0.2.16"), "Node n1"),
        (machine("n1", "192.0.2.16", kind="ExternalIP"), "Node n1"),
        (machine("n1", podCIDRs=["192.0.2.16/32"]), "podCIDR of Node n1"),
        (pod("p", "192.0.2.16"), "Pod default/p"),
        (api_server("192.0.2.16"), "the API server"),
    ],
)
def test_an_address_that_somebody_has_is_never_given(owner: Object, words: str) -> None:
    """Neither as the next free one, nor when asked for by name, nor kept by a Service that had it before."""
    assert given_to(balancer(), config(), owner) == (["192.0.2.17"], [])
    for asking in (balancer(loadBalancerIP="192.0.2.16"), balancer(annotations={lb.WANTED: "192.0.2.16"})):
        assert given_to(asking, config(), owner) == (None, ["InvalidPool"])
        assert words in changes(asking, config(), owner)[0].obj["message"]
    assert given_to(balancer("web", "192.0.2.16"), config(), owner) == (["192.0.2.17"], ["InvalidPool"])
    named = given_to(balancer("web", "192.0.2.16", loadBalancerIP="192.0.2.16"), config(), owner)
    assert named == ([], ["InvalidPool", "InvalidPool"])
    (told,) = loadbalancer.controllers(())[1].reconcile(loadbalancer.CONFIG_KEY, snapshot(config(), owner), NOW)
    assert told.obj["reason"] == "InvalidPool"
    assert "192.0.2.16" in told.obj["message"] and words in told.obj["message"]


def test_gateways_and_what_the_controller_itself_uses_are_never_given() -> None:
    plan = loadbalancer.controllers((), ("192.0.2.16", "192.0.2.17"))
    (write,) = plan[0].reconcile("default/web", snapshot(balancer(), config()), NOW)
    assert write.obj["status"]["loadBalancer"]["ingress"][0]["ip"] == "192.0.2.18"
    (told,) = plan[1].reconcile(loadbalancer.CONFIG_KEY, snapshot(config()), NOW)
    assert "192.0.2.16 (a default gateway)" in told.obj["message"]


@pytest.mark.parametrize(
    "other", [pod("p", "192.0.2.16", host="192.0.2.16"), pod("p", "192.0.2.16", phase="Succeeded")]
)
def test_a_host_network_pod_and_one_that_ended_have_no_address(other: Object) -> None:
    assert given_to(balancer(), config(), other) == (["192.0.2.16"], [])


def test_what_the_admin_excludes_is_not_given() -> None:
    pools = config(exclude="192.0.2.16-192.0.2.17")
    assert given_to(balancer(), pools) == (["192.0.2.18"], [])
    assert given_to(balancer(loadBalancerIP="192.0.2.17"), pools) == (None, ["AddressNotInPool"])
    assert lb.parse(config(exclude="x"))[1][0].startswith("data.exclude: 'x'")


def test_a_pool_inside_the_pods_range_is_skipped_in_one_step() -> None:
    wide = config("10.0.0.0/8, 192.0.2.16")
    assert given_to(balancer(), wide, machine("n1", podCIDRs=["10.0.0.0/9"])) == (["10.128.0.0"], [])
    halves = machine("n1", podCIDRs=["10.0.0.0/9"]), machine("n2", podCIDRs=["10.128.0.0/9"])
    assert given_to(balancer(), wide, *halves) == (["192.0.2.16"], [])


def test_only_what_meets_a_pool_is_worked_out_again() -> None:
    one, pools = loadbalancer.controllers(())
    seen = snapshot(config(), balancer("web", "192.0.2.16"))
    for obj in (machine("n1", "192.0.2.16"), machine("n1", podCIDRs=["192.0.0.0/16"]), pod("p", "192.0.2.17")):
        assert list(one.watches[obj["kind"]](obj, seen)) == ["default/web"]
        assert list(pools.watches[obj["kind"]](obj, seen)) == [loadbalancer.CONFIG_KEY]
    for obj in (machine("n1", "198.51.100.1", podCIDRs=["10.244.1.0/24"]), pod("p", "10.244.1.2")):
        assert not list(one.watches[obj["kind"]](obj, seen)) + list(pools.watches[obj["kind"]](obj, seen))
    for ip, where, meets in (
        ("192.0.2.16", "kubernetes", True),
        ("192.0.2.16", "web", False),
        ("10.0.0.1", "kubernetes", False),
    ):
        slice_ = {**api_server(ip), "metadata": {"name": where, "namespace": "default"}}
        assert bool(list(one.watches["EndpointSlice"](slice_, seen))) is meets
