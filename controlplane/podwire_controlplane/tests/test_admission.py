"""Built-in admission: what a new pod gets from its ServiceAccount, its classes and the LimitRanges of its namespace.

Recorded answers of a real server replay in test_recordings.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object
from podwire_base.testing.builders import meta, pod
from podwire_controlplane import admission

from ..testing.builders import World
from .test_objects import in_world, refused


def test_a_token_is_mounted_where_the_account_is() -> None:
    async def work(world: World) -> None:
        first = await world.create(pod("early"))
        assert first["spec"]["serviceAccountName"] == "default" and "volumes" not in first["spec"]
        await world.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}})
        made = await world.create(pod("late"))
        (volume,) = made["spec"]["volumes"]
        (mount,) = made["spec"]["containers"][0]["volumeMounts"]
        assert volume["name"] == mount["name"] and mount["mountPath"] == admission.TOKEN_PATH
        without = await world.create(pod("without", automountServiceAccountToken=False))
        assert "volumes" not in without["spec"]
        await refused(world.create(pod("lost", serviceAccountName="nobody")), 403, "nobody")

    in_world(work)


@pytest.mark.parametrize(
    ("spec", "classes", "value"),
    [
        ({}, [], (0, "PreemptLowerPriority", None)),
        ({}, [("low", 5, True)], (5, "PreemptLowerPriority", "low")),
        ({"priorityClassName": "high"}, [("low", 5, True), ("high", 9, False)], (9, "PreemptLowerPriority", "high")),
        (
            {"priorityClassName": "system-node-critical"},
            [],
            (2_000_001_000, "PreemptLowerPriority", "system-node-critical"),
        ),
        ({"priority": 7}, [], None),
        ({"priorityClassName": "ghost"}, [], None),
        ({"preemptionPolicy": "Never"}, [], None),
    ],
)
def test_priority(spec: Object, classes: list[tuple[str, int, bool]], value: Any) -> None:
    found = [{"metadata": meta(n, ""), "value": v, "globalDefault": d} for n, v, d in classes]
    made = pod(**spec)
    if value is None:
        with pytest.raises(StatusError) as caught:
            admission.priority(made, {"PriorityClass": found})
        assert caught.value.code == 403
        return
    admission.priority(made, {"PriorityClass": found})
    assert tuple(made["spec"].get(f) for f in ("priority", "preemptionPolicy", "priorityClassName")) == value


def test_limits_fill_what_a_container_does_not_name() -> None:
    rule = {"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m"}}
    made = pod()
    made["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "2"}}
    admission.limits(made, {"LimitRange": [{"spec": {"limits": [rule, {"type": "Pod", "max": {"cpu": "9"}}]}}]})
    parts = made["spec"]["containers"][0]["resources"]
    assert parts == {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "100m"}}
    told = "LimitRanger plugin set: cpu request for container c; memory limit for container c"
    assert made["metadata"]["annotations"]["kubernetes.io/limit-ranger"] == told


def test_tolerations_come_back_with_every_update() -> None:
    made = pod(tolerations=[{"key": admission._TOLERATED[0], "operator": "Exists"}])
    admission.tolerations(made, {})
    assert [t["key"] for t in made["spec"]["tolerations"]] == list(admission._TOLERATED)
    again = [dict(t) for t in made["spec"]["tolerations"]]
    admission.tolerations(made, {})
    assert made["spec"]["tolerations"] == again


def test_default_classes() -> None:
    note = {"storageclass.kubernetes.io/is-default-class": "true"}
    classes = [
        {"metadata": meta(n, "", annotations=note, creationTimestamp=f"2027-01-0{d}T00:00:00Z")}
        for n, d in (("old", 1), ("new", 2))
    ]
    claim: Object = {"kind": "PersistentVolumeClaim", "metadata": meta("c"), "spec": {}}
    admission.storage_class(claim, {"StorageClass": classes})
    assert claim["spec"]["storageClassName"] == "new"
    claim["spec"]["storageClassName"] = ""
    admission.storage_class(claim, {"StorageClass": classes})
    assert claim["spec"]["storageClassName"] == "", "an empty name asks for no class"
