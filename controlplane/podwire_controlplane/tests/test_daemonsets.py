"""Which nodes a DaemonSet and the scheduler take, and the steps of a DaemonSet's update, as pure functions."""

from __future__ import annotations

from typing import Any

import pytest

from podwire_base.kube.meta import Object
from podwire_base.testing.builders import NOW, meta, node, pod, running, stored
from podwire_controlplane.controllers import affinity, daemonsets, revisions, scheduler
from podwire_controlplane.controllers.base import Write, owner_reference
from podwire_controlplane.controllers.podmaking import REVISION_HASH

from ..testing.builders import snapshot


def ready(own: str, taints: tuple[tuple[str, str], ...] = (), **labelled: str) -> Object:
    made = stored(node(own), status={"conditions": [{"type": "Ready", "status": "True"}]}, labels=labelled)
    made.setdefault("spec", {})["taints"] = [{"key": key, "effect": effect} for key, effect in taints]
    return made


def daemon(template: dict[str, Any] | None = None, **spec: Any) -> Object:
    inner = {"containers": [{"name": "c", "image": "i"}], **(template or {})}
    made = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": meta("d"),
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {}, "spec": inner}, **spec},
    }
    return stored(made)


def held(owner: Object, own: str, on: str, *, new: bool, is_ready: bool = True) -> Object:
    made = running(own, "10.0.0.1", on, ready=is_ready)
    made["metadata"]["ownerReferences"] = [owner_reference(owner)]
    made["metadata"]["labels"] = {"a": "b", REVISION_HASH: revisions.hash_of(owner) if new else "old"}
    return made


def steps(owner: Object, *objects: Object) -> list[str]:
    """Return the writes of pods: the node of a new one, or the name of one that goes."""
    changes: list[Write] = daemonsets.reconcile("default/d", snapshot(owner, *objects), NOW)
    return [f"{c.verb} {affinity.target(c.obj) if c.verb == 'create' else c.name}" for c in changes if c.kind == "Pod"]


def test_taints_keep_it_away_but_for_those_that_daemons_tolerate() -> None:
    all_nodes = (
        ready("cordoned", (("node.kubernetes.io/unschedulable", "NoSchedule"),)),
        ready("full", (("node.kubernetes.io/disk-pressure", "NoSchedule"),)),
        ready("own", (("mine", "NoSchedule"),)),
        ready("young", (("node.kubernetes.io/not-ready", "NoSchedule"),)),
    )
    assert steps(daemon(), *all_nodes) == ["create cordoned", "create full"]
    tolerant = daemon({"tolerations": [{"key": "mine", "operator": "Exists"}]})
    assert steps(tolerant, *all_nodes) == ["create cordoned", "create full", "create own"]


def test_a_pod_stays_under_a_taint_that_only_keeps_new_ones_away() -> None:
    owner = daemon()
    there = held(owner, "p", "n1", new=True)
    assert steps(owner, ready("n1", (("mine", "NoSchedule"),)), there) == []
    assert steps(owner, ready("n1", (("mine", "NoExecute"),)), there) == ["delete p"]
    assert steps(daemon({"nodeSelector": {"a": "b"}}), ready("n1"), there) == ["delete p"]


def test_an_update_takes_away_no_more_than_max_unavailable() -> None:
    owner = daemon()
    all_nodes = [ready(f"n{n}") for n in (1, 2, 3, 4)]
    old = [held(owner, f"p{n}", f"n{n}", new=False) for n in (1, 2, 3, 4)]
    assert steps(owner, *all_nodes, *old) == ["delete p1"]
    two = daemon(updateStrategy={"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "50%"}})
    assert steps(two, *all_nodes, *old) == ["delete p1", "delete p2"]
    sick = [held(owner, "p1", "n1", new=False, is_ready=False), *old[1:]]
    assert steps(owner, *all_nodes, *sick) == ["delete p1"], "one that serves nobody goes first, and counts"
    waiting = [held(owner, "q1", "n1", new=True, is_ready=False), *old[1:]]
    assert steps(owner, *all_nodes, *waiting) == []
    assert steps(daemon(updateStrategy={"type": "OnDelete"}), *all_nodes, *old) == []


def test_an_update_with_surge_makes_the_new_one_first() -> None:
    owner = daemon(updateStrategy={"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}})
    both = [ready("n1"), ready("n2")]
    old = [held(owner, "p1", "n1", new=False), held(owner, "p2", "n2", new=False)]
    assert steps(owner, *both, *old) == ["create n1"]
    assert steps(owner, *both, *old, held(owner, "q1", "n1", new=True, is_ready=False)) == []
    assert steps(owner, *both, *old, held(owner, "q1", "n1", new=True)) == ["delete p1"]


def test_a_pod_that_has_ended_gives_way_and_a_second_one_goes() -> None:
    owner = daemon()
    ended = held(owner, "p", "n1", new=True)
    ended["status"]["phase"] = "Failed"
    assert steps(owner, ready("n1"), ended) == ["delete p"]
    twins = [held(owner, own, "n1", new=True) for own in ("p", "q")]
    assert len(steps(owner, ready("n1"), *twins)) == 1


def _required(*terms: Object) -> Object:
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}
    return {"affinity": {"nodeAffinity": required}}


def _expression(key: str, operator: str, *values: str) -> Object:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


@pytest.mark.parametrize(
    ("spec", "fits"),
    [
        ({}, True),
        (_required(_expression("zone", "In", "a", "b")), True),
        (_required(_expression("zone", "NotIn", "a", "b")), False),
        (_required(_expression("zone", "Exists")), True),
        (_required(_expression("zone", "DoesNotExist")), False),
        (_required(_expression("size", "Gt", "3")), True),
        (_required(_expression("size", "Lt", "3")), False),
        (_required(_expression("zone", "Gt", "3")), False),
        (_required(_expression("zone", "In", "c"), _expression("size", "In", "4")), True),
        (_required({}), False),
        (_required({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}), True),
        (_required({"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}), False),
    ],
)
def test_the_scheduler_heeds_required_node_affinity(spec: Object, fits: bool) -> None:
    (change,) = scheduler.reconcile(
        "default/p", snapshot(stored(pod("p", **spec)), ready("n1", zone="a", size="4")), NOW
    )[:1]
    assert (change.verb == "bind") is fits


def test_a_target_is_beside_what_the_template_asks_for() -> None:
    spec: Object = _required(_expression("zone", "In", "a"), _expression("size", "In", "4"))
    affinity.only(spec, "n2")
    assert not affinity.wants(spec, ready("n1", zone="a")) and affinity.wants(spec, ready("n2", zone="a"))
    assert not affinity.wants(spec, ready("n2", zone="b", size="5"))
    assert affinity.target({"spec": spec}) == "n2"
