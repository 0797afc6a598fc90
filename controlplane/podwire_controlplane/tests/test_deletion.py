"""Deletion: preconditions, finalizers, the grace period of pods, namespaces."""

from __future__ import annotations

import pytest

from podwire_base.testing.builders import deployment, pod, version

from ..server import subresources
from ..testing.builders import World
from .test_objects import in_world, refused


def test_delete_is_at_once_and_once() -> None:
    async def work(world: World) -> None:
        await world.create(deployment())
        assert (await world.delete("Deployment", "web"))[1]
        await refused(world.delete("Deployment", "web"), 404, "web")
        await refused(world.get("Deployment", "web"), 404)

    in_world(work)


@pytest.mark.parametrize("field", ["uid", "resourceVersion"])
def test_preconditions(field: str) -> None:
    async def work(world: World) -> None:
        made = await world.create(deployment())
        await refused(world.delete("Deployment", "web", preconditions={field: "77"}), 409, "precondition")
        assert (await world.delete("Deployment", "web", preconditions={field: made["metadata"][field]}))[1]

    in_world(work)


def test_finalizers_hold_the_object_until_they_are_gone() -> None:
    async def work(world: World) -> None:
        held = deployment()
        held["metadata"]["finalizers"] = ["a.example/one", "a.example/two"]
        await world.create(held)
        marked, gone = await world.delete("Deployment", "web")
        assert not gone and marked["metadata"]["deletionTimestamp"] == "2027-01-15T08:00:00Z"
        again, gone = await world.delete("Deployment", "web")
        assert not gone and version(again) == version(marked), "a second deletion changes nothing"
        cleared = await world.patch("Deployment", "web", {"metadata": {"deletionTimestamp": None}})
        assert cleared["metadata"]["deletionTimestamp"], "a deletion cannot be revoked"
        await world.patch("Deployment", "web", {"metadata": {"finalizers": ["a.example/two"]}})
        await world.get("Deployment", "web")
        await world.patch("Deployment", "web", {"metadata": {"finalizers": None}})
        await refused(world.get("Deployment", "web"), 404)

    in_world(work)


def test_pods_on_a_node_wait_for_the_node() -> None:
    async def work(world: World) -> None:
        await world.create(pod(nodeName="n1", terminationGracePeriodSeconds=60))
        marked, gone = await world.delete("Pod", "p1")
        assert not gone and marked["metadata"]["deletionGracePeriodSeconds"] == 60
        assert marked["metadata"]["deletionTimestamp"] == "2027-01-15T08:01:00Z"
        world.now += 10
        same, _ = await world.delete("Pod", "p1", gracePeriodSeconds=300)
        assert version(same) == version(marked), "a later deletion cannot make the wait longer"
        shorter, gone = await world.delete("Pod", "p1", gracePeriodSeconds=5)
        assert not gone and shorter["metadata"]["deletionTimestamp"] == "2027-01-15T08:00:15Z"
        assert (await world.delete("Pod", "p1", gracePeriodSeconds=0))[1]

    in_world(work)


def test_pods_that_nobody_runs_go_at_once() -> None:
    async def work(world: World) -> None:
        await world.create(pod("unscheduled"))
        await world.create(pod("ended", nodeName="n1"))
        await world.patch("Pod", "ended", {"status": {"phase": "Succeeded"}}, sub="status")
        for own in ("unscheduled", "ended"):
            assert (await world.delete("Pod", own))[1]

    in_world(work)


def test_pod_with_finalizer_and_grace_needs_both_to_end() -> None:
    async def work(world: World) -> None:
        held = pod(nodeName="n1")
        held["metadata"]["finalizers"] = ["a.example/one"]
        await world.create(held)
        await world.delete("Pod", "p1")
        await world.patch("Pod", "p1", {"metadata": {"finalizers": None}})
        await world.get("Pod", "p1")
        assert (await world.delete("Pod", "p1", gracePeriodSeconds=0))[1]

    in_world(work)


def test_namespaces_are_emptied_first() -> None:
    async def work(world: World) -> None:
        await world.create({"kind": "Namespace", "metadata": {"name": "old"}})
        marked, gone = await world.delete("Namespace", "old")
        assert not gone and marked["status"]["phase"] == "Terminating"
        again, gone = await world.delete("Namespace", "old")
        assert not gone and version(again) == version(marked)
        await world.patch("Namespace", "old", {"spec": {"finalizers": []}})
        await world.get("Namespace", "old")  # only the finalize subresource removes that one
        await world.store.put("/core/configmaps/old/left", b'{"metadata":{"name":"left"}}')
        await refused(subresources.finalize(world.objects, "old", {"spec": {"finalizers": []}}), 409, "configmaps")
        await world.store.delete("/core/configmaps/old/left")
        await subresources.finalize(world.objects, "old", {"spec": {"finalizers": []}})
        await refused(world.get("Namespace", "old"), 404)
        await refused(subresources.finalize(world.objects, "old", {"spec": {"finalizers": []}}), 404)

    in_world(work)


@pytest.mark.parametrize("own", ["default", "kube-system", "kube-public"])
def test_namespaces_that_the_cluster_needs_stay(own: str) -> None:
    async def work(world: World) -> None:
        if own != "default":
            await world.create({"kind": "Namespace", "metadata": {"name": own}})
        await refused(world.delete("Namespace", own), 403, "may not be deleted")
        assert not (await world.get("Namespace", own))["metadata"].get("deletionTimestamp")

    in_world(work)


def test_propagation_policies_are_finalizers_and_unknown_ones_are_refused() -> None:
    async def work(world: World) -> None:
        for policy, finalizer in (("Orphan", "orphan"), ("Foreground", "foregroundDeletion")):
            await world.create(deployment(policy.lower()))
            marked, gone = await world.delete("Deployment", policy.lower(), propagationPolicy=policy)
            assert not gone and marked["metadata"]["finalizers"] == [finalizer]
        await world.create(deployment("plain"))
        await refused(
            world.delete("Deployment", "plain", propagationPolicy="Sideways"), 400, "Background, Orphan, Foreground"
        )
        _, gone = await world.delete("Deployment", "plain", propagationPolicy="Background")
        assert gone

    in_world(work)
