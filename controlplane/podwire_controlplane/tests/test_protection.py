"""Storage that is in use stays; new nodes get no pods."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from podwire_base.kube.meta import Object
from podwire_base.testing.builders import NOW, pod, stored

from ..admission import PROTECTED
from ..controllers import protection
from ..testing.builders import World, snapshot

CLAIM: Object = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "data"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
}


def going(kind: str, own: str, space: str = "", **more: Any) -> Object:
    finalizer = PROTECTED[kind]
    metadata: Object = {"name": own, "uid": f"u-{own}", "deletionTimestamp": "2027-01-15T08:00:00Z"}
    metadata["finalizers"] = ["example.com/other", finalizer]
    return {"kind": kind, "metadata": {**metadata, **({"namespace": space} if space else {})}, **more}


def using(own: str, node: str, volume: Object, phase: str = "Running") -> Object:
    made = stored(pod(own))
    made["spec"] |= {"volumes": [{"name": "data", **volume}]} | ({"nodeName": node} if node else {})
    return {**made, "status": {"phase": phase}}


MINE = {"persistentVolumeClaim": {"claimName": "data"}}


@pytest.mark.parametrize(
    ("pods", "released"),
    [
        ([], True),
        ([using("a", "n1", MINE)], False),
        ([using("a", "", MINE)], True),
        ([using("a", "n1", MINE, "Succeeded")], True),
        ([using("a", "n1", {"persistentVolumeClaim": {"claimName": "other"}})], True),
    ],
    ids=["none", "running", "unscheduled", "ended", "another claim"],
)
def test_a_claim_goes_when_no_pod_uses_it(pods: list[Object], released: bool) -> None:
    claim = going("PersistentVolumeClaim", "data", "default")
    changes = protection.reconcile_claim("default/data", snapshot(claim, *pods), NOW)
    assert [c.obj["metadata"]["finalizers"] for c in changes] == [["example.com/other"]] * released


def test_an_ephemeral_volume_uses_the_claim_that_is_called_after_it() -> None:
    claim = going("PersistentVolumeClaim", "a-data", "default")
    user = using("a", "n1", {"ephemeral": {"volumeClaimTemplate": {}}})
    assert protection.reconcile_claim("default/a-data", snapshot(claim, user), NOW) == []


@pytest.mark.parametrize("phase", ["Bound", "Available", "Released"])
def test_a_volume_goes_when_it_is_not_bound(phase: str) -> None:
    volume = going("PersistentVolume", "v", status={"phase": phase})
    changes = protection.reconcile_volume("v", snapshot(volume), NOW)
    assert bool(changes) is (phase != "Bound")


@pytest.mark.parametrize("user", ["", "volume", "claim", "status", "target"])
def test_a_class_goes_when_nothing_names_it(user: str) -> None:
    found = going("VolumeAttributesClass", "gold")
    others: dict[str, Object] = {
        "": {},
        "volume": {"kind": "PersistentVolume", "spec": {"volumeAttributesClassName": "gold"}},
        "claim": {"kind": "PersistentVolumeClaim", "spec": {"volumeAttributesClassName": "gold"}},
        "status": {"kind": "PersistentVolumeClaim", "status": {"currentVolumeAttributesClassName": "gold"}},
        "target": {
            "kind": "PersistentVolumeClaim",
            "status": {"modifyVolumeStatus": {"targetVolumeAttributesClassName": "gold"}},
        },
    }
    held = [{**others[user], "metadata": {"name": "x"}}] if user else []
    assert bool(protection.reconcile_class("gold", snapshot(found, *held), NOW)) == (user == "")


def test_a_deleted_claim_waits_for_its_protection() -> None:
    async def scenario() -> None:
        world = await World().start()
        made = await world.create(CLAIM)
        assert made["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]
        dying, gone = await world.delete("PersistentVolumeClaim", "data")
        assert not gone and dying["metadata"]["deletionTimestamp"]
        (change,) = protection.reconcile_claim("default/data", snapshot(dying), NOW)
        await world.patch("PersistentVolumeClaim", "data", change.obj)
        assert not [key for key in (await world.state())[1] if "claims" in key]

    asyncio.run(scenario())


def test_a_new_node_has_the_taint_once() -> None:
    async def scenario() -> None:
        world = await World().start()
        taint = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}
        made = await world.create({"kind": "Node", "metadata": {"name": "n1"}})
        assert made["spec"]["taints"] == [taint]
        made = await world.create({"kind": "Node", "metadata": {"name": "n2"}, "spec": {"taints": [taint]}})
        assert made["spec"]["taints"] == [taint]

    asyncio.run(scenario())
