"""The write path: creation, updates, patches, locking. Deletion is in test_deletion.py, Services in
test_services.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object
from podwire_base.kube.patch import JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH
from podwire_base.kube.registry import BUILTIN, of
from podwire_base.testing.builders import deployment, minimal, pod, run, service, version

from ..strategies.table import strategy_of
from ..testing.builders import World

NOTHING: Any = None
Work = Callable[[World], Awaitable[None]]


def in_world(work: Work) -> None:
    async def body() -> None:
        await work(await World().start())

    run(body())


async def refused(work: Awaitable[Any], code: int, *words: str) -> StatusError:
    with pytest.raises(StatusError) as caught:
        await work
    assert caught.value.code == code, caught.value
    for word in words:
        assert word in caught.value.message
    return caught.value


@pytest.mark.parametrize("resource", BUILTIN.stored, ids=lambda r: r.kind)
def test_every_kind_is_created_read_updated_and_deleted(resource: Any) -> None:
    async def work(world: World) -> None:
        made = await world.create(minimal(resource))
        assert made["metadata"]["uid"] and made["metadata"]["creationTimestamp"] == "2027-01-15T08:00:00Z"
        own = made["metadata"]["name"]
        counted = strategy_of(resource).generation
        assert made["metadata"].get("generation") == (1 if counted else None)
        assert await world.get(resource.kind, own) == made
        again = await world.update(made)
        assert again == made, "a write that changes nothing keeps the resourceVersion"
        marked = await world.patch(resource.kind, own, {"metadata": {"labels": {"a": "b"}}})
        assert int(version(marked)) == int(version(made)) + 1
        assert marked["metadata"]["labels"]["a"] == "b" and marked["metadata"]["uid"] == made["metadata"]["uid"]

    in_world(work)


def test_server_sets_identity_whatever_the_client_says() -> None:
    async def work(world: World) -> None:
        obj = minimal(of("ConfigMap"))
        obj["metadata"] |= {
            "uid": "mine",
            "creationTimestamp": "2000-01-01T00:00:00Z",
            "resourceVersion": "77",
            "generation": 9,
            "deletionTimestamp": "2000-01-01T00:00:00Z",
            "selfLink": "/x",
        }
        made = await world.create(obj)
        assert made["metadata"]["uid"] != "mine" and "generation" not in made["metadata"]
        assert "deletionTimestamp" not in made["metadata"] and "selfLink" not in made["metadata"]
        for field, value in (
            ("uid", None),
            ("creationTimestamp", "2000-01-01T00:00:00Z"),
            ("generation", 70),
        ):  # a ConfigMap has none
            after = await world.patch("ConfigMap", "x", {"metadata": {field: value}})
            assert after["metadata"].get(field) == made["metadata"].get(field)

    in_world(work)


def test_created_twice_is_refused_and_leaves_the_first() -> None:
    async def work(world: World) -> None:
        await world.create(service(clusterIP="10.96.0.9"))
        before = await world.state()
        error = await refused(world.create(service()), 409, '"web" already exists')
        assert error.reason == "AlreadyExists"
        assert await world.state() == before

    in_world(work)


def test_namespace_must_exist_and_not_be_going() -> None:
    async def work(world: World) -> None:
        lost = pod()
        lost["metadata"]["namespace"] = "nowhere"
        await refused(world.objects.create(world.scope("Pod", space="nowhere"), lost, _options()), 404, "nowhere")
        await refused(world.objects.create(world.scope("Pod"), lost, _options()), 400, "metadata.namespace")
        await world.create({"kind": "Namespace", "metadata": {"name": "old"}})
        await world.delete("Namespace", "old")
        await refused(
            world.objects.create(world.scope("Pod", space="old"), {**pod(), "metadata": {"name": "p"}}, _options()),
            403,
            "being deleted",
        )

    in_world(work)


def _options() -> Any:
    from podwire_controlplane.server.writes import WriteOptions

    return WriteOptions()


def test_generate_name() -> None:
    async def work(world: World) -> None:
        names = set()
        for _ in range(20):
            obj = pod()
            obj["metadata"] = {"generateName": "web-"}
            names.add((await world.create(obj))["metadata"]["name"])
        assert len(names) == 20 and all(n.startswith("web-") and len(n) == 9 for n in names)
        obj["metadata"] = {"generateName": "n" * 100}
        assert len((await world.create(obj))["metadata"]["name"]) == 63
        obj["metadata"] = {}
        await refused(world.create(obj), 422, "metadata.name", "generateName")

    in_world(work)


def test_resource_version_and_uid_guard_updates() -> None:
    async def work(world: World) -> None:
        first = await world.create(deployment())
        second = await world.patch("Deployment", "web", {"spec": {"replicas": 5}})
        error = await refused(world.update({**first, "spec": {**first["spec"], "replicas": 9}}), 409, "read it again")
        assert error.reason == "Conflict"
        await refused(world.patch("Deployment", "web", {"metadata": {"resourceVersion": version(first)}}), 409)
        await refused(world.patch("Deployment", "web", {"metadata": {"uid": "other"}}), 422, "immutable")
        stranger = {**second, "metadata": {**second["metadata"], "uid": "other"}}
        await refused(world.update(stranger), 409, "earlier object")
        del second["metadata"]["resourceVersion"]
        second["spec"]["replicas"] = 7
        assert (await world.update(second))["spec"]["replicas"] == 7, "without a version the write is unconditional"
        await refused(world.update(deployment("nobody")), 404, "nobody")
        await refused(
            world.objects.update(world.scope("Deployment", "web"), deployment("other"), _options()),
            400,
            "does not match the name on the URL",
        )

    in_world(work)


def test_generation_counts_changes_of_the_spec_only() -> None:
    async def work(world: World) -> None:
        made = await world.create(deployment())
        assert (await world.patch("Deployment", "web", {"metadata": {"labels": {"a": "b"}}}))["metadata"][
            "generation"
        ] == 1
        status = await world.patch("Deployment", "web", {"status": {"replicas": 1}}, sub="status")
        assert status["metadata"]["generation"] == 1
        assert (await world.patch("Deployment", "web", {"spec": {"replicas": 4}}))["metadata"]["generation"] == 2
        again = await world.update(deployment(replicas=4))
        assert again["metadata"]["generation"] == 2, "a manifest that leaves out defaults changes nothing"
        assert made["metadata"]["generation"] == 1

    in_world(work)


def test_replacing_an_object_with_its_own_manifest_changes_nothing() -> None:
    async def work(world: World) -> None:
        for manifest in (deployment(), service(type="NodePort"), pod()):
            made = await world.create(manifest)
            if manifest["kind"] == "Pod":  # as upstream: what admission set is not in the manifest, and may not change
                await refused(world.update(manifest), 422, "spec: Forbidden")
            else:
                assert version(await world.update(manifest)) == version(made), manifest["kind"]
            for how in (MERGE_PATCH, STRATEGIC_PATCH):
                after = await world.patch(manifest["kind"], manifest["metadata"]["name"], manifest, how=how)
                assert version(after) == version(made), (manifest["kind"], how)

    in_world(work)


def test_status_and_spec_have_each_their_own_url() -> None:
    async def work(world: World) -> None:
        made = await world.create({**deployment(), "status": {"replicas": 99}})
        assert made["status"] == {}, "a creation cannot set status"
        one = await world.update(
            {**made, "spec": {**made["spec"], "replicas": 8}, "status": {"replicas": 2}}, sub="status"
        )
        assert one["spec"]["replicas"] == 3 and one["status"] == {"replicas": 2}
        two = await world.update({**one, "spec": {**one["spec"], "replicas": 8}, "status": {"replicas": 5}})
        assert two["spec"]["replicas"] == 8 and two["status"] == {"replicas": 2}
        three = await world.patch(
            "Deployment", "web", {"spec": {"replicas": 1}, "status": {"replicas": 6}}, sub="status"
        )
        assert three["spec"]["replicas"] == 8 and three["status"]["replicas"] == 6
        four = await world.patch(
            "Deployment",
            "web",
            {"metadata": {"finalizers": ["a/b"], "labels": {"k": "v"}}, "status": {"replicas": 7}},
            sub="status",
        )
        assert four["metadata"]["finalizers"] == ["a/b"], "as upstream: only spec is another URL's"
        assert "labels" not in four["metadata"], "those of a Deployment are the spec's URL's"

    in_world(work)


@pytest.mark.parametrize("mode", ["Strict", "Warn", "Ignore"])
def test_unknown_fields(mode: str) -> None:
    obj = service()
    obj["spec"]["ports"][0]["prot"] = "TCP"

    async def work(world: World) -> None:
        before = await world.state()
        scope = world.scope("Service")
        from podwire_controlplane.server.writes import WriteOptions

        options = WriteOptions(field_validation=mode)
        if mode == "Strict":
            await refused(world.objects.create(scope, obj, options), 400, 'unknown field "spec.ports[0].prot"')
            assert await world.state() == before
            return
        done = await world.objects.create(scope, obj, options)
        assert done.warnings == (('unknown field "spec.ports[0].prot"',) if mode == "Warn" else ())
        patched = await world.objects.patch(world.scope("Service", "web"), MERGE_PATCH, {"spec": {"nope": 1}}, options)
        assert any("spec.nope" in w for w in patched.warnings) == (mode == "Warn")

    in_world(work)


def test_dry_run_checks_and_stores_nothing() -> None:
    async def work(world: World) -> None:
        await world.create(deployment("kept"))
        await world.create(service("kept", type="NodePort"))
        before = await world.state()
        made = await world.create(service(type="NodePort"), dry_run=True)
        assert made["spec"]["clusterIP"] and made["spec"]["ports"][0]["nodePort"]
        assert (await world.patch("Deployment", "kept", {"spec": {"replicas": 9}}, dry_run=True))["spec"][
            "replicas"
        ] == 9
        await refused(world.create(deployment("kept"), dry_run=True), 409, "already exists")
        await refused(world.create(service(type="Wrong"), dry_run=True), 422, "spec.type")
        await world.objects.delete(world.scope("Deployment", "kept"), {}, dry_run=True)
        assert await world.state() == before

    in_world(work)


@pytest.mark.parametrize(
    ("obj", "code", "words"),
    [
        ({**service(), "kind": "Pod"}, 400, ("kind", "(Service)")),
        ({**service(), "apiVersion": "v2"}, 400, ("apiVersion", "(v1)")),
        ({**service(), "metadata": "x"}, 400, ("metadata",)),
        ({**service(), "spec": "x"}, 400, ("cannot unmarshal string", "spec")),
        ({**service(), "spec": None}, 422, ("spec.ports",)),
        (service(ports=[{"port": "80"}]), 400, ("cannot unmarshal string", "spec.ports[0].port")),
        (service(ports=[{"port": 80, "protocol": None}, NOTHING]), 422, ("spec.ports[1]",)),
        (service(ports=[{"name": "a"}]), 422, ("spec.ports[0].port",)),
        (
            service(ports=[{"port": 80, "nodePort": 70}], type="NodePort"),
            422,
            ("spec.ports[0].nodePort", "30000-30009"),
        ),
        (service(clusterIP="10.1.1.1"), 422, ("spec.clusterIP", "10.96.0.0/24", "leave the field empty")),
        (service(clusterIPs=["x"]), 422, ("spec.clusterIP",)),
        ([], 400, ("not an object",)),
        ("text", 400, ("not an object",)),
        (None, 422, ("metadata.name",)),  # as upstream: null is an empty object
    ],
    ids=str,
)
def test_bad_objects_change_nothing(obj: Any, code: int, words: tuple[str, ...]) -> None:
    async def work(world: World) -> None:
        before = await world.state()
        await refused(world.objects.create(world.scope("Service"), obj, _options()), code, *words)
        assert await world.state() == before and await world.claimed() == ({}, {})

    in_world(work)


def test_bad_patches_change_nothing() -> None:
    async def work(world: World) -> None:
        await world.create(service())
        before = await world.state()
        for how, body, code in (
            (
                JSON_PATCH,
                [
                    {"op": "replace", "path": "/spec/type", "value": "NodePort"},
                    {"op": "remove", "path": "/spec/nothing"},
                ],
                422,
            ),
            (JSON_PATCH, {"op": "add"}, 400),
            (MERGE_PATCH, [], 400),
            (MERGE_PATCH, "x", 400),
            (MERGE_PATCH, None, 400),
            (MERGE_PATCH, {"metadata": "x"}, 422),
            (STRATEGIC_PATCH, {"metadata": ["x"]}, 422),
            (MERGE_PATCH, {"kind": "Pod"}, 422),
            (MERGE_PATCH, {"spec": {"ports": 5}}, 422),
            (MERGE_PATCH, {"spec": {"clusterIP": "10.96.0.77"}}, 422),
        ):
            await refused(world.patch("Service", "web", body, how=how), code)
            assert await world.state() == before, (how, body)

    in_world(work)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 99999) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "ports",
                    "port",
                    "nodePort",
                    "name",
                    "protocol",
                    "targetPort",
                    "clusterIP",
                    "clusterIPs",
                    "selector",
                    "type",
                    "labels",
                    "externalIPs",
                    "sessionAffinity",
                    "sessionAffinityConfig",
                    "clientIP",
                    "metadata",
                    "spec",
                    "status",
                    "ipFamilies",
                    "containers",
                    "image",
                    "template",
                    "replicas",
                    "strategy",
                    "rollingUpdate",
                    "endpoints",
                    "addresses",
                    "subsets",
                    "ownerReferences",
                    "finalizers",
                    "addressType",
                    "matchExpressions",
                    "$patch",
                    "$retainKeys",
                    "$setElementOrder/ports",
                    "$deleteFromPrimitiveList/finalizers",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.sampled_from(BUILTIN.stored),
    st.dictionaries(
        st.sampled_from(["spec", "metadata", "status", "endpoints", "subsets", "data", "ports"]), _VALUES, max_size=3
    ),
    st.sampled_from([MERGE_PATCH, STRATEGIC_PATCH]),
)
def test_no_object_and_no_patch_breaks_the_server(resource: Any, body: Object, how: str) -> None:
    """The server stores any object or patch completely, or refuses it with a 4xx and changes nothing."""

    async def work(world: World) -> None:
        base = minimal(resource)
        for attempt in ("create", "base", "patch"):
            before = await world.state()
            try:
                if attempt == "patch":
                    await world.patch(resource.kind, "x", body, how=how)
                else:
                    await world.create({**base, **body} if attempt == "create" else base)
            except StatusError as err:
                assert 400 <= err.code < 500, err
                assert await world.state() == before

    in_world(work)
