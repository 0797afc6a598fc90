"""ApiClient and Informer against a real server over TLS, across restarts of the server."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from podwire_base.kube.client import config as client_config
from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.client.informer import Informer
from podwire_base.kube.client.reflector import Event
from podwire_base.kube.errors import ConfigError, Refused, Unreachable
from podwire_base.kube.meta import Object, name
from podwire_base.testing.builders import pod, run, version
from podwire_base.testing.following import replay, until
from podwire_controlplane.store.memory import MemoryStore
from podwire_controlplane.store.sqlite import SqliteStore

from ..testing.servers import Server

PODS = "/api/v1/namespaces/default/pods"


class Follower:
    """An informer, and a copy of its objects that is built only from its events."""

    def __init__(self, api: ApiClient, label_selector: str = "") -> None:
        self.events: list[Event] = []
        self.believed: dict[str, Object] = {}
        self.informer = Informer(api, PODS, on_event=self._on_event, label_selector=label_selector)

    def _on_event(self, event: Event) -> None:
        self.events.append(event)
        replay([event], self.believed)

    def versions(self) -> dict[str, str]:
        assert self.believed == self.informer.objects
        return {name(o): version(o) for o in self.believed.values()}


async def _listed(api: ApiClient) -> dict[str, str]:
    return {name(o): version(o) for o in (await api.get(PODS))["items"]}


def test_a_live_copy_across_restarts(tmp_path: Path) -> None:
    def make() -> MemoryStore:
        return SqliteStore(tmp_path / "s.db")

    async def body() -> None:
        first = await asyncio.to_thread(Server(make).__enter__)
        async with ApiClient(first.config()) as api:
            follower = Follower(api)
            task = asyncio.create_task(follower.informer.run())
            await follower.informer.synced.wait()
            for n in range(3):
                await api.create(PODS, pod(f"p{n}"))
            await until(lambda: len(follower.believed) == 3)
            await asyncio.to_thread(first.__exit__)
            with pytest.raises(Unreachable):
                await api.get(PODS)
            second = await asyncio.to_thread(Server(make, first.port).__enter__)
            await api.create(PODS, pod("p3"))
            await api.patch(PODS + "/p1", {"metadata": {"labels": {"x": "y"}}})
            await api.delete(PODS + "/p0")
            now = await _listed(api)
            await until(lambda: follower.versions() == now)
            kinds = [(e.type, e.key.partition("/")[2]) for e in follower.events]
            assert kinds == [
                ("ADDED", "p0"),
                ("ADDED", "p1"),
                ("ADDED", "p2"),
                ("ADDED", "p3"),
                ("MODIFIED", "p1"),
                ("DELETED", "p0"),
            ], "each change once, in order"
            task.cancel()
            await asyncio.to_thread(second.__exit__)

    run(body())


def test_it_lists_again_where_the_history_is_gone() -> None:
    """The server restarts with another store: objects that no longer exist also cause events."""

    async def body() -> None:
        first = await asyncio.to_thread(Server().__enter__)
        async with ApiClient(first.config()) as api:
            follower = Follower(api)
            task = asyncio.create_task(follower.informer.run())
            for n in range(3):
                await api.create(PODS, pod(f"p{n}"))
            await until(lambda: len(follower.believed) == 3)
            await asyncio.to_thread(first.__exit__)
            second = await asyncio.to_thread(Server(port=first.port).__enter__)
            await api.create(PODS, pod("other"))
            now = await _listed(api)
            await until(lambda: follower.versions() == now)
            assert list(follower.believed) == ["default/other"]
            task.cancel()
            await asyncio.to_thread(second.__exit__)

    run(body())


def test_what_keep_leaves_is_all_that_is_held() -> None:
    """Events of the watch carry the whole object; the copy, `old`, and deletions found by a new list carry only the
    kept part.
    """

    def keep(obj: Object) -> Object:
        meta = obj["metadata"]
        return {"metadata": {field: meta[field] for field in ("name", "namespace", "resourceVersion")}}

    async def body() -> None:
        events: list[Event] = []
        first = await asyncio.to_thread(Server().__enter__)
        async with ApiClient(first.config()) as api:
            await api.create(PODS, pod("listed"))
            informer = Informer(api, PODS, on_event=events.append, keep=keep)
            task = asyncio.create_task(informer.run())
            await informer.synced.wait()
            await api.create(PODS, pod("watched"))
            await api.patch(PODS + "/listed", {"metadata": {"labels": {"x": "y"}}})
            await until(lambda: len(events) == 3)
            assert [(e.type, name(e.object)) for e in events] == [
                ("ADDED", "listed"),
                ("ADDED", "watched"),
                ("MODIFIED", "listed"),
            ]
            assert all("spec" in e.object for e in events), "handlers see the whole object"
            assert events[2].old is not None and "spec" not in events[2].old
            assert all(set(o) == {"metadata"} for o in informer.objects.values())
            assert {name(o): version(o) for o in informer.objects.values()} == await _listed(api)
            await api.delete(PODS + "/watched")
            await until(lambda: len(events) == 4)
            assert events[3].type == "DELETED" and name(events[3].object) == "watched"
            await asyncio.to_thread(first.__exit__)
            second = await asyncio.to_thread(Server(port=first.port).__enter__)  # an empty store
            await until(lambda: len(events) == 5)
            assert events[4].type == "DELETED" and set(events[4].object) == {"metadata"} and not informer.objects
            task.cancel()
            await asyncio.to_thread(second.__exit__)

    run(body())


def test_selectors_and_a_handler_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    async def body() -> None:
        server = await asyncio.to_thread(Server().__enter__)
        async with ApiClient(server.config()) as api:
            follower = Follower(api, label_selector="app=a")
            calls: list[str] = []

            def broken(event: Event) -> None:
                calls.append(event.key)
                raise ValueError("bad object")

            synced: list[bool] = []
            failing = Informer(api, PODS, on_event=broken, on_synced=lambda: synced.append(True))
            tasks = [asyncio.create_task(i.run()) for i in (follower.informer, failing)]
            await failing.synced.wait()
            for own, app in (("p1", "a"), ("p2", "b"), ("p3", "a")):
                await api.create(PODS, pod(own, labels={"app": app}))
            await api.patch(PODS + "/p1", {"metadata": {"labels": {"app": "b"}}})
            await until(lambda: len(calls) == 4 and list(follower.believed) == ["default/p3"])
            assert calls == ["default/p1", "default/p2", "default/p3", "default/p1"] and synced == [True]
            assert sorted(failing.objects) == ["default/p1", "default/p2", "default/p3"]
            for task in tasks:
                task.cancel()
        await asyncio.to_thread(server.__exit__)

    run(body())
    assert capsys.readouterr().err.count("event handler failed") == 4


def test_errors_of_the_client() -> None:
    async def body() -> None:
        server = await asyncio.to_thread(Server().__enter__)
        async with ApiClient(server.config()) as api:
            for work, code, reason in (
                (api.get(PODS + "/none"), 404, "NotFound"),
                (api.create(PODS, {"kind": "Node"}), 400, "BadRequest"),
                (api.create(PODS, {"metadata": {"name": "x"}}), 422, "Invalid"),
                (api.patch(PODS + "/x", b"{"), 400, "BadRequest"),
                (api.delete(PODS + "/x"), 404, "NotFound"),
            ):
                with pytest.raises(Refused) as caught:
                    await work
                assert (caught.value.code, caught.value.reason) == (code, reason)
                assert caught.value.message == caught.value.body["message"]
            with pytest.raises(Refused) as caught:
                async for _ in api.watch(PODS, {"resourceVersion": "x"}):
                    pass
            assert caught.value.code == 500, "as upstream"
            assert await api.request("GET", "/healthz") == "ok"
        async with ApiClient(server.config("wrong")) as api:
            with pytest.raises(Refused) as caught:
                await api.get(PODS)
            assert (caught.value.code, caught.value.reason) == (401, "Unauthorized")
        distrusts = ClientConfig(server.config().server, "admin-token", ssl.create_default_context())
        async with ApiClient(distrusts) as api:
            with pytest.raises(Unreachable, match=r"(?i)certificate"):
                await api.get(PODS)
        with pytest.raises(RuntimeError, match="async with"):
            await ApiClient(server.config()).get(PODS)
        await asyncio.to_thread(server.__exit__)

    run(body())


def test_kubeconfig_with_client_certificate(tmp_path: Path) -> None:
    with Server() as server:
        path = server.kubeconfig(tmp_path / "kubeconfig")
        assert path.stat().st_mode & 0o077 == 0

        async def body() -> None:
            async with ApiClient(client_config.load(path)) as api:
                assert (await api.get("/version"))["gitVersion"].startswith("v1.")
                assert (await api.get(PODS))["items"] == []

        run(body())


@pytest.mark.parametrize(
    "text",
    ["", "a: [", "apiVersion: v1\nkind: Config\n", "[]", "current-context: x\nclusters: []\ncontexts: []\nusers: []\n"],
)
def test_bad_kubeconfigs_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(ConfigError, match="kubeconfig"):
        client_config.load(path)
    with pytest.raises(ConfigError, match="missing"):
        client_config.load(tmp_path / "missing")
