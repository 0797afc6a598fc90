"""ReplicaSets and Deployments as pure functions, and a rolling update simulated in every order of events."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from podwire_base.kube import patch
from podwire_base.kube.meta import Object, labels, name
from podwire_base.testing.builders import NOW, deployment, pod, replica_set, running, stored
from podwire_controlplane.controllers import claiming, workloads
from podwire_controlplane.controllers.base import Snapshot, Write, owner_reference

from ..testing.builders import snapshot

OWNER = stored(replica_set(replicas=3))


def owned(made: Object) -> Object:
    made["metadata"]["ownerReferences"] = [owner_reference(OWNER)]
    return made


def replicas(*pods: Object, wanted: int = 3) -> list[Write]:
    owner = {**OWNER, "spec": {**OWNER["spec"], "replicas": wanted}}
    return [c for c in workloads.reconcile_replica_set("default/web", snapshot(owner, *pods), NOW) if c.kind == "Pod"]


def test_missing_pods_are_made_from_the_template() -> None:
    changes = replicas(
        owned(running("a", "10.0.0.1")),
        owned(stored(pod("done"), status={"phase": "Failed"})),
        owned(running("going", "10.0.0.2", deleted=True)),
        stored(pod("stranger", labels={"app": "other"})),
    )
    assert [c.verb for c in changes] == ["create", "create"]
    made = changes[0].obj
    assert made["metadata"]["generateName"] == "web-" and labels(made) == {"app": "web"}
    assert made["metadata"]["ownerReferences"] == [owner_reference(OWNER)]
    assert made["spec"] == OWNER["spec"]["template"]["spec"] and made["spec"] is not OWNER["spec"]["template"]["spec"]


def test_pods_are_adopted_and_released_by_the_selector() -> None:
    other = {**OWNER, "metadata": {**OWNER["metadata"], "uid": "other"}}
    theirs = running("theirs", "10.0.0.4")
    theirs["metadata"]["ownerReferences"] = [owner_reference(other)]
    lost = owned(running("lost", "10.0.0.1"))
    lost["metadata"]["labels"] = {"app": "debug"}
    lost["metadata"]["ownerReferences"] += [{"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "c"}]
    changes = replicas(
        running("orphan", "10.0.0.2"), lost, theirs, running("going", "10.0.0.3", deleted=True), wanted=2
    )
    written = {(c.verb, c.name): c.obj for c in changes}
    assert written.keys() == {("patch", "orphan"), ("patch", "lost"), ("create", "")}
    assert written[("patch", "orphan")]["metadata"]["ownerReferences"] == [owner_reference(OWNER)]
    assert [ref["kind"] for ref in written[("patch", "lost")]["metadata"]["ownerReferences"]] == ["ConfigMap"]
    assert all(written[("patch", own)]["metadata"]["uid"] for own in ("orphan", "lost"))


def test_an_object_without_a_controller_wakes_those_that_select_it() -> None:
    found, orphan = snapshot(OWNER), running("orphan", "10.0.0.2")
    mapper = claiming.claimants("ReplicaSet")
    assert list(mapper(orphan, found)) == ["default/web"]
    assert list(mapper(stored(pod("x", labels={"app": "other"})), found)) == []
    assert list(mapper(owned(running("mine", "10.0.0.3")), found)) == ["default/web"]


def test_a_deployment_adopts_its_replica_set() -> None:
    made = stored(deployment())
    (new,) = [c for c in workloads.reconcile_deployment("default/web", snapshot(made), NOW) if c.verb == "create"]
    assert new.told is not None and new.told.message == f"Scaled up replica set {new.name} from 0 to 3"
    orphan = stored(copy.deepcopy(new.obj))
    del orphan["metadata"]["ownerReferences"]
    changes = workloads.reconcile_deployment("default/web", snapshot(made, orphan), NOW)
    assert [(c.verb, c.name) for c in changes if c.kind == "ReplicaSet"] == [("patch", new.name)]
    assert changes[0].obj["metadata"]["ownerReferences"] == [owner_reference(made)]


def test_surplus_pods_go_in_the_order_that_hurts_least() -> None:
    young = stored(running("young", "10.0.0.2"), creationTimestamp="2027-01-15T07:59:00Z")
    pods = [
        owned(p)
        for p in (
            running("old", "10.0.0.1"),
            young,
            running("unready", "10.0.0.3", ready=False),
            stored(pod("pending")),
        )
    ]
    order = [[c.name for c in replicas(*pods, wanted=n)] for n in (3, 2, 1, 0)]
    assert order[-1] == ["pending", "unready", "young", "old"] and order == [order[-1][:n] for n in (1, 2, 3, 4)]


def test_status_counts_and_settles() -> None:
    pods = [
        owned(running("a", "10.0.0.1")),
        owned(running("b", "10.0.0.2", ready=False)),
        owned(running("c", "10.0.0.3")),
    ]
    (change,) = workloads.reconcile_replica_set("default/web", snapshot(OWNER, *pods), NOW)
    assert change.verb == "status" and change.obj["status"] == {
        "replicas": 3,
        "fullyLabeledReplicas": 3,
        "readyReplicas": 2,
        "availableReplicas": 2,
        "observedGeneration": 1,
    }
    assert workloads.reconcile_replica_set("default/web", snapshot({**OWNER, **change.obj}, *pods), NOW) == []
    assert workloads.reconcile_replica_set("default/none", snapshot(), NOW) == []
    gone = stored(OWNER, deletionTimestamp="2027-01-15T08:00:00Z")
    assert workloads.reconcile_replica_set("default/web", snapshot(gone), NOW) == []


@pytest.mark.parametrize(
    ("value", "count", "up", "expected"),
    [
        (2, 10, True, 2),
        ("25%", 10, True, 3),
        ("25%", 10, False, 2),
        ("0%", 10, True, 0),
        ("100%", 3, False, 3),
        ("25%", 1, False, 0),
        ("25%", 1, True, 1),
    ],
)
def test_percentages(value: Any, count: int, up: bool, expected: int) -> None:
    assert workloads.resolve(value, count, up=up) == expected


def test_template_hash_tells_templates_apart() -> None:
    one, two = deployment()["spec"]["template"], deployment()["spec"]["template"]
    assert workloads.template_hash(one) == workloads.template_hash(dict(reversed(one.items())))
    two["spec"]["containers"][0]["image"] = "podwire.io/host"
    assert workloads.template_hash(one) != workloads.template_hash(two)


class World:
    """A cluster in memory: it applies the controllers' changes like the API server and a slow kubelet."""

    def __init__(self, made: Object) -> None:
        self.kinds: dict[str, dict[str, Object]] = {"Deployment": {}, "ReplicaSet": {}, "Pod": {}}
        self.kinds["Deployment"]["default/web"] = stored(made)
        self.numbers = itertools.count()

    @property
    def deployment(self) -> Object:
        return self.kinds["Deployment"]["default/web"]

    def pods(self) -> list[Object]:
        return list(self.kinds["Pod"].values())

    def ready(self) -> int:
        return sum(p["status"]["conditions"][0]["status"] == "True" for p in self.pods())

    def _apply(self, change: Write) -> None:
        table = self.kinds[change.kind]
        if change.verb == "create":
            own = change.name or f"pod-{next(self.numbers):03}"
            obj = copy.deepcopy(change.obj)
            obj["metadata"]["name"] = own
            status = {"conditions": [{"type": "Ready", "status": "False"}]} if change.kind == "Pod" else None
            table[f"default/{own}"] = stored(obj, status=status)
        elif change.verb == "delete":
            del table[f"default/{change.name}"]
        else:
            table[f"default/{change.name}"] = patch.merge(table[f"default/{change.name}"], change.obj)

    def step(self, which: str, number: int = 0) -> None:
        """Run one controller once, or change the readiness of one pod."""
        seen = Snapshot(self.kinds)
        if which == "deployment":
            changes = workloads.reconcile_deployment("default/web", seen, NOW)
        elif which == "replicasets":
            sets = sorted(self.kinds["ReplicaSet"])
            changes = workloads.reconcile_replica_set(sets[number % len(sets)], seen, NOW) if sets else []
        else:
            pods = self.pods()
            if pods:
                pods[number % len(pods)]["status"]["conditions"][0]["status"] = "False" if which == "break" else "True"
            changes = []
        for change in changes:
            self._apply(change)

    def settle(self) -> None:
        for _ in range(200):
            before = copy.deepcopy(self.kinds)
            self.step("deployment")
            for number in range(len(self.kinds["ReplicaSet"])):
                self.step("replicasets", number)
            for number in range(len(self.pods())):
                self.step("ready", number)
            if self.kinds == before:
                return
        raise AssertionError("it does not converge")


def test_from_nothing_to_ready() -> None:
    world = World(deployment(replicas=3))
    world.settle()
    status = world.deployment["status"]
    assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (3, 3, 3)
    assert {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]} == {
        "Available": ("True", "MinimumReplicasAvailable"),
        "Progressing": ("True", "NewReplicaSetAvailable"),
    }
    (found,) = world.kinds["ReplicaSet"].values()
    assert name(found) == f"web-{labels(found)[workloads.HASH]}"
    assert all(labels(p)[workloads.HASH] == labels(found)[workloads.HASH] for p in world.pods())


def test_roll_back_takes_the_old_set_again() -> None:
    world = World(deployment(replicas=2))
    world.settle()
    first = set(world.kinds["ReplicaSet"])
    for image in ("podwire.io/host", "podwire.io/echo"):
        world.deployment["spec"]["template"]["spec"]["containers"][0]["image"] = image
        world.settle()
    assert len(world.kinds["ReplicaSet"]) == 2
    live = [s for s in world.kinds["ReplicaSet"].values() if s["spec"]["replicas"]]
    assert {f"default/{name(s)}" for s in live} == first
    assert live[0]["metadata"]["annotations"][workloads.REVISION] == "3"


def test_old_sets_are_kept_up_to_the_limit() -> None:
    world = World(deployment(replicas=1, revisionHistoryLimit=2))
    for n in range(5):
        world.deployment["spec"]["template"]["metadata"]["labels"]["n"] = str(n)
        world.settle()
    assert len(world.kinds["ReplicaSet"]) == 3


def test_paused_deployments_do_not_roll() -> None:
    world = World(deployment(replicas=2))
    world.settle()
    world.deployment["spec"]["paused"] = True
    world.deployment["spec"]["template"]["metadata"]["labels"]["n"] = "2"
    world.settle()
    assert sum(s["spec"]["replicas"] for s in world.kinds["ReplicaSet"].values() if "n" in labels(s)) == 0


def test_recreate_never_runs_both() -> None:
    world = World(deployment(replicas=2, strategy={"type": "Recreate"}))
    world.settle()
    old = {name(p) for p in world.pods()}
    world.deployment["spec"]["template"]["metadata"]["labels"]["n"] = "2"
    for _ in range(20):
        for which in ("deployment", "replicasets", "replicasets", "ready", "ready"):
            world.step(which, _)
            names = {name(p) for p in world.pods()}
            assert names <= old or not names & old
    world.settle()
    assert len(world.pods()) == 2 and not {name(p) for p in world.pods()} & old


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["deployment", "replicasets", "replicasets", "ready", "ready", "template"]), st.integers(0, 20)
    ),
    max_size=60,
)


@given(st.integers(1, 6), st.sampled_from([0, 1, 2, "25%", "50%"]), st.sampled_from([0, 1, 2, "25%", "50%"]), _STEPS)
# the old ReplicaSet's controller has not run yet
@example(1, 0, 0, [("template", 0), *[("deployment", 0)] * 3, ("replicasets", 0)])
def test_rolling_update_keeps_its_limits(
    count: int, surge: Any, unavailable: Any, steps: list[tuple[str, int]]
) -> None:
    """There are never more than replicas + maxSurge pods, or fewer than replicas - maxUnavailable ready pods."""
    world = World(
        deployment(
            replicas=count,
            strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
        )
    )
    world.settle()
    most = count + workloads.resolve(surge, count, up=True)
    least = count - (workloads.resolve(unavailable, count, up=False) or int(most == count))
    for number, (which, at) in enumerate(steps):
        if which == "template":
            world.deployment["spec"]["template"]["metadata"]["labels"]["n"] = str(number)
        else:
            world.step(which, at)
        assert len(world.pods()) <= most
        assert world.ready() >= least
    world.settle()
    assert len(world.pods()) == world.ready() == count
    digest = workloads.template_hash(world.deployment["spec"]["template"])
    assert all(labels(p)[workloads.HASH] == digest for p in world.pods())
