"""Evictions and PodDisruptionBudgets: what is allowed and counted, also for evictions of one moment."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object
from podwire_base.testing.builders import NOW, pod, replica_set, stored
from podwire_controlplane.controllers import disruption
from podwire_controlplane.controllers.base import owner_reference
from podwire_controlplane.server.evictions import evict
from podwire_controlplane.server.writes import WriteOptions

from ..testing.builders import World, snapshot
from .test_objects import in_world, refused

READY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
UNREADY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}


def budget(own: str = "pdb", **spec: Any) -> Object:
    wanted = {"selector": {"matchLabels": {"app": "web"}}, **(spec or {"minAvailable": 1})}
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": own, "namespace": "default"},
        "spec": wanted,
    }


async def begin(world: World, count: int, status: Object = READY, allowed: int = 1, **spec: Any) -> None:
    for n in range(count):
        await world.create(pod(f"p{n}", labels={"app": "web"}, nodeName="n1"))
        await world.patch("Pod", f"p{n}", {"status": status}, sub="status")
    await world.create(budget(**spec))
    counted = {"observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": count, "desiredHealthy": 1}
    await world.patch("PodDisruptionBudget", "pdb", {"status": counted}, sub="status")


async def out(world: World, own: str, **options: Any) -> None:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": own}, "deleteOptions": options}
    await evict(world.objects, world.scope("Pod", own, "eviction"), body, WriteOptions())


def test_a_budget_of_one_lets_one_of_many_go() -> None:
    async def work(world: World) -> None:
        await begin(world, 5)
        done = await asyncio.gather(*(out(world, f"p{n}") for n in range(5)), return_exceptions=True)
        assert sum(x is None for x in done) == 1
        for failed in (x for x in done if x is not None):
            assert isinstance(failed, StatusError) and (failed.code, failed.reason) == (429, "TooManyRequests")
            assert [(c.reason, c.message) for c in failed.causes] == [
                ("DisruptionBudget", "The disruption budget pdb needs 1 healthy pods and has 5 currently")
            ]
        status = (await world.get("PodDisruptionBudget", "pdb"))["status"]
        assert status["disruptionsAllowed"] == 0 and len(status["disruptedPods"]) == 1

    in_world(work)


def test_a_budget_that_nobody_has_counted_yet_says_when_to_ask_again() -> None:
    async def work(world: World) -> None:
        await begin(world, 1)
        await world.patch("PodDisruptionBudget", "pdb", {"spec": {"minAvailable": 2}})
        error = await refused(out(world, "p0"), 429, "budget")
        assert error.retry_after == 10 and "still being processed" in error.causes[0].message

    in_world(work)


@pytest.mark.parametrize(
    ("status", "policy", "free"),
    [
        (READY, None, False),
        (UNREADY, None, True),  # enough others are healthy
        (UNREADY, "AlwaysAllow", True),
        ({"phase": "Pending"}, None, True),
        ({"phase": "Succeeded"}, None, True),
    ],
    ids=str,
)
def test_pods_that_need_no_budget(status: Object, policy: str | None, free: bool) -> None:
    async def work(world: World) -> None:
        more = {"unhealthyPodEvictionPolicy": policy} if policy else {}
        await begin(world, 1, status, 0, minAvailable=1, **more)
        if free:
            await out(world, "p0")
        else:
            await refused(out(world, "p0"), 429)
        assert (await world.get("PodDisruptionBudget", "pdb"))["status"].get("disruptedPods") in (None, {})

    in_world(work)


def test_dry_runs_wrong_names_and_preconditions_take_nothing() -> None:
    async def work(world: World) -> None:
        await begin(world, 1)
        await out(world, "p0", dryRun=["All"])
        await refused(out(world, "p0", preconditions={"uid": "other"}), 409)
        await refused(out(world, "ghost"), 404)
        body = {"metadata": {"name": "p1"}}
        await refused(evict(world.objects, world.scope("Pod", "p0"), body, WriteOptions()), 400, "name in URL")
        assert (await world.get("PodDisruptionBudget", "pdb"))["status"]["disruptionsAllowed"] == 1
        await world.get("Pod", "p0")

    in_world(work)


def test_who_may_not_delete_a_pod_takes_nothing_from_its_budget() -> None:
    class Closed:
        def deleted(self, _user: Any, resource: Any, obj: Object) -> None:
            raise StatusError(403, "Forbidden", "not yours", resource=resource, name=obj["metadata"]["name"])

    async def work(world: World) -> None:
        await begin(world, 1)
        world.objects.gate = Closed()  # type: ignore[assignment]  # one of its methods is asked
        await refused(out(world, "p0"), 403, "not yours")
        world.objects.gate = None
        assert (await world.get("PodDisruptionBudget", "pdb"))["status"]["disruptionsAllowed"] == 1

    in_world(work)


# ---- the controller

OWNER = stored(replica_set(replicas=4))


def pods(count: int, ready: int) -> list[Object]:
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    made = [stored(pod(f"p{n}", labels={"app": "web"}, nodeName="n1"), status=dict(status)) for n in range(count)]
    for one in made[ready:]:
        one["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    for one in made:
        one["metadata"]["ownerReferences"] = [owner_reference(OWNER)]
    return made


@pytest.mark.parametrize(
    ("spec", "ready", "expected", "desired", "allowed"),
    [
        ({"minAvailable": 2}, 4, 4, 2, 2),
        ({"minAvailable": 2}, 1, 4, 2, 0),
        ({"minAvailable": "50%"}, 3, 4, 2, 1),
        ({"minAvailable": "51%"}, 4, 4, 3, 1),
        ({"maxUnavailable": 1}, 4, 4, 3, 1),
        ({"maxUnavailable": "30%"}, 4, 4, 2, 2),
        ({"maxUnavailable": 9}, 0, 4, 0, 0),
    ],
    ids=str,
)
def test_what_the_controller_counts(spec: Object, ready: int, expected: int, desired: int, allowed: int) -> None:
    own = stored(budget(**spec))
    (write,) = disruption.reconcile_budget("default/pdb", snapshot(own, OWNER, *pods(4, ready)), NOW)
    status = write.obj["status"]
    assert (status["expectedPods"], status["desiredHealthy"], status["disruptionsAllowed"]) == (
        expected,
        desired,
        allowed,
    )
    assert status["conditions"][0]["reason"] == ("SufficientPods" if allowed else "InsufficientPods")
    own["status"] = status
    assert disruption.reconcile_budget("default/pdb", snapshot(own, OWNER, *pods(4, ready)), NOW) == []


def test_an_eviction_counts_until_its_pod_is_seen_to_go() -> None:
    own = stored(budget(minAvailable=1), status={"disruptedPods": {"p0": "2027-01-15T08:00:00Z"}})
    for now, allowed in ((NOW, 2), (NOW + 121, 3)):
        (write,) = disruption.reconcile_budget("default/pdb", snapshot(own, OWNER, *pods(4, 4)), now)
        assert write.obj["status"]["disruptionsAllowed"] == allowed
