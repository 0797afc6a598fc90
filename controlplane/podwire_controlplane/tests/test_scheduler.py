"""The scheduler as pure functions: where pods go, why not, and who leaves."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube import quantity
from podwire_base.kube.meta import Object, labels, name
from podwire_base.testing.builders import NOW, meta, pod, replica_set, running, stored
from podwire_base.testing.builders import node as written
from podwire_controlplane.controllers import scheduler
from podwire_controlplane.controllers.base import Write, owner_reference
from podwire_controlplane.controllers.scheduling import filters, places, topology

from ..testing.builders import snapshot

TAINT = {"key": "k", "value": "v", "effect": "NoSchedule"}
PICKED = {"matchLabels": {"app": "web"}}
ZONE = "topology.kubernetes.io/zone"


def live(own: str, *, room: Object | None = None, **more: Any) -> Object:
    made = stored(written(own, **more))
    if room is not None:
        made["status"]["allocatable"] = room
    return made


def asking(own: str = "p1", cpu: str = "0", **more: Any) -> Object:
    made = pod(own, **more)
    made["spec"]["containers"][0]["resources"] = {"requests": {"cpu": cpu}}
    return stored(made)


def on(node: str, made: Object) -> Object:
    return {**made, "spec": {**made["spec"], "nodeName": node}}


def writes(*objects: Object, own: str = "default/p1") -> list[Write]:
    return scheduler.reconcile(own, snapshot(*objects), NOW)


def place(wanted: Object, *objects: Object) -> str:
    """Return the node of the pod, or the message of its condition."""
    first, *_ = writes(stored(wanted), *objects)
    if first.verb == "bind":
        return str(first.obj["target"]["name"])
    return str(first.obj["status"]["conditions"][-1]["message"])


# ---- one rule after the other


def test_pods_of_one_owner_spread() -> None:
    refs = [owner_reference(stored(replica_set()))]
    held: list[Object] = [running("other1", "10.0.0.8", "n2"), running("other2", "10.0.0.9", "n2")]
    hosts = []
    for n in range(6):
        made = stored(pod(f"w{n}"), ownerReferences=refs)
        (change,) = writes(made, live("n1"), live("n2"), live("n3"), *held, own=f"default/w{n}")
        hosts.append(change.obj["target"]["name"])
        held.append(on(hosts[-1], made))
    assert sorted(hosts) == ["n1", "n1", "n2", "n2", "n3", "n3"] and set(hosts[:2]) == {"n1", "n3"}, "least used first"


@pytest.mark.parametrize(
    ("spec", "fits"),
    [
        ({}, "plain"),
        ({"nodeSelector": {"disk": "ssd"}}, "ssd"),
        ({"nodeSelector": {"t": "1"}, "tolerations": [{"key": "k", "operator": "Exists"}]}, "tainted"),
        ({"nodeSelector": {"t": "1"}, "tolerations": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}, "tainted"),
        ({"nodeSelector": {"t": "1"}, "tolerations": [{"operator": "Exists"}]}, "tainted"),
        ({"nodeSelector": {"t": "1"}, "tolerations": [{"key": "k", "value": "other"}]}, ""),
        ({"nodeSelector": {"t": "1"}, "tolerations": [{"key": "k", "value": "v", "effect": "NoExecute"}]}, ""),
        ({"nodeSelector": {"t": "1"}}, ""),
    ],
)
def test_selectors_taints_and_tolerations(spec: Object, fits: str) -> None:
    rows = [live("plain"), live("tainted", labels={"t": "1"}, taints=[TAINT]), live("ssd", labels={"disk": "ssd"})]
    found = place(pod(**spec), *rows)
    assert found == fits or (not fits and found.startswith("0/3 nodes are available: ")), found


def test_the_reason_counts_the_nodes() -> None:
    rows = (
        live("a", unschedulable=True),
        live("b", ready=False),
        live("c", taints=[TAINT]),
        live("d", taints=[{**TAINT, "effect": "PreferNoSchedule"}], labels={"x": "z"}),
        live("e"),
    )
    wanted = pod(nodeSelector={"x": "y"})
    first, event = writes(stored(wanted), *rows)
    condition = first.obj["status"]["conditions"][0]
    assert condition["reason"] == "Unschedulable" and condition["message"] == (
        "0/5 nodes are available: 1 node(s) had untolerated taint {k: v}, 1 node(s) had untolerated taint "
        "{node.kubernetes.io/not-ready: }, 1 node(s) were unschedulable, 2 node(s) didn't match Pod's node "
        "affinity/selector. preemption: 0/5 nodes are available: 5 Preemption is not helpful for scheduling."
    )
    assert event.obj["reason"] == "FailedScheduling" and event.obj["message"] == condition["message"]
    told = stored(wanted, status={"conditions": [condition]})
    assert writes(told, *rows) == [], "said once"
    assert place(pod()) == "no nodes available to schedule pods"
    assert place(pod(), live("n", taints=[{**TAINT, "effect": "PreferNoSchedule"}])) == "n"


@pytest.mark.parametrize(
    "left_alone",
    [
        pod(nodeName="n9"),
        pod(schedulerName="mine"),
        {**pod(), "status": {"phase": "Failed"}},
        pod(schedulingGates=[{"name": "x/y"}]),
    ],
    ids=["bound", "other", "ended", "gated"],
)
def test_pods_that_are_not_scheduled(left_alone: Object) -> None:
    assert writes(stored(left_alone), live("n1")) == []


def test_what_nodes_have_is_what_pods_get() -> None:
    rows = [live("n1", room={"cpu": "1", "pods": "2"}), live("n2", room={"cpu": "2", "pods": "1"})]
    assert place(asking(cpu="1500m"), *rows) == "n2"
    assert place(asking(cpu="3"), *rows) == (
        "0/2 nodes are available: 2 Insufficient cpu. "
        "preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    )
    held = [on("n1", asking("a", "800m")), on("n2", asking("b"))]
    assert place(asking(cpu="300m"), *rows, *held) == (
        "0/2 nodes are available: 1 Insufficient cpu, 1 Too many pods. "
        "preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod."
    )
    ended = {**held[1], "status": {"phase": "Succeeded"}}
    assert place(asking(cpu="300m"), *rows, held[0], ended) == "n2", "a pod that ended holds nothing"
    device = pod()
    device["spec"]["containers"][0]["resources"] = {"requests": {"gpu.example.com/big": "1"}}
    assert "2 Insufficient gpu.example.com/big" in place(device, *rows)


@pytest.mark.parametrize(
    ("mine", "theirs", "free"),
    [
        ({"hostPort": 80}, {"hostPort": 80}, False),
        ({"hostPort": 80}, {"hostPort": 80, "protocol": "UDP"}, True),
        ({"hostPort": 80, "hostIP": "10.0.0.1"}, {"hostPort": 80, "hostIP": "10.0.0.2"}, True),
        ({"hostPort": 80, "hostIP": "10.0.0.1"}, {"hostPort": 80, "hostIP": "0.0.0.0"}, False),
        ({"containerPort": 80}, {"hostPort": 80}, True),
    ],
    ids=["same", "protocol", "address", "any", "none"],
)
def test_a_port_of_a_node_is_taken_once(mine: Object, theirs: Object, free: bool) -> None:
    one, other = pod(), stored(pod("p2", nodeName="n1"))
    one["spec"]["containers"][0]["ports"] = [{"containerPort": 1, **mine}]
    other["spec"]["containers"][0]["ports"] = [{"containerPort": 1, **theirs}]
    found = place(one, live("n1"), other)
    assert (found == "n1") is free, found
    assert free or "1 node(s) didn't have free ports for the requested pod ports" in found


def near(which: str, rule: str = topology.REQUIRED, key: str = ZONE, **term: Any) -> Object:
    body: Object = {"topologyKey": key, "labelSelector": PICKED, **term}
    return {which: {rule: [body if rule == topology.REQUIRED else {"weight": 5, "podAffinityTerm": body}]}}


NODES = [live("a1", labels={ZONE: "a"}), live("a2", labels={ZONE: "a"}), live("b1", labels={ZONE: "b"}), live("none")]


def test_pods_that_want_to_be_together_or_apart() -> None:
    there = running("w", "10.0.0.1", "a1")
    assert place(pod(affinity=near("podAffinity")), *NODES, there) == "a2", "the zone of the other, its emptier node"
    assert place(pod(affinity=near("podAntiAffinity")), *NODES, there) == "b1"
    assert place(pod(affinity=near("podAffinity")), *NODES) == "a1", "the first of a group has nobody to join"
    other = pod(labels={"app": "db"}, affinity=near("podAffinity"))
    assert "4 node(s) didn't match pod affinity rules" in place(other, *NODES)
    assert place(other, *NODES, there) == "a2"
    elsewhere = {**there, "metadata": {**there["metadata"], "namespace": "shop"}}
    assert "didn't match pod affinity rules" in place(other, *NODES, elsewhere), "a term is about its own namespace"
    shop = {"kind": "Namespace", "metadata": meta("shop", "", labels={"team": "x"})}
    wide = pod(labels={"app": "db"}, affinity=near("podAffinity", namespaceSelector={"matchLabels": {"team": "x"}}))
    assert place(wide, *NODES, elsewhere, shop) == "a2"
    guard = stored(pod("g", nodeName="b1", affinity=near("podAntiAffinity", labelSelector={})))
    assert place(pod(nodeSelector={ZONE: "b"}), *NODES, guard).startswith(
        "0/4 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules"
    )


def test_wishes_are_weighed_and_never_stop_a_pod() -> None:
    there = running("w", "10.0.0.1", "a1")
    assert place(pod(affinity=near("podAntiAffinity", topology.PREFERRED)), *NODES[:3], there) == "b1"
    assert place(pod(affinity=near("podAntiAffinity", topology.PREFERRED)), *NODES[:2], there) == "a2"
    own = {"weight": 1, "preference": {"matchExpressions": [{"key": ZONE, "operator": "In", "values": ["b"]}]}}
    assert place(pod(affinity={"nodeAffinity": {topology.PREFERRED: [own]}}), *NODES) == "b1"
    avoided = live("a", taints=[{**TAINT, "effect": "PreferNoSchedule"}])
    assert place(pod(), avoided, live("b"), running("w", "10.0.0.1", "b")) == "b"
    wish = {"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": PICKED}
    assert place(pod(topologySpreadConstraints=[wish]), *NODES, there) == "b1"
    assert place(pod(topologySpreadConstraints=[wish]), NODES[0], there) == "a1"


def test_a_spread_that_must_hold() -> None:
    rule = {"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": PICKED}
    there = running("w", "10.0.0.1", "a1")
    assert place(pod(topologySpreadConstraints=[rule]), *NODES, there) == "b1"
    full = live("b1", labels={ZONE: "b"}, room={"pods": "0"})
    found = place(pod(topologySpreadConstraints=[rule]), NODES[0], full, NODES[3], there)
    assert found.startswith(
        "0/3 nodes are available: 1 Too many pods, 1 node(s) didn't match pod topology spread constraints, "
        "1 node(s) didn't match pod topology spread constraints (missing required label)."
    )
    three = {**rule, "minDomains": 3}
    assert "didn't match pod topology spread" in place(pod(topologySpreadConstraints=[three]), *NODES[:3], there,
                                                       running("v", "10.0.0.2", "b1"))  # fmt: skip
    only = pod(topologySpreadConstraints=[rule], nodeSelector={ZONE: "a"})
    assert place(only, *NODES, there) == "a2", "nodes that the pod's own rules exclude are no domains"


# ---- priorities


def ranked(own: str, rank: int, cpu: str = "1", node: str = "n1", **more: Any) -> Object:
    made = asking(own, cpu, priority=rank, **more)
    return on(node, made) if node else made


def victims(*objects: Object) -> set[str]:
    return {row.name for row in writes(*objects) if row.verb == "delete"}


def test_a_pod_of_higher_priority_makes_room() -> None:
    rows = [live(n, room={"cpu": "2", "pods": "9"}) for n in ("n1", "n2")]
    held = [ranked("low", 1), ranked("mid", 5), ranked("a", 3, node="n2"), ranked("b", 3, node="n2")]
    wanted = ranked("p1", 9, node="")
    first, event, told, gone = writes(wanted, *rows, *held)
    assert first.obj["status"]["nominatedNodeName"] == "n1" and event.obj["message"].endswith("2 Insufficient cpu.")
    reasons = {row["type"]: row["reason"] for row in told.obj["status"]["conditions"]}
    assert told.name == "low" and reasons["DisruptionTarget"] == "PreemptionByScheduler"
    assert (gone.verb, gone.name) == ("delete", "low") and gone.told and gone.told.reason == "Preempted"
    budget = {
        "kind": "PodDisruptionBudget",
        "metadata": meta("b"),
        "spec": {"selector": {"matchLabels": {"own": "low"}}},
        "status": {"disruptionsAllowed": 0},
    }
    kept = {**held[0], "metadata": {**held[0]["metadata"], "labels": {"own": "low"}}}
    assert victims(wanted, *rows, kept, *held[1:], budget) == {"b"}, "no budget is broken where another node has room"
    assert victims(ranked("p1", 9, node="", preemptionPolicy="Never"), *rows, *held) == set()
    assert victims(ranked("p1", 1, node=""), *rows, *held) == set(), "only a lower priority leaves"
    going = {**held[0], "metadata": {**held[0]["metadata"], "deletionTimestamp": "2027-01-15T08:00:00Z"}}
    waits = {**wanted, "status": {"nominatedNodeName": "n1"}}
    assert writes(waits, *rows, going, *held[1:]) == [], "its victim leaves already"
    other = ranked("p2", 4, node="")
    after = [row for row in held if name(row) != "low"]
    message = writes(other, waits, *rows, *after, own="default/p2")[0].obj["status"]["conditions"][-1]["message"]
    assert "Insufficient cpu" in message, "the room is kept for the pod that made it"
    assert place(waits, *rows, *after) == "n1"


def test_anti_affinity_is_a_reason_to_leave() -> None:
    wanted = ranked("p1", 9, "0", node="", affinity=near("podAntiAffinity", key="kubernetes.io/hostname"))
    row = live("n1", labels={"kubernetes.io/hostname": "n1"}, room={"pods": "9"})
    assert victims(wanted, row, ranked("web", 1, "0"), ranked("other", 1, "0", labels={"app": "db"})) == {"web"}


CPUS = st.sampled_from(["0", "250m", "500m", "1"])


@given(st.lists(st.tuples(CPUS, st.integers(0, 3), st.booleans()), max_size=24), st.integers(1, 4))
def test_no_node_is_ever_asked_for_more_than_it_has(pods: list[tuple[str, int, bool]], count: int) -> None:
    """Pods come with any priority, and victims leave at once. A pod waits only where no node has room for it."""
    rows = [live(f"n{n}", room={"cpu": "1", "pods": "4"}) for n in range(count)]
    held: dict[str, Object] = {}
    for number, (cpu, rank, preempts) in enumerate(pods):
        own = f"p{number}"
        made = asking(own, cpu, priority=rank, **({} if preempts else {"preemptionPolicy": "Never"}))
        for _ in range(2):  # once more after the victims have left
            changes = writes(made, *rows, *held.values(), own=f"default/{own}")
            leaving = [change.name for change in changes if change.verb == "delete"]
            ranks = {name(other): other["spec"]["priority"] for other in held.values()}
            assert all(ranks[victim] < rank for victim in leaving)
            for victim in leaving:
                held.pop(victim)
            for change in changes:
                if change.verb == "bind":
                    held[own] = on(change.obj["target"]["name"], made)
                if change.verb == "status" and change.name == own:
                    made = {**made, "status": {**made.get("status", {}), **change.obj["status"]}}
            if not leaving:
                break
        used = places.places(made, rows, held.values())
        for one in used:
            assert all(value <= one.room[key] for key, value in one.used.items())
        if own not in held:
            assert all(filters.full(made, one) for one in used)


@given(
    st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(0, 20),
)
def test_a_spread_never_exceeds_its_skew(zones: list[str], skew: int, count: int) -> None:
    rows = [live(f"n{n}", labels={ZONE: zone}) for n, zone in enumerate(zones)]
    rule = {"maxSkew": skew, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": PICKED}
    held: list[Object] = []
    for number in range(count):
        made = stored(pod(f"p{number}", topologySpreadConstraints=[rule]))
        (change,) = writes(made, *rows, *held, own=f"default/p{number}")
        held.append(on(change.obj["target"]["name"], made))
        home = {name(row): labels(row)[ZONE] for row in rows}
        counts = Counter(home[other["spec"]["nodeName"]] for other in held)
        assert max(counts.values()) - min(counts[zone] for zone in set(zones)) <= skew


@given(st.lists(st.tuples(CPUS, st.integers(0, 2)), min_size=1, max_size=6), CPUS)
def test_no_victim_leaves_that_could_stay(lower: list[tuple[str, int]], cpu: str) -> None:
    total = sum((Fraction(quantity.parse(own)) for own, _ in lower), Fraction(0))
    rows = [live("n1", room={"cpu": str(max(1, -(-total // 1))), "pods": "99"})]
    held = [ranked(f"l{n}", rank, own) for n, (own, rank) in enumerate(lower)]
    wanted = ranked("p1", 9, cpu, node="")
    gone = victims(wanted, *rows, *held)
    for back in gone:
        stay = [other for other in held if name(other) not in gone or name(other) == back]
        (again,) = places.places(wanted, rows, stay)
        assert filters.full(wanted, again), "each victim is needed"


# ---- what wakes a pod that waits


def test_a_pod_that_leaves_wakes_those_that_wait() -> None:
    watch = scheduler.CONTROLLERS[0].watches
    waiting, bound = stored(pod("w")), running("r", "10.0.0.1", "n1")
    assert list(watch["Pod"](waiting, snapshot(waiting))) == ["default/w"]
    assert list(watch["Pod"](bound, snapshot(waiting, bound))) == []
    assert list(watch["Pod"](bound, snapshot(waiting))) == ["default/w"], "it is gone"
    assert list(watch["Node"](live("n1"), snapshot(waiting, bound))) == ["default/w"]
    friend = stored(pod("w", affinity=near("podAffinity")))
    fresh = {**bound, "status": {"phase": "Pending"}}
    assert list(watch["Pod"](fresh, snapshot(friend, fresh))) == ["default/w"]
