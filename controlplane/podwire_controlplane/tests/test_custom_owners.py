"""Custom objects as owners, as dependents, in namespaces that end, and in quotas; cluster-scoped dependents. The
controllers act with their own rights.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import Refused
from podwire_base.kube.meta import Object
from podwire_base.patience import patient
from podwire_base.testing.builders import run
from podwire_controlplane.controllers import accounts, cleanup, customkinds, quota
from podwire_controlplane.controllers.base import Snapshot
from podwire_controlplane.controllers.driver import Driver

from ..testing.servers import Server
from ..testing.widgets import CRDS, WIDGETS, definition

MAPS = "/api/v1/namespaces/team-a/configmaps"
CLASSES = "/apis/scheduling.k8s.io/v1/priorityclasses"
WIDE = "/apis/wide.example.com/v1/services"
TYPES = {
    WIDGETS: {"apiVersion": "example.com/v1", "kind": "Widget"},
    WIDE: {"apiVersion": "wide.example.com/v1", "kind": "Service"},
}


def cluster_wide() -> Object:
    """Return the definition of a kind without namespaces, whose Kind is also that of a built-in one."""
    names = {"plural": "services", "singular": "service", "kind": "Service", "listKind": "ServiceList"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    spec = {"group": "wide.example.com", "scope": "Cluster", "names": names, "versions": [version]}
    return {"metadata": {"name": "services.wide.example.com"}, "spec": spec}


def ref(owner: Object, **more: object) -> Object:
    meta = owner["metadata"]
    return {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": meta["name"], "uid": meta["uid"], **more}


def owned(name: str, *owners: Object, **more: object) -> Object:
    return {"metadata": {"name": name, "ownerReferences": [ref(o) for o in owners]}, **more}


async def create(api: ApiClient, path: str, obj: Object) -> Object:
    """Create a custom object, which must say its type."""
    return await api.create(path, {**TYPES[path], **obj})


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(patient(15)):
        while not await holds():
            await asyncio.sleep(0.02)


def with_controllers(work: Callable[[ApiClient], Awaitable[None]]) -> None:
    async def body() -> None:
        server = await asyncio.to_thread(Server().__enter__)
        async with ApiClient(server.config()) as api, ApiClient(server.config("controllers-token")) as own_rights:
            await api.create("/api/v1/namespaces", {"metadata": {"name": "team-a"}})
            await api.create(CRDS, definition())
            await api.create(CRDS, cluster_wide())
            rows = (*cleanup.CONTROLLERS, *quota.CONTROLLERS, *accounts.controllers(""))
            task = asyncio.create_task(Driver(own_rights, rows).run())
            try:
                await work(api)
                assert not task.done(), task
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(server.__exit__)

    run(body())


async def gone(api: ApiClient, path: str) -> bool:
    try:
        await api.get(path)
    except Refused as err:
        assert err.code == 404
        return True
    return False


def test_dependents_of_every_kind_go_with_their_owner() -> None:
    async def work(api: ApiClient) -> None:
        top = await api.create(MAPS, {"metadata": {"name": "top"}})
        middle = await create(api, WIDGETS, owned("middle", top, spec={"size": 1}))
        await api.create(MAPS, owned("leaf", middle))
        wide = await create(api, WIDE, {"metadata": {"name": "wide"}})
        await create(api, WIDE, owned("below", wide))
        await api.create(CLASSES, owned("class", wide, value=1))
        await create(api, WIDGETS, owned("of-wide", wide, spec={"size": 1}))
        stays = await create(api, WIDGETS, {"metadata": {"name": "stays"}, "spec": {"size": 1}})
        await api.create(CLASSES, owned("misled", stays, value=1))
        await api.delete(f"{MAPS}/top")
        await api.delete(f"{WIDE}/wide")
        for path in (
            f"{WIDGETS}/middle",
            f"{MAPS}/leaf",
            f"{WIDE}/below",
            f"{CLASSES}/class",
            f"{WIDGETS}/of-wide",
        ):
            await until(lambda path=path: gone(api, path))  # type: ignore[misc]  # a default binds the loop's value
        await api.delete(f"{WIDGETS}/stays")
        await until(lambda: gone(api, f"{WIDGETS}/stays"))
        assert not await gone(api, f"{CLASSES}/misled"), "an owner in a namespace owns nothing outside, as upstream"

    with_controllers(work)


@pytest.mark.parametrize("policy", ["Orphan", "Foreground"])
def test_policies_reach_custom_dependents(policy: str) -> None:
    async def work(api: ApiClient) -> None:
        top = await create(api, WIDGETS, {"metadata": {"name": "top"}, "spec": {"size": 1}})
        meta = {"name": "below", "ownerReferences": [ref(top, blockOwnerDeletion=True)]}
        await create(api, WIDGETS, {"metadata": meta, "spec": {"size": 2}})
        await api.delete(f"{WIDGETS}/top", {"propagationPolicy": policy})
        await until(lambda: gone(api, f"{WIDGETS}/top"))
        if policy == "Foreground":
            assert await gone(api, f"{WIDGETS}/below")
        else:
            assert "ownerReferences" not in (await api.get(f"{WIDGETS}/below"))["metadata"]

    with_controllers(work)


def test_a_kind_that_is_defined_later_is_followed_and_left() -> None:
    async def work(api: ApiClient) -> None:
        own = f"{CRDS}/services.wide.example.com"
        await api.delete(own)
        await until(lambda: gone(api, own))
        await api.create(CRDS, cluster_wide())
        top = await api.create(CLASSES, {"metadata": {"name": "top"}, "value": 1})
        await until(lambda: served(api))
        await create(api, WIDE, owned("below", top))
        await api.delete(f"{CLASSES}/top")
        await until(lambda: gone(api, f"{WIDE}/below"))

    async def served(api: ApiClient) -> bool:
        return not await gone(api, WIDE)

    with_controllers(work)


def test_a_quota_counts_custom_objects_from_its_first_count_on() -> None:
    async def work(api: ApiClient) -> None:
        for n in (1, 2):
            await create(api, WIDGETS, {"metadata": {"name": f"w{n}"}, "spec": {"size": 1}})
        limit = "count/widgets.example.com"
        quotas = "/api/v1/namespaces/team-a/resourcequotas"
        await api.create(quotas, {"metadata": {"name": "q"}, "spec": {"hard": {limit: "3"}}})

        async def used() -> str:
            return str(((await api.get(f"{quotas}/q")).get("status") or {}).get("used", {}).get(limit))

        async def counted() -> bool:
            return await used() == "2"

        await until(counted)
        await create(api, WIDGETS, {"metadata": {"name": "w3"}, "spec": {"size": 1}})
        assert await used() == "3"
        with pytest.raises(Refused) as refused:
            await create(api, WIDGETS, {"metadata": {"name": "w4"}, "spec": {"size": 1}})
        assert refused.value.code == 403
        assert f"exceeded quota: q, requested: {limit}=1, used: {limit}=3, limited: {limit}=3" in refused.value.message
        await api.delete(f"{WIDGETS}/w1")
        assert await used() == "2"

    with_controllers(work)


def test_the_row_of_a_definition() -> None:
    served = definition()
    assert customkinds.row_of(served) is None, "not before its names are accepted"
    served["status"] = {"conditions": [{"type": "Established", "status": "True"}]}
    row = customkinds.row_of(served)
    assert row is not None and customkinds.kind_of(row) == "example.com/v1:Widget"
    assert row.path("team-a", "w") == f"{WIDGETS}/w"
    snapshot = Snapshot({"example.com/v1:Widget": {}, "CustomResourceDefinition": {"widgets.example.com": served}})
    assert [kind for kind, _ in customkinds.followed(snapshot)] == ["example.com/v1:Widget"]
    assert customkinds.name_of({"apiVersion": "example.com/v1", "kind": "Widget"}, snapshot) == "example.com/v1:Widget"
    assert customkinds.name_of({"apiVersion": "v1", "kind": "Pod"}, snapshot) == "Pod"


def test_a_namespace_waits_for_its_custom_objects() -> None:
    async def work(api: ApiClient) -> None:
        meta = {"name": "held", "finalizers": ["example.com/hold"]}
        await create(api, WIDGETS, {"metadata": meta, "spec": {"size": 1}})
        await create(api, WIDGETS, {"metadata": {"name": "free"}, "spec": {"size": 1}})
        await api.delete("/api/v1/namespaces/team-a")
        await until(lambda: gone(api, f"{WIDGETS}/free"))
        await until(lambda: gone(api, "/api/v1/namespaces/team-a/serviceaccounts/default"))
        assert not await gone(api, "/api/v1/namespaces/team-a")
        await api.patch(f"{WIDGETS}/held", {"metadata": {"finalizers": None}})
        await until(lambda: gone(api, "/api/v1/namespaces/team-a"))

    with_controllers(work)


def test_a_charge_for_nothing_is_taken_back() -> None:
    """But not while somebody charges: the caches of quotas and of objects are not of one moment."""
    limit = "count/configmaps"
    found: Object = {
        "metadata": {"name": "q", "namespace": "a", "resourceVersion": "7"},
        "spec": {"hard": {limit: "5"}},
        "status": {"hard": {limit: "5"}, "used": {limit: "2"}},
    }
    cache = {"a/m": {"metadata": {"name": "m", "namespace": "a"}}}
    kinds = {**{kind: {} for kind in quota.KINDS}, "ConfigMap": cache, "ResourceQuota": {"a/q": found}}
    snapshot, recount = Snapshot(kinds), quota.Recount()
    assert [(w.verb, w.obj["seconds"]) for w in recount("a/q", snapshot, 1000.0)] == [("again", quota.SETTLED)]
    found["metadata"]["resourceVersion"] = "8"  # another writer
    assert [w.verb for w in recount("a/q", snapshot, 1000.0 + quota.SETTLED)] == ["again"]
    assert [w.verb for w in recount("a/q", snapshot, 1001.0 + quota.SETTLED)] == ["again"], "not long enough"
    (write,) = recount("a/q", snapshot, 1000.0 + 2 * quota.SETTLED)
    assert write.verb == "status" and write.obj == {
        "metadata": {"resourceVersion": "8"},
        "status": {"used": {limit: "1"}},
    }
    found["status"]["used"] = {limit: "1"}
    assert recount("a/q", snapshot, 1001.0 + 2 * quota.SETTLED) == []
    cache.clear()
    assert recount("a/q", snapshot, 1002.0 + 2 * quota.SETTLED) == [], "it is not counted at each change"
    assert [w.verb for w in recount("a/q", snapshot, 1002.0 + 2 * quota.SETTLED + quota.RECOUNT)] == ["again"]
