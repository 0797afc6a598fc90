"""podCIDRs, node lifecycle and garbage collection, as pure functions."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube.meta import Object, uid
from podwire_base.testing.builders import NOW, deployment, meta, node, pod, replica_set, running, service, stored
from podwire_controlplane.controllers import cleanup, nodes, tainteviction
from podwire_controlplane.controllers.base import Write, owner_reference

from ..testing.builders import snapshot

CLUSTER = ipaddress.ip_network("10.244.0.0/16")


def live(own: str, **more: Any) -> Object:
    return stored(node(own, **more))


# ---- podCIDR


def cidr(wanted: str, *objects: Object, size: int = 24, cluster: Any = CLUSTER) -> list[Write]:
    return nodes.node_ipam([(cluster, size)]).reconcile(wanted, snapshot(*objects), NOW)


@given(st.lists(st.tuples(st.sampled_from(["join", "leave"]), st.integers(0, 9)), max_size=25))
def test_pod_ranges_of_living_nodes_never_overlap(steps: list[tuple[str, int]]) -> None:
    held: dict[str, Object] = {}
    for what, number in steps:
        own = f"n{number}"
        if what == "leave":
            held.pop(own, None)
        elif own not in held:
            (change,) = cidr(own, live(own), *held.values(), size=20)
            assert change.obj["spec"]["podCIDRs"] == [change.obj["spec"]["podCIDR"]]
            held[own] = live(own, **change.obj["spec"])
            assert cidr(own, *held.values()) == [], "once is enough"
    nets = [ipaddress.IPv4Network(n["spec"]["podCIDR"]) for n in held.values()]
    assert not any(a.overlaps(b) for a in nets for b in nets if a is not b)


def test_each_family_has_its_range() -> None:
    ranges = [(ipaddress.ip_network("10.244.0.0/16"), 24), (ipaddress.ip_network("fd00::/56"), 64)]
    first = live("n1", podCIDR="10.244.0.0/24", podCIDRs=["10.244.0.0/24", "fd00::/64"])
    (change,) = nodes.node_ipam(ranges).reconcile("n2", snapshot(first, live("n2")), NOW)
    assert change.obj["spec"] == {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:0:0:1::/64"]}


def test_no_range_left_is_said_on_the_node() -> None:
    small = ipaddress.ip_network("10.244.0.0/24")
    (change,) = cidr("n2", live("n1", podCIDR="10.244.0.0/24"), live("n2"), cluster=small)
    condition = change.obj["status"]["conditions"][-1]
    assert change.verb == "status" and condition["reason"] == "NoPodCIDR" and "10.244.0.0/24" in condition["message"]
    assert any(c["type"] == "Ready" for c in change.obj["status"]["conditions"]), "the others stay"


# ---- lifecycle


def lease(own: str, seconds_ago: float) -> Object:
    from podwire_base.kube.times import timestamp

    return {"kind": "Lease", "metadata": meta(own, nodes.LEASES), "spec": {"renewTime": timestamp(NOW - seconds_ago)}}


def test_a_silent_node_and_its_pods_become_unready() -> None:
    pods = [running("a", "10.0.0.1"), running("b", "10.0.0.2", ready=False), running("c", "10.0.0.3", "n2")]
    assert nodes.reconcile_lifecycle("n1", snapshot(live("n1"), lease("n1", 39), *pods), NOW) == []
    changes = nodes.reconcile_lifecycle("n1", snapshot(live("n1"), lease("n1", 41), *pods), NOW)
    assert [(c.verb, c.kind, c.name) for c in changes] == [("status", "Node", "n1"), ("status", "Pod", "a")]
    ready = changes[0].obj["status"]["conditions"][-1]
    assert (ready["status"], ready["reason"]) == ("Unknown", "NodeStatusUnknown") and "2027-01-15T07:59:19Z" in ready[
        "message"
    ]
    assert changes[1].obj["status"]["conditions"][-1]["reason"] == "NodeNotReady"
    marked = {**live("n1"), **changes[0].obj}
    (taint,) = nodes.reconcile_lifecycle("n1", snapshot(marked, lease("n1", 50), pods[1]), NOW)
    unreachable = "node.kubernetes.io/unreachable"
    assert taint.obj["spec"] == {"taints": [{"key": unreachable, "effect": "NoSchedule"}]}, "no node is ready"
    marked["spec"] = taint.obj["spec"]
    assert nodes.reconcile_lifecycle("n1", snapshot(marked, lease("n1", 50), pods[1]), NOW) == []


@pytest.mark.parametrize(
    ("conditions", "cordoned", "wanted"),
    [
        ([], False, "not-ready"),
        ([("Ready", "True")], False, ""),
        ([("Ready", "False")], False, "not-ready"),
        ([("Ready", "Unknown")], True, "unreachable unschedulable"),
        ([("Ready", "True"), ("DiskPressure", "True"), ("MemoryPressure", "False")], False, "disk-pressure"),
        ([("Ready", "True"), ("PIDPressure", "True"), ("NetworkUnavailable", "True")], True,
         "network-unavailable pid-pressure unschedulable"),
    ],
)  # fmt: skip
def test_taints_follow_the_conditions(conditions: list[tuple[str, str]], cordoned: bool, wanted: str) -> None:
    own = {"key": "a", "effect": "NoExecute", "timeAdded": "2027-01-15T07:00:00Z"}
    stale = {"key": "node.kubernetes.io/memory-pressure", "effect": "NoSchedule"}
    obj = live("n1", taints=[stale, own], unschedulable=cordoned)
    obj["status"] = {"conditions": [{"type": kind, "status": status} for kind, status in conditions]}
    (change,) = nodes.reconcile_lifecycle("n1", snapshot(obj, lease("n1", 1)), NOW)
    keys = [t["key"].removeprefix("node.kubernetes.io/") for t in change.obj["spec"]["taints"]]
    assert keys[0] == "a" and sorted(keys[1:]) == wanted.split()
    obj["spec"]["taints"] = change.obj["spec"]["taints"]
    assert nodes.reconcile_lifecycle("n1", snapshot(obj, lease("n1", 1)), NOW) == []


def test_pods_leave_a_node_that_is_lost_while_others_are_ready() -> None:
    lost, other = live("n1"), live("n2")
    lost["status"] = {"conditions": [{"type": "Ready", "status": "Unknown"}]}
    (change,) = nodes.reconcile_lifecycle("n1", snapshot(lost, other, lease("n1", 50)), NOW)
    own, stamp = "node.kubernetes.io/unreachable", "2027-01-15T08:00:00Z"
    wanted = [{"key": own, "effect": "NoSchedule"}, {"key": own, "effect": "NoExecute", "timeAdded": stamp}]
    assert change.obj["spec"]["taints"] == wanted
    lost["spec"]["taints"] = wanted
    assert nodes.reconcile_lifecycle("n1", snapshot(lost, other, lease("n1", 60)), NOW + 10) == [], "the time stays"
    lost["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
    (change,) = nodes.reconcile_lifecycle("n1", snapshot(lost, other, lease("n1", 0)), NOW + 20)
    assert change.obj["spec"]["taints"] == []
    theirs = live("n3", taints=[{"key": "a", "effect": "NoExecute"}])
    (change,) = nodes.reconcile_lifecycle("n3", snapshot(theirs, lease("n3", 0)), NOW)
    assert change.obj["spec"]["taints"] == [{"key": "a", "effect": "NoExecute", "timeAdded": stamp}]


@pytest.mark.parametrize(
    ("tolerations", "leaves"),
    [
        ([], 0),
        ([{"key": "a", "operator": "Exists", "tolerationSeconds": 300}], 200),
        ([{"operator": "Exists", "tolerationSeconds": 90}, {"key": "a", "operator": "Exists"}], 0),
        ([{"key": "a", "operator": "Exists"}], None),
        ([{"key": "b", "operator": "Exists"}], 0),
        ([{"key": "a", "operator": "Exists", "effect": "NoSchedule"}], 0),
        ([{"key": "a", "operator": "Exists", "tolerationSeconds": -1}], 0),
    ],
    ids=["none", "later", "the least", "forever", "another", "effect", "negative"],
)
def test_a_pod_stays_as_long_as_it_tolerates(tolerations: list[Object], leaves: float | None) -> None:
    taint = {"key": "a", "effect": "NoExecute", "timeAdded": "2027-01-15T07:58:20Z"}
    here = running("p", "10.0.0.1", "n1")
    here["spec"]["tolerations"] = tolerations
    found = tainteviction.reconcile("default/p", snapshot(here, live("n1", taints=[taint])), NOW)
    if leaves is None:
        assert found == []
    elif leaves:
        assert [(change.verb, change.obj) for change in found] == [("again", {"seconds": leaves})]
    else:
        told, gone = found
        assert told.obj["status"]["conditions"][-1]["reason"] == "DeletionByTaintManager"
        assert gone.verb == "delete" and gone.told and gone.told.reason == "TaintManagerEviction"
    soft = live("n1", taints=[{**taint, "effect": "NoSchedule"}])
    assert tainteviction.reconcile("default/p", snapshot(here, soft), NOW) == []


def test_a_node_that_never_had_a_lease_gets_the_grace_from_its_creation() -> None:
    young = stored(node("n1"), creationTimestamp="2027-01-15T07:59:50Z")
    assert nodes.reconcile_lifecycle("n1", snapshot(young), NOW) == []
    assert len(nodes.reconcile_lifecycle("n1", snapshot(live("n1")), NOW)) == 1


def test_pods_of_a_deleted_node_go() -> None:
    (change,) = nodes.reconcile_lifecycle("n1", snapshot(running("a", "10.0.0.1"), running("b", "10.0.0.2", "n2")), NOW)
    assert (change.verb, change.name, change.obj) == ("delete", "a", {"gracePeriodSeconds": 0})


# ---- cleaning up


def test_garbage_is_what_has_no_owner_left() -> None:
    owner = stored(deployment())
    child = stored(replica_set("child"), ownerReferences=[owner_reference(owner)])

    def collect(*objects: Object) -> list[Write]:
        return cleanup.reconcile_gc("ReplicaSet:default/child", snapshot(*objects), NOW)

    assert collect(child, owner) == [] and collect() == []
    (change,) = collect(child)
    assert (change.verb, change.kind, change.name) == ("delete", "ReplicaSet", "child")
    assert change.obj == {"preconditions": {"uid": "uid-child"}}
    assert len(collect(child, {**owner, "metadata": {**owner["metadata"], "uid": "anew"}})) == 1, (
        "an owner is identified by uid"
    )
    other = stored(service())
    shared = stored(replica_set("child"), ownerReferences=[owner_reference(owner), owner_reference(other)])
    (less,) = collect(shared, other)
    assert less.verb == "patch" and [r["uid"] for r in less.obj["metadata"]["ownerReferences"]] == [uid(other)]
    assert [w.verb for w in collect(shared)] == ["delete"]
    foreign = stored(
        replica_set("child"), ownerReferences=[{"kind": "Widget", "name": "w", "uid": "u", "apiVersion": "x/v1"}]
    )
    (write,) = collect(foreign)
    assert write.unless == (("x/v1:Widget", "default", "w", "u"),), "the driver asks the API for what no cache knows"
    assert collect(stored(child, deletionTimestamp="2027-01-15T08:00:00Z")) == []


def test_an_owner_in_another_namespace_is_none_and_an_event_says_so() -> None:
    owner = stored({**deployment(), "metadata": {"name": "web", "namespace": "other"}}, uid="u")
    child = stored(replica_set("child"), ownerReferences=[{**owner_reference(owner), "uid": "u"}])
    told, gone = cleanup.reconcile_gc("ReplicaSet:default/child", snapshot(owner, child), NOW)
    assert (told.kind, told.obj["reason"]) == ("Event", "OwnerRefInvalidNamespace")
    assert 'does not exist in namespace "default"' in told.obj["message"] and gone.verb == "delete"


@pytest.mark.parametrize("kind", ["ConfigMap", "StatefulSet", "ServiceAccount", "Job"])
def test_objects_of_every_kind_can_be_owners(kind: str) -> None:
    version = {"ConfigMap": "v1", "ServiceAccount": "v1", "StatefulSet": "apps/v1", "Job": "batch/v1"}[kind]
    owner = stored({"apiVersion": version, "kind": kind, "metadata": {"name": "o", "namespace": "default"}})
    child = stored(replica_set("child"), ownerReferences=[owner_reference(owner)])
    assert cleanup.reconcile_gc("ReplicaSet:default/child", snapshot(owner, child), NOW) == []
    (write,) = cleanup.reconcile_gc("ReplicaSet:default/child", snapshot(child), NOW)
    assert write.unless == ((kind, "default", "o", uid(owner)),)
    assert f"{kind}:default/o" in list(cleanup.CONTROLLERS[0].watches["ReplicaSet"](child, snapshot(owner, child)))


def test_a_foreground_deletion_waits_for_those_that_block_and_leaves_those_of_others() -> None:
    owner = stored(deployment(), deletionTimestamp="2027-01-15T08:00:00Z", finalizers=["foregroundDeletion"])
    other, blocks = stored(service("other")), stored(replica_set("blocks"), ownerReferences=[owner_reference(owner)])
    shared = stored(replica_set("shared"), ownerReferences=[owner_reference(owner), owner_reference(other)])

    def steps(*objects: Object) -> list[tuple[str, str]]:
        found = cleanup.reconcile_gc("Deployment:default/web", snapshot(owner, other, *objects), NOW)
        return sorted((w.verb, w.name) for w in found)

    assert steps(blocks, shared) == [("delete", "blocks"), ("patch", "shared")]
    going = stored(blocks, deletionTimestamp="2027-01-15T08:00:01Z")
    assert steps(going) == [], "it waits"
    going["metadata"]["ownerReferences"][0]["blockOwnerDeletion"] = False
    assert steps(going) == [("patch", "web")]


def test_an_owners_end_touches_its_dependents() -> None:
    owner = stored(deployment())
    child = stored(replica_set("child"), ownerReferences=[owner_reference(owner)])
    mapper = cleanup.CONTROLLERS[0].watches["Deployment"]
    assert list(mapper(owner, snapshot(child))) == ["Deployment:default/web", "ReplicaSet:default/child"]
    assert list(mapper(owner, snapshot(child, owner))) == ["Deployment:default/web"]
    anew = stored(deployment(), uid="anew")
    assert list(mapper(owner, snapshot(child, anew))) == ["Deployment:default/web", "ReplicaSet:default/child"]


def test_namespaces_are_emptied_and_then_let_go() -> None:
    space = stored({"kind": "Namespace", "metadata": {"name": "default"}, "spec": {"finalizers": ["kubernetes"]}})
    ending = stored(space, deletionTimestamp="2027-01-15T08:00:00Z")
    held = (stored(service()), stored(pod(), deletionTimestamp="2027-01-15T08:00:30Z"))
    assert cleanup.reconcile_namespace("default", snapshot(space, *held), NOW) == []
    (change,) = cleanup.reconcile_namespace("default", snapshot(ending, *held), NOW)
    assert (change.verb, change.kind, change.name) == ("delete", "Service", "web")
    (last,) = cleanup.reconcile_namespace("default", snapshot(ending), NOW)
    assert last.verb == "finalize" and last.obj["spec"] == {"finalizers": []}
