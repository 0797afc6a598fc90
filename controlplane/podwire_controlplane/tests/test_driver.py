"""All controllers with the real server: the objects that people create lead to bound pods, slices and Endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import Refused
from podwire_base.kube.meta import Object, labels, name
from podwire_base.kube.registry import of
from podwire_base.patience import patient
from podwire_base.testing.builders import deployment, node, pod, run, service
from podwire_controlplane.controllers import cleanup, endpointslices, nodes, scheduler, tainteviction, workloads
from podwire_controlplane.controllers.base import Controller, Write, itself
from podwire_controlplane.controllers.driver import Driver

from ..testing.servers import Server

DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
ALL_NODES = "/api/v1/nodes"
PODS, SERVICES, NODES = (f"/api/v1/namespaces/default/{w}" for w in ("pods", "services", "nodes"))

NOWHERE = (
    "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector. "
    "preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
)


class Cluster:
    """API and controllers. `kubelet()` acts for all nodes: it starts bound pods and ends deleted pods."""

    def __init__(self, api: ApiClient) -> None:
        self.api = api

    async def items(self, path: str) -> list[Object]:
        found: list[Object] = (await self.api.get(path))["items"]
        return found

    async def kubelet(self) -> None:
        for n, found in enumerate(await self.items("/api/v1/pods")):
            path = of("Pod").path(found["metadata"]["namespace"], name(found))
            try:
                if found["metadata"].get("deletionTimestamp"):
                    await self.api.delete(path, {"gracePeriodSeconds": 0})
                elif found["spec"].get("nodeName") and not found["status"].get("podIP"):
                    await self.api.patch(
                        path + "/status",
                        {
                            "status": {
                                "phase": "Running",
                                "podIP": f"10.244.0.{n + 2}",
                                "podIPs": [{"ip": f"10.244.0.{n + 2}"}],
                                "conditions": [{"type": "Ready", "status": "True"}],
                            }
                        },
                    )
            except Refused as err:
                if err.code != 404:
                    raise

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(patient(15)):
            while not await holds():
                await self.kubelet()
                await asyncio.sleep(0.02)

    async def endpoints(self, of_service: str) -> set[str]:
        found = [s for s in await self.items(SLICES) if labels(s).get("kubernetes.io/service-name") == of_service]
        return {a for s in found for e in s["endpoints"] if e["conditions"]["ready"] for a in e["addresses"]}


def in_cluster(work: Callable[[Cluster], Awaitable[None]], *more: Controller) -> None:
    async def body() -> None:
        server = await asyncio.to_thread(Server().__enter__)
        async with ApiClient(server.config()) as api, ApiClient(server.config("controllers-token")) as own_rights:
            rows = (
                *more,
                *endpointslices.CONTROLLERS,
                *workloads.CONTROLLERS,
                *cleanup.CONTROLLERS,
                *nodes.controllers("10.244.0.0/16", 24),
                *scheduler.CONTROLLERS,
            )
            task = asyncio.create_task(Driver(own_rights, rows).run())
            for own in ("n1", "n2", "n3"):
                await api.create("/api/v1/nodes", node(own))
                await api.patch(
                    f"/api/v1/nodes/{own}/status", {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
                )
            try:
                await work(Cluster(api))
                assert not task.done(), task
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(server.__exit__)

    run(body())


def test_from_manifests_to_endpoints_and_back() -> None:
    async def work(cluster: Cluster) -> None:
        api = cluster.api
        await api.create(SERVICES, service(selector={"app": "web"}))
        await api.create(DEPLOYMENTS, deployment(replicas=3))

        async def ready() -> bool:
            return len(await cluster.endpoints("web")) == 3

        await cluster.until(ready)
        pods = await cluster.items(PODS)
        assert {p["spec"]["nodeName"] for p in pods} == {"n1", "n2", "n3"}, "spread"
        ranges = [n["spec"]["podCIDR"] for n in await cluster.items("/api/v1/nodes")]
        assert len(set(ranges)) == 3

        await api.patch(DEPLOYMENTS + "/web", {"spec": {"replicas": 1}})

        async def scaled() -> bool:
            status = (await api.get(DEPLOYMENTS + "/web"))["status"]
            return len(await cluster.endpoints("web")) == 1 and status["replicas"] == 1 == status["readyReplicas"]

        await cluster.until(scaled)
        await api.delete(DEPLOYMENTS + "/web")

        async def collected() -> bool:
            sets = await cluster.items("/apis/apps/v1/replicasets")
            return not sets and not await cluster.items(PODS) and not await cluster.endpoints("web")

        await cluster.until(collected)
        await api.delete(SERVICES + "/web")

        async def gone() -> bool:
            return not await cluster.items(SLICES) and not await cluster.items("/api/v1/namespaces/default/endpoints")

        await cluster.until(gone)

    in_cluster(work)


def test_a_deployment_made_anew_at_once_gets_its_pods() -> None:
    """The new ReplicaSet needs the name of the old ReplicaSet, which the garbage collector deletes first."""

    async def work(cluster: Cluster) -> None:
        async def running() -> bool:
            found = (await cluster.api.get(DEPLOYMENTS + "/web")).get("status") or {}
            return bool(found.get("readyReplicas") == 2 == len(await cluster.items(PODS)))

        for _ in range(2):
            await cluster.api.create(DEPLOYMENTS, deployment(replicas=2))
            await cluster.until(running)
            await cluster.api.delete(DEPLOYMENTS + "/web")
        await cluster.api.create(DEPLOYMENTS, deployment(replicas=2))
        await cluster.until(running)

    in_cluster(work)


def test_scaling_down_pods_that_never_ran_shows_in_the_status() -> None:
    async def work(cluster: Cluster) -> None:
        nowhere = deployment(replicas=3)
        nowhere["spec"]["template"]["spec"]["nodeSelector"] = {"no": "where"}
        await cluster.api.create(DEPLOYMENTS, nowhere)

        async def explained() -> bool:
            found = await cluster.items(PODS)
            texts = [c.get("message") for p in found for c in p["status"].get("conditions") or []]
            return texts == [NOWHERE] * 3

        await cluster.until(explained)
        await cluster.api.patch(DEPLOYMENTS + "/web", {"spec": {"replicas": 1}})

        async def counted() -> bool:
            return bool((await cluster.api.get(DEPLOYMENTS + "/web"))["status"].get("replicas") == 1)

        await cluster.until(counted)

    in_cluster(work)


def test_priority_makes_room_and_taints_make_pods_leave() -> None:
    async def work(cluster: Cluster) -> None:
        api, asks = cluster.api, {"requests": {"cpu": "1"}}
        for own in ("n1", "n2", "n3"):
            await api.patch(f"{ALL_NODES}/{own}/status", {"status": {"allocatable": {"cpu": "1500m", "pods": "9"}}})
        low = deployment(replicas=3)
        low["spec"]["template"]["spec"]["containers"][0]["resources"] = asks
        await api.create(DEPLOYMENTS, low)

        async def running(own: str) -> list[Object]:
            rows = [row for row in await cluster.items(PODS) if name(row).startswith(own)]
            return [row for row in rows if row["status"].get("podIP") and not row["metadata"].get("deletionTimestamp")]

        async def full() -> bool:
            return len(await running("web-")) == 3

        await cluster.until(full)
        await api.create(of("PriorityClass").path(), {"metadata": {"name": "high"}, "value": 1000})
        high = pod("high", priorityClassName="high")
        high["spec"]["containers"][0]["resources"] = asks
        await api.create(PODS, high)

        async def preempted() -> bool:
            return bool(await running("high")) and len(await running("web-")) == 2

        await cluster.until(preempted)
        (there,) = await running("high")
        assert there["status"]["nominatedNodeName"] == there["spec"]["nodeName"]
        waiting = [row for row in await cluster.items(PODS) if not row["spec"].get("nodeName")]
        (why,) = [row["message"] for row in waiting[0]["status"]["conditions"] if row["type"] == "PodScheduled"]
        assert why.startswith("0/3 nodes are available: 3 Insufficient cpu. preemption: 0/3 nodes are available: 3 ")
        taint = {"key": "k", "effect": "NoExecute"}
        await api.patch(f"{ALL_NODES}/{there['spec']['nodeName']}", {"spec": {"taints": [taint]}})

        async def left() -> bool:
            return not await running("high") and len(await running("web-")) == 2

        await cluster.until(left)

    in_cluster(work, *tainteviction.CONTROLLERS)


def test_a_namespace_is_emptied_and_goes() -> None:
    async def work(cluster: Cluster) -> None:
        api = cluster.api
        await api.create("/api/v1/namespaces", {"metadata": {"name": "old"}})
        for kind, obj in (
            ("ConfigMap", {"metadata": {"name": "c"}}),
            ("Deployment", deployment()),
            ("Service", service()),
            ("Pod", pod("lone")),
        ):
            obj["metadata"]["namespace"] = "old"
            await api.create(of(kind).path("old"), obj)
        await api.delete("/api/v1/namespaces/old")

        async def gone() -> bool:
            return "old" not in {name(n) for n in await cluster.items("/api/v1/namespaces")}

        await cluster.until(gone)
        for kind in ("ConfigMap", "Deployment", "ReplicaSet", "Pod", "Service", "EndpointSlice", "Endpoints"):
            assert await cluster.items(of(kind).path("old")) == []

    in_cluster(work)


@pytest.mark.parametrize("where", ["reconcile", "mapper"])
def test_a_bad_object_or_controller_does_not_stop_the_others(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("bad")

    bad = Controller(
        "aaa-broken",
        {"Service": itself if where == "reconcile" else broken},
        broken if where == "reconcile" else lambda *_: list[Write](),
    )

    async def work(cluster: Cluster) -> None:
        await cluster.api.create(SERVICES, service("one", selector={"app": "web"}))
        await cluster.api.create(PODS, pod(nodeName="n1"))

        async def sliced() -> bool:
            return len(await cluster.endpoints("one")) == 1

        await cluster.until(sliced)

    in_cluster(work, bad)
    assert "aaa-broken" in capsys.readouterr().err


def test_garbage_collection_asks_the_api_before_it_believes_its_cache() -> None:
    """An owner that is missing in the cache keeps its dependents; an owner that is missing in the API loses them."""

    async def work(cluster: Cluster) -> None:
        maps = "/api/v1/namespaces/default/configmaps"
        owner = await cluster.api.create(SERVICES, service("owner"))
        fresh = Driver(cluster.api, cleanup.CONTROLLERS)  # empty caches
        made = {}
        for own, uid in (("kept", owner["metadata"]["uid"]), ("lost", "of-nobody")):
            made[own] = await cluster.api.create(
                maps,
                {
                    "metadata": {
                        "name": own,
                        "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "owner", "uid": uid}],
                    }
                },
            )
            fresh.informers["ConfigMap"].reflector.wrote(made[own])
            for change in cleanup.reconcile_gc(f"ConfigMap:default/{own}", fresh.snapshot, 0.0):
                try:
                    await fresh._apply(change)
                except Refused as err:
                    assert err.code == 404, "the cluster's own collector was faster"
        assert {name(m) for m in await cluster.items(maps)} == {"kept"}

    in_cluster(work)


@pytest.mark.parametrize("policy", ["Orphan", "Foreground", "Background"])
def test_what_becomes_of_dependents(policy: str) -> None:
    async def work(cluster: Cluster) -> None:
        await cluster.api.create(DEPLOYMENTS, deployment("web", 2))

        async def running() -> bool:
            return sum(bool(p["status"].get("podIP")) for p in await cluster.items(PODS)) == 2

        await cluster.until(running)
        before = {p["metadata"]["uid"] for p in await cluster.items(PODS)}
        await cluster.api.delete(DEPLOYMENTS + "/web", {"propagationPolicy": policy})

        async def gone() -> bool:
            return not await cluster.items(DEPLOYMENTS)

        async def settled() -> bool:
            sets = await cluster.items(DEPLOYMENTS.replace("deployments", "replicasets"))
            pods = await cluster.items(PODS)
            if policy == "Orphan":
                return await gone() and not sets[0]["metadata"].get("ownerReferences") and len(pods) == 2
            return await gone() and not sets and not pods

        await cluster.until(settled)
        assert policy != "Orphan" or {p["metadata"]["uid"] for p in await cluster.items(PODS)} == before

    in_cluster(work)


def test_a_deleted_service_takes_its_hand_made_endpoints_along() -> None:
    async def work(cluster: Cluster) -> None:
        endpoints = SERVICES.replace("services", "endpoints")
        made = {
            "metadata": {"name": "db"},
            "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 5432}]}],
        }
        await cluster.api.create(endpoints, made)
        await cluster.api.create(SERVICES, service("db"))

        async def mirrored() -> bool:
            return await cluster.endpoints("db") == {"192.0.2.1"}

        await cluster.until(mirrored)
        await cluster.api.delete(SERVICES + "/db")

        async def gone() -> bool:
            return not [e for e in await cluster.items(endpoints) if name(e) == "db"] and not await cluster.endpoints(
                "db"
            )

        await cluster.until(gone)

    in_cluster(work)


def test_the_one_object_that_matters_is_all_that_is_asked_for() -> None:
    """It holds only as long as no other controller needs all objects of the kind. Items of a list without a kind are
    handled, too.
    """
    only = {"ConfigMap": ("kube-system", "one")}
    seen: list[str] = []

    def note(obj: Object, _snapshot: object) -> tuple[str, ...]:
        seen.append(name(obj))
        return ()

    def asked(*rows: Controller) -> tuple[str, dict[str, str]]:
        driver = Driver(ApiClient(ClientConfig("http://127.0.0.1:1")), rows)
        for event in driver.informers["ConfigMap"].reflector.listed([{"metadata": {"name": "bare"}}], "7"):
            driver.informers["ConfigMap"]._emit(event)
        return driver.informers["ConfigMap"].path, driver.informers["ConfigMap"].params

    narrow = Controller("narrow", {"ConfigMap": note}, lambda *_: [], within=only)
    wide = Controller("wide", {"ConfigMap": itself}, lambda *_: [])
    assert asked(narrow, replace(narrow, name="other")) == (
        "/api/v1/namespaces/kube-system/configmaps",
        {"fieldSelector": "metadata.name=one"},
    )
    assert asked(narrow, wide) == ("/api/v1/configmaps", {})
    assert seen == ["bare"] * 3


def test_owners_of_kinds_without_informer_are_looked_for_in_the_api() -> None:
    """A Node's cluster-scoped neighbours and custom kinds have no informer here."""

    async def work(cluster: Cluster) -> None:
        maps, classes = "/api/v1/namespaces/default/configmaps", "/apis/scheduling.k8s.io/v1/priorityclasses"
        owner = await cluster.api.create(classes, {"metadata": {"name": "high"}, "value": 7})
        fresh = Driver(cluster.api, cleanup.CONTROLLERS)
        for own, ref in (
            ("kept", {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "uid": owner["metadata"]["uid"]}),
            ("lost", {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "uid": "of-nobody"}),
            ("unknown", {"apiVersion": "nobody.example/v1", "kind": "Widget", "uid": "u"}),
        ):
            made = {"metadata": {"name": own, "ownerReferences": [{**ref, "name": "high"}]}}
            fresh.informers["ConfigMap"].reflector.wrote(await cluster.api.create(maps, made))
            for change in cleanup.reconcile_gc(f"ConfigMap:default/{own}", fresh.snapshot, 0.0):
                try:
                    await fresh._apply(change)
                except Refused as err:
                    assert err.code == 404, "the cluster's own collector was faster"
        assert {name(m) for m in await cluster.items(maps)} == {"kept", "unknown"}

    in_cluster(work)


def test_what_goes_well_is_told_by_events() -> None:
    """Scaling, the creation of pods and their nodes, as kubectl describe shows them, and a refusal."""

    async def work(cluster: Cluster) -> None:
        await cluster.api.create(DEPLOYMENTS, deployment("web", replicas=2))

        async def reasons() -> dict[str, list[Object]]:
            found: dict[str, list[Object]] = {}
            for one in await cluster.items("/api/v1/namespaces/default/events"):
                found.setdefault(one["reason"], []).append(one)
            return found

        async def told() -> bool:
            found = await reasons()
            return len(found.get("SuccessfulCreate", ())) == 2 and "ScalingReplicaSet" in found

        await cluster.until(told)
        found = await reasons()
        (scaled,) = found["ScalingReplicaSet"]
        assert scaled["involvedObject"]["kind"] == "Deployment" and "from 0 to 2" in scaled["message"]
        assert (scaled["type"], scaled["source"]["component"]) == ("Normal", "deployment-controller")
        pods = {name(one) for one in await cluster.items(PODS)}
        assert {one["message"].removeprefix("Created pod: ") for one in found["SuccessfulCreate"]} == pods
        quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "2"}}}
        made = await cluster.api.create("/api/v1/namespaces/default/resourcequotas", quota)
        status = {"status": {"hard": {"pods": "2"}, "used": {"pods": "2"}}}
        await cluster.api.patch(f"/api/v1/namespaces/default/resourcequotas/{name(made)}/status", status)
        await cluster.api.patch(f"{DEPLOYMENTS}/web", {"spec": {"replicas": 3}})

        async def refused() -> bool:
            rows = (await reasons()).get("FailedCreate", ())
            return any(one["type"] == "Warning" and "exceeded quota" in one["message"] for one in rows)

        await cluster.until(refused)

    in_cluster(work)
