"""DaemonSets, StatefulSets, Jobs, CronJobs and ReplicationControllers with the real server, whose rules judge every
write of the controllers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from podwire_base.kube.conditions import is_true
from podwire_base.kube.meta import Object, labels, name
from podwire_base.kube.registry import of
from podwire_base.testing.builders import node
from podwire_controlplane.controllers import cronjobs, daemonsets, jobs, statefulsets

from .test_driver import Cluster, in_cluster

PODS = "/api/v1/namespaces/default/pods"
MORE = (*daemonsets.CONTROLLERS, *statefulsets.CONTROLLERS, *jobs.CONTROLLERS, *cronjobs.CONTROLLERS)


def of_kind(kind: str, own: str, spec: dict[str, Any], version: str = "apps/v1") -> Object:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": own, "namespace": "default"}, "spec": spec}


def template(image: str = "podwire.io/echo", **spec: Any) -> Object:
    return {
        "metadata": {"labels": {"app": "a"}},
        "spec": {"containers": [{"name": "c", "image": image}], **spec},
    }


SELECTOR = {"matchLabels": {"app": "a"}}


class World(Cluster):
    """`ends`: the phase that each running pod gets next, by the pod's name; pods not named go on."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster.api)

    async def make(self, obj: Object) -> None:
        await self.api.create(of(obj["kind"]).path("default"), obj)

    async def get(self, kind: str, own: str) -> Object:
        found: Object = await self.api.get(of(kind).path("default", own))
        return found

    async def pods(self) -> dict[str, Object]:
        return {name(p): p for p in await self.items(PODS)}

    async def end(self, pod: str, phase: str) -> None:
        await self.api.patch(f"{PODS}/{pod}/status", {"status": {"phase": phase, "conditions": []}})

    async def status(self, kind: str, own: str, **wanted: Any) -> None:
        """Wait until the object's status has these values."""
        found: Object = {}

        async def holds() -> bool:
            nonlocal found
            found = (await self.get(kind, own)).get("status") or {}
            return all((found.get(field) or 0) == value for field, value in wanted.items())

        try:
            await self.until(holds)
        except TimeoutError:
            raise AssertionError(f"{kind} {own}: {wanted} is not in {found}") from None


def in_world(work: Callable[[World], Awaitable[None]]) -> None:
    async def body(cluster: Cluster) -> None:
        await work(World(cluster))

    in_cluster(body, *MORE)


def test_a_daemon_runs_on_every_node_and_rolls() -> None:
    async def work(world: World) -> None:
        await world.make(of_kind("DaemonSet", "d", {"selector": SELECTOR, "template": template()}))
        await world.status("DaemonSet", "d", numberAvailable=3, desiredNumberScheduled=3, numberMisscheduled=0)
        pods = await world.pods()
        assert sorted(p["spec"]["nodeName"] for p in pods.values()) == ["n1", "n2", "n3"]
        await world.api.create("/api/v1/nodes", node("n4"))
        ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        await world.api.patch("/api/v1/nodes/n4/status", ready)
        await world.status("DaemonSet", "d", numberAvailable=4)
        changed = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "podwire.io/host"}]}}}}
        await world.api.patch(of("DaemonSet").path("default", "d"), changed)
        await world.status("DaemonSet", "d", updatedNumberScheduled=4, numberAvailable=4, observedGeneration=2)
        assert {p["spec"]["containers"][0]["image"] for p in (await world.pods()).values()} == {"podwire.io/host"}
        revisions = await world.items("/apis/apps/v1/namespaces/default/controllerrevisions")
        assert sorted(r["revision"] for r in revisions) == [1, 2]
        await world.api.patch("/api/v1/nodes/n4", {"metadata": {"labels": {"no": "daemon"}}})
        not_there = {"key": "no", "operator": "DoesNotExist"}
        wanted = {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [not_there]}]}
        }
        narrow = {"spec": {"template": {"spec": {"affinity": {"nodeAffinity": wanted}}}}}
        await world.api.patch(of("DaemonSet").path("default", "d"), narrow)
        await world.status("DaemonSet", "d", desiredNumberScheduled=3, numberAvailable=3, updatedNumberScheduled=3)

        async def left() -> bool:
            return sorted(p["spec"]["nodeName"] for p in (await world.pods()).values()) == ["n1", "n2", "n3"]

        await world.until(left)

    in_world(work)


def test_a_stateful_set_starts_rolls_and_shrinks_in_order() -> None:
    async def work(world: World) -> None:
        spec = {
            "serviceName": "s",
            "replicas": 3,
            "selector": SELECTOR,
            "template": template(),
            "updateStrategy": {"rollingUpdate": {"partition": 2}},
        }
        await world.make(of_kind("StatefulSet", "s", spec))
        await world.status("StatefulSet", "s", readyReplicas=3, currentReplicas=3)
        pods = await world.pods()
        assert sorted(pods) == ["s-0", "s-1", "s-2"]

        async def told() -> bool:
            found = {
                e["message"] for e in await world.items(of("Event").path("default")) if e["reason"].startswith("Succ")
            }
            return found == {f"create Pod s-{n} in StatefulSet s successful" for n in range(3)}

        await world.until(told)
        assert pods["s-1"]["spec"]["hostname"] == "s-1" and pods["s-1"]["spec"]["subdomain"] == "s"
        assert labels(pods["s-1"])["apps.kubernetes.io/pod-index"] == "1"
        path = of("StatefulSet").path("default", "s")
        changed = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "podwire.io/host"}]}}}}
        await world.api.patch(path, changed)
        await world.status("StatefulSet", "s", updatedReplicas=1, readyReplicas=3)

        async def images() -> list[str]:
            return [p["spec"]["containers"][0]["image"] for _, p in sorted((await world.pods()).items())]

        echo, host = "podwire.io/echo", "podwire.io/host"
        assert await images() == [echo, echo, host]
        await world.api.delete(f"{PODS}/s-0")  # below the partition the former template is kept

        async def again() -> bool:
            return (
                await images() == [echo, echo, host]
                and (await world.pods())["s-0"]["metadata"]["uid"] != pods["s-0"]["metadata"]["uid"]
            )

        await world.until(again)
        await world.api.patch(path, {"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}})
        await world.status("StatefulSet", "s", updatedReplicas=3, readyReplicas=3, currentReplicas=3)
        assert await images() == [host] * 3
        status = (await world.get("StatefulSet", "s"))["status"]
        assert status["currentRevision"] == status["updateRevision"]
        await world.api.patch(path, {"spec": {"replicas": 1}})
        await world.status("StatefulSet", "s", replicas=1)
        assert sorted(await world.pods()) == ["s-0"]

    in_world(work)


def test_claims_of_a_stateful_set_outlive_its_pods() -> None:
    async def work(world: World) -> None:
        claim = {
            "metadata": {"name": "data"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }
        spec = {
            "serviceName": "s",
            "replicas": 2,
            "podManagementPolicy": "Parallel",
            "selector": SELECTOR,
            "template": template(),
            "volumeClaimTemplates": [claim],
        }
        await world.make(of_kind("StatefulSet", "s", spec))
        await world.status("StatefulSet", "s", readyReplicas=2)
        assert (await world.pods())["s-1"]["spec"]["volumes"][0] == {
            "name": "data",
            "persistentVolumeClaim": {"claimName": "data-s-1"},
        }
        await world.api.patch(of("StatefulSet").path("default", "s"), {"spec": {"replicas": 0}})
        await world.status("StatefulSet", "s", replicas=0)
        claims = await world.items("/api/v1/namespaces/default/persistentvolumeclaims")
        assert [name(c) for c in claims] == ["data-s-0", "data-s-1"]

    in_world(work)


def _job(own: str = "j", **spec: Any) -> Object:
    return of_kind("Job", own, {"template": template(restartPolicy="Never"), **spec}, "batch/v1")


async def _running(world: World, count: int) -> dict[str, Object]:
    found: dict[str, Object] = {}

    async def there() -> bool:
        nonlocal found
        found = {n: p for n, p in (await world.pods()).items() if p["status"].get("phase") == "Running"}
        return len(found) == count

    await world.until(there)
    return found


def test_a_job_counts_each_end_once_also_of_deleted_pods() -> None:
    async def work(world: World) -> None:
        await world.make(_job(completions=3, parallelism=2))
        for done in range(3):
            pods = await _running(world, 2 if done < 2 else 1)
            own = min(pods)
            assert "batch.kubernetes.io/job-tracking" in pods[own]["metadata"]["finalizers"]
            await world.end(own, "Succeeded")
            await world.status("Job", "j", succeeded=done + 1)
            await world.api.delete(f"{PODS}/{own}")  # its end stays counted
        await world.status("Job", "j", succeeded=3, active=0, failed=0)
        job = await world.get("Job", "j")
        assert is_true(job, "Complete") and job["status"]["completionTime"]
        assert all(not p["metadata"].get("finalizers") for p in (await world.pods()).values())
        events = [e["reason"] for e in await world.items("/api/v1/namespaces/default/events")]
        assert events.count("Completed") == 1

    in_world(work)


def test_a_job_gives_up_after_its_limit_and_ends_what_runs() -> None:
    async def work(world: World) -> None:
        await world.make(_job(completions=2, parallelism=2, backoffLimit=0))
        pods = await _running(world, 2)
        await world.end(min(pods), "Failed")

        async def failed() -> bool:
            return is_true(await world.get("Job", "j"), "Failed")

        await world.until(failed)
        rows = {r["type"]: r for r in (await world.get("Job", "j"))["status"]["conditions"]}
        assert rows["Failed"]["reason"] == "BackoffLimitExceeded"
        assert max(pods) not in await world.pods()

    in_world(work)


def test_an_indexed_job_names_its_pods() -> None:
    async def work(world: World) -> None:
        await world.make(_job(completions=3, parallelism=3, completionMode="Indexed"))
        pods = await _running(world, 3)
        assert sorted(p["spec"]["hostname"] for p in pods.values()) == ["j-0", "j-1", "j-2"]
        for own, pod in pods.items():
            if not pod["spec"]["hostname"].endswith("1"):
                await world.end(own, "Succeeded")
        await world.status("Job", "j", succeeded=2, completedIndexes="0,2")
        await world.end(next(n for n, p in pods.items() if p["spec"]["hostname"] == "j-1"), "Succeeded")
        await world.status("Job", "j", succeeded=3, completedIndexes="0-2")

    in_world(work)


def test_a_suspended_job_waits_and_one_that_is_deleted_leaves_nothing() -> None:
    async def work(world: World) -> None:
        await world.make(_job(suspend=True, ttlSecondsAfterFinished=0))

        async def waits() -> bool:
            return is_true(await world.get("Job", "j"), "Suspended")

        await world.until(waits)
        assert not await world.pods()
        await world.api.patch(of("Job").path("default", "j"), {"spec": {"suspend": False}})
        (own,) = await _running(world, 1)
        await world.make(_job("other"))
        await _running(world, 2)
        await world.end(own, "Succeeded")
        await world.api.delete(of("Job").path("default", "other"), {"propagationPolicy": "Background"})

        async def gone() -> bool:
            return not await world.pods() and not await world.items("/apis/batch/v1/jobs")

        await world.until(gone)  # the first by ttlSecondsAfterFinished

    in_world(work)


def test_a_cron_job_starts_jobs_and_takes_them_along() -> None:
    async def work(world: World) -> None:
        inner = {"spec": {"template": template(restartPolicy="Never")}}
        # Forbid: a new minute while the first one runs makes no second one
        spec = {"schedule": "@every 1s", "jobTemplate": inner, "concurrencyPolicy": "Forbid"}
        await world.make(of_kind("CronJob", "c", spec, "batch/v1"))
        (own,) = await _running(world, 1)
        assert own.startswith("c-")
        await world.api.patch(of("CronJob").path("default", "c"), {"spec": {"suspend": True}})
        await world.end(own, "Succeeded")

        async def seen() -> bool:
            status = (await world.get("CronJob", "c")).get("status") or {}
            return bool(
                status.get("lastSuccessfulTime") and status.get("lastScheduleTime") and not status.get("active")
            )

        await world.until(seen)
        await world.api.delete(of("CronJob").path("default", "c"))

        async def gone() -> bool:
            return not await world.pods() and not await world.items("/apis/batch/v1/jobs")

        await world.until(gone)

    in_world(work)


def test_a_replication_controller_keeps_its_pods() -> None:
    async def work(world: World) -> None:
        spec = {"replicas": 2, "selector": {"app": "a"}, "template": template()}
        await world.make(of_kind("ReplicationController", "r", spec, "v1"))
        await world.status("ReplicationController", "r", replicas=2, readyReplicas=2)
        own = min(await world.pods())
        await world.api.delete(f"{PODS}/{own}")

        async def replaced() -> bool:
            found = await world.pods()
            return own not in found and len(found) == 2

        await world.until(replaced)

    in_world(work)
