"""DaemonSets, StatefulSets and Jobs adopt what their selectors match and release the rest, and their Events tell of
each pod (of a CronJob: Job) that comes and goes.
"""

from __future__ import annotations

import pytest

from podwire_base.kube.meta import Object
from podwire_base.testing.builders import NOW, meta, node, running, stored
from podwire_controlplane.controllers import daemonsets, jobs, statefulsets
from podwire_controlplane.controllers.base import Write, owner_reference
from podwire_controlplane.controllers.jobs import FINALIZER
from podwire_controlplane.controllers.podmaking import telling

from ..testing.builders import snapshot

CONTROLLERS = {"DaemonSet": daemonsets, "StatefulSet": statefulsets, "Job": jobs}


def owner(kind: str) -> Object:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    version = "batch/v1" if kind == "Job" else "apps/v1"
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    return stored({"apiVersion": version, "kind": kind, "metadata": meta("w"), "spec": spec})


def member(own: str, labels: dict[str, str], *owners: Object) -> Object:
    made = stored(running(own, "10.0.0.1", "n1"))
    made["metadata"]["labels"] = labels
    made["metadata"]["ownerReferences"] = [owner_reference(one) for one in owners]
    return made


def writes(kind: str, *objects: Object) -> list[Write]:
    ready = stored(node("n1"), status={"conditions": [{"type": "Ready", "status": "True"}]})
    found: list[Write] = CONTROLLERS[kind].reconcile("default/w", snapshot(*objects, ready), NOW)
    return found


def owners_of(kind: str, *objects: Object) -> dict[str, list[str]]:
    """Return pod -> the owners that a write gives it."""
    return {
        w.name: [ref["name"] for ref in w.obj["metadata"]["ownerReferences"] or []]
        for w in writes(kind, *objects)
        if w.kind == "Pod" and w.verb == "patch" and "ownerReferences" in w.obj["metadata"]
    }


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_pods_are_adopted_and_released(kind: str) -> None:
    mine, other = owner(kind), owner(kind)
    other["metadata"] |= {"name": "other", "uid": "of-another"}
    free, strange = member("w-0", {"a": "b"}), member("w-1", {"a": "c"})
    assert owners_of(kind, mine, free, strange) == {"w-0": ["w"]}
    assert owners_of(kind, mine, member("w-0", {"a": "b"}, other)) == {}, "the pod of another owner"
    assert owners_of(kind, mine, member("w-0", {"a": "c"}, mine)) == {"w-0": []}
    assert "default/w" in list(CONTROLLERS[kind].CONTROLLERS[0].watches["Pod"](free, snapshot(mine, free)))


def test_a_stateful_set_adopts_only_its_own_names() -> None:
    assert owners_of("StatefulSet", owner("StatefulSet"), member("stranger", {"a": "b"})) == {}


def test_a_job_tracks_what_it_adopts() -> None:
    (change,) = [w for w in writes("Job", owner("Job"), member("x", {"a": "b"})) if w.name == "x"]
    assert change.obj["metadata"]["finalizers"] == [FINALIZER]
    held = member("x", {"a": "c"}, owner("Job"))
    held["metadata"]["finalizers"] = ["example.com/own", FINALIZER]
    (change,) = [w for w in writes("Job", owner("Job"), held) if w.name == "x"]
    assert change.obj["metadata"]["finalizers"] == ["example.com/own"]


@pytest.mark.parametrize(
    ("kind", "component", "created"),
    [
        ("DaemonSet", "daemonset-controller", "Created pod: {name}"),
        ("Job", "job-controller", "Created pod: {name}"),
        ("StatefulSet", "statefulset-controller", "create Pod {name} in StatefulSet w successful"),
    ],
)
def test_what_comes_is_told_in_upstreams_words(kind: str, component: str, created: str) -> None:
    made = [w for w in writes(kind, owner(kind)) if w.kind == "Pod" and w.verb == "create"]
    assert made
    for write in made:
        assert write.told is not None
        assert (write.told.reason, write.told.message, write.told.component) == ("SuccessfulCreate", created, component)
        assert write.told.about["kind"] == kind and write.told.failed == "FailedCreate"


def test_a_cron_job_tells_of_jobs_and_not_of_pods() -> None:
    cron = stored({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": meta("c"), "spec": {}})
    job, pod = telling(
        "CronJob", cron, [Write("delete", "Job", "default", "c-1"), Write("delete", "Pod", "default", "p")]
    )
    assert pod.told is None and job.told is not None
    assert (job.told.reason, job.told.message) == ("SuccessfulDelete", "Deleted job {name}")
