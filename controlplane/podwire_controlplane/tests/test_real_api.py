"""Informers and the client before a real API server's answers: streams cut anywhere, 410, 429, pages, several servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_controlplane.api.meta import Object, name
from podwire_controlplane.client import config as client_config
from podwire_controlplane.client import http as client_http
from podwire_controlplane.client import informer as informer_module
from podwire_controlplane.client.config import ClientConfig, ConfigError
from podwire_controlplane.client.http import ApiClient, ApiError
from podwire_controlplane.client.informer import Informer
from podwire_controlplane.client.reflector import Event
from podwire_controlplane.server import pki

from . import recorded
from .builders import run
from .scripted import Asked, Handler, Link, Scripted
from .servers import AUTHORITY, TOKENS, Server
from .test_informer import until
from .test_reflector import replay

SERVICES = "/api/v1/services"
VERSION = 812_345_678_901
WEB = recorded.service("web", "10.96.7.5", VERSION - 5)
DB = recorded.service("db", "10.96.7.6", VERSION - 4)


@contextlib.asynccontextmanager
async def following(api: ApiClient, path: str = SERVICES, **more: Any) -> AsyncIterator[tuple[Informer, list[Event]]]:
    events: list[Event] = []
    believed: dict[str, Object] = {}

    def heard(event: Event) -> None:
        replay([event], believed)
        events.append(event)

    informer = Informer(api, path, on_event=heard, **more)
    task = asyncio.create_task(informer.run())
    try:
        yield informer, events
        assert believed == informer.objects
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def scene(handler: Handler, wanted: set[str], asked_for: list[str], **more: Any) -> list[Event]:
    """Follow until the copy holds `wanted`; the kinds of the requests were `asked_for`, in this order."""
    async with Scripted(handler) as server, ApiClient(server.config()) as api, following(api, **more) as (informer, events):
        await until(lambda: {name(o) for o in informer.objects.values()} == wanted and len(server.asked) >= len(asked_for))
        assert server.kinds()[:len(asked_for)] == asked_for
        for asked in server.asked:
            assert asked.path == SERVICES and (asked.kind == "list" or asked.query["allowWatchBookmarks"] == "true")
    return events


def kinds(events: list[Event]) -> list[tuple[str, str]]:
    return [(e.type, name(e.object)) for e in events]


async def hold(link: Link, *pieces: bytes) -> None:
    """A stream that stays open."""
    await link.chunks(*pieces, end=False)
    await asyncio.Event().wait()


def test_the_first_state_comes_as_a_stream() -> None:
    """WatchList: nothing is believed before the bookmark, and the stream goes on as the watch."""
    more = recorded.service("more", "10.96.7.7", VERSION + 3)

    async def handler(asked: Asked, link: Link) -> None:
        assert asked.query["resourceVersionMatch"] == "NotOlderThan" and "resourceVersion" not in asked.query
        await hold(link, recorded.frame("ADDED", WEB), recorded.frame("ADDED", DB), recorded.bookmark(VERSION, end=True),
                   recorded.frame("ADDED", more), recorded.frame("DELETED", {**DB, "metadata": {
                       **DB["metadata"], "resourceVersion": str(VERSION + 4)}}))

    events = run(scene(handler, {"web", "more"}, ["stream"]))
    assert kinds(events) == [("ADDED", "web"), ("ADDED", "db"), ("ADDED", "more"), ("DELETED", "db")]


def test_a_stream_that_breaks_off_has_told_nothing() -> None:
    async def handler(asked: Asked, link: Link) -> None:
        if handler_calls.append(asked.kind) or len(handler_calls) == 1:  # type: ignore[func-returns-value]  # append's None
            await link.chunks(recorded.frame("ADDED", WEB), end=False)
            link.writer.transport.abort()
            return
        await hold(link, recorded.frame("ADDED", DB), recorded.bookmark(VERSION, end=True))

    handler_calls: list[str] = []
    assert kinds(run(scene(handler, {"db"}, ["stream", "stream"]))) == [("ADDED", "db")]


@pytest.mark.parametrize("how", ["refused", "ended", "silent"])
def test_without_watchlist_lists_come_in_pages(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that refuse it, that ignore it and end the stream, and that ignore it and stay silent."""
    monkeypatch.setattr(informer_module, "STREAM_SILENCE", 0.2)

    async def handler(asked: Asked, link: Link) -> None:
        if asked.kind == "stream":
            if how == "refused":
                await link.answer(422, recorded.NO_WATCHLIST)
            elif how == "ended":
                await link.chunks(recorded.frame("ADDED", WEB))
            else:
                await hold(link, recorded.frame("ADDED", WEB))
        elif asked.kind == "list":
            assert asked.query["limit"] == "500"
            page = {"": ([WEB], "abc=="), "abc==": ([DB], "")}[asked.query.get("continue", "")]
            await link.answer(200, recorded.listed("Service", page[0], VERSION, page[1], 1))
        else:
            assert asked.query["resourceVersion"] == str(VERSION)
            await hold(link)

    events = run(scene(handler, {"web", "db"}, ["stream", "list", "list", "watch"]))
    assert kinds(events) == [("ADDED", "web"), ("ADDED", "db")]


def test_a_page_that_came_too_late_begins_the_list_anew() -> None:
    late: list[str] = []

    async def handler(asked: Asked, link: Link) -> None:
        if asked.kind != "list":
            await hold(link)
        elif "continue" not in asked.query:
            await link.answer(200, recorded.listed("Service", [WEB], VERSION, "" if late else "old", 4))
        else:
            late.append("")
            await link.answer(410, recorded.status(410, "Expired", "The provided continue parameter is too old to display a "
                                                   "consistent list result."))

    assert kinds(run(scene(handler, {"web"}, ["list", "list", "list", "watch"], stream=False))) == [("ADDED", "web")]


@pytest.mark.parametrize("where", ["answer", "frame"])
def test_gone_lists_again_and_tells_only_the_difference(where: str) -> None:
    lists = [[WEB, DB], [WEB, recorded.service("new", "10.96.7.9", VERSION + 900)]]
    watched: list[str] = []

    async def handler(asked: Asked, link: Link) -> None:
        if asked.kind == "list":
            await link.answer(200, recorded.listed("Service", lists[len(watched)], VERSION + 1000 * len(watched)))
        elif not watched:
            watched.append("")
            if where == "answer":
                await link.answer(410, recorded.GONE)
            else:
                await link.chunks(recorded.frame("ERROR", recorded.GONE))
        else:
            await hold(link)

    events = run(scene(handler, {"web", "new"}, ["list", "watch", "list", "watch"], stream=False))
    assert kinds(events) == [("ADDED", "web"), ("ADDED", "db"), ("DELETED", "db"), ("ADDED", "new")]


def test_bookmarks_carry_the_version_over_an_idle_time() -> None:
    async def handler(asked: Asked, link: Link) -> None:
        if asked.kind == "list":
            await link.answer(200, recorded.listed("Service", [WEB], VERSION))
        elif asked.query["resourceVersion"] == str(VERSION):
            await link.chunks(recorded.bookmark(VERSION + 50_000))
        else:
            assert asked.query["resourceVersion"] == str(VERSION + 50_000)
            await hold(link)

    assert kinds(run(scene(handler, {"web"}, ["list", "watch", "watch"], stream=False))) == [("ADDED", "web")]


@pytest.mark.parametrize("header", [True, False])
def test_too_many_requests_waits_as_long_as_it_is_told(header: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def slept(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    async def handler(asked: Asked, link: Link) -> None:
        if len(tries) < 3:
            tries.append(asked.kind)
            status = {**recorded.BUSY, "details": {"retryAfterSeconds": 7}}
            await link.answer(429, b"slow down" if header else status, {"Retry-After": "7"} if header else {})
        elif asked.kind == "list":
            await link.answer(200, recorded.listed("Service", [WEB], VERSION))
        else:
            await hold(link)

    tries: list[str] = []
    monkeypatch.setattr("podwire_controlplane.client.informer.asyncio.sleep", slept)
    run(scene(handler, {"web"}, ["list"] * 4, stream=False))
    asked_to_wait = [w for w in waits if w >= 7]
    assert len(asked_to_wait) == 3 and max(asked_to_wait) <= 7 * 1.6 and len(set(asked_to_wait)) == 3, "with jitter"


def test_back_off_grows_to_its_end_with_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    class Enough(Exception):
        pass

    async def slept(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 12:
            raise Enough

    async def body() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            async with ApiClient(ClientConfig(f"http://127.0.0.1:{closed.getsockname()[1]}")) as api:
                monkeypatch.setattr("podwire_controlplane.client.informer.asyncio.sleep", slept)
                with pytest.raises(Enough):
                    await Informer(api, SERVICES).run()

    run(body())
    for n, wait in enumerate(waits):
        assert min(0.05 * 2 ** n, 5) <= wait <= min(0.05 * 2 ** n, 5) * 1.6


@given(st.integers(0, 2 ** 32))
def test_a_stream_may_be_cut_anywhere(seed: int) -> None:
    """HTTP chunks do not end where lines end; a line may be empty (servers send such to keep proxies awake)."""
    chance = random.Random(seed)
    names = [f"s{n}" for n in range(chance.randint(0, 6))]
    frames = [recorded.frame("ADDED", recorded.service(own, "10.96.0.9", VERSION + n)) for n, own in enumerate(names)]
    text = b"".join(frame + chance.choice([b"", b"", b"\n"]) for frame in frames) + recorded.bookmark(VERSION + 99)
    cuts = sorted(chance.randint(0, len(text)) for _ in range(chance.randint(0, 12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if a < b]

    async def handler(_asked: Asked, link: Link) -> None:
        await link.chunks(*pieces)

    async def body() -> list[Object]:
        async with Scripted(handler) as server, ApiClient(server.config()) as api:
            return [frame async for frame in api.watch(SERVICES, {})]

    got = run(body())
    assert [name(frame["object"]) for frame in got[:-1]] == names and got[-1]["type"] == "BOOKMARK"


def test_garbage_in_a_stream_is_an_error_not_an_end() -> None:
    async def handler(asked: Asked, link: Link) -> None:
        if asked.kind == "list":
            await link.answer(200, recorded.listed("Service", [WEB], VERSION))
        elif len([k for k in seen if k == "watch"]) == 0:
            seen.append("watch")
            await link.chunks(b"<html>502 Bad Gateway</html>\n")
        else:
            await hold(link, recorded.frame("ADDED", recorded.service("db", "10.96.7.6", VERSION + 1)))

    seen: list[str] = []
    assert kinds(run(scene(handler, {"web", "db"}, ["list", "watch", "watch"], stream=False)))[-1] == ("ADDED", "db")


# ---- several servers


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_next_server_is_asked_when_one_is_away() -> None:
    async def good(asked: Asked, link: Link) -> None:
        await link.answer(200, {"method": asked.method})

    async def body() -> None:
        dead = f"http://127.0.0.1:{_free_port()}"
        async with Scripted(good) as live, ApiClient(ClientConfig(dead, others=(dead, live.url))) as api:
            for method in ("GET", "POST", "PATCH", "DELETE"):  # nothing was sent to the dead one: writes may go elsewhere too
                assert await api.request(method, "/x") == {"method": method}
            assert api.server == live.url and len(live.asked) == 4
        async with ApiClient(ClientConfig(dead, others=(dead,))) as api:
            with pytest.raises(ApiError) as caught:
                await api.get("/x")
            assert caught.value.reason == "Unreachable" and dead in caught.value.message

    run(body())


def test_a_server_that_shuts_down_is_left_but_a_write_is_never_repeated() -> None:
    async def going(_asked: Asked, link: Link) -> None:
        await link.answer(503, recorded.status(503, "ServiceUnavailable", "apiserver is shutting down"))

    async def cut(_asked: Asked, link: Link) -> None:
        link.writer.transport.abort()

    async def good(_asked: Asked, link: Link) -> None:
        await link.answer(201, {"kind": "Event"})

    async def body() -> None:
        for first in (going, cut):
            async with Scripted(first) as one, Scripted(good) as two, ApiClient(
                    ClientConfig(one.url, others=(two.url,))) as api:
                with pytest.raises(ApiError):  # the first may have done it: only the caller knows whether to say it again
                    await api.create("/api/v1/namespaces/d/events", {})
                assert (await api.create("/api/v1/namespaces/d/events", {}))["kind"] == "Event"
                assert len(one.asked) == len(two.asked) == 1

    run(body())


def test_a_watch_goes_on_at_the_next_server() -> None:
    async def handler(asked: Asked, link: Link) -> None:
        if asked.kind == "list":
            await link.answer(200, recorded.listed("Service", [WEB], VERSION))
        else:
            await hold(link)

    async def second(asked: Asked, link: Link) -> None:
        assert asked.kind == "watch" and asked.query["resourceVersion"] == str(VERSION), "no new list is needed"
        await hold(link, recorded.frame("ADDED", recorded.service("late", "10.96.7.8", VERSION + 1)))

    async def body() -> None:
        async with contextlib.AsyncExitStack() as stack:
            one, two = await Scripted(handler).__aenter__(), await stack.enter_async_context(Scripted(second))
            api = await stack.enter_async_context(ApiClient(ClientConfig(one.url, others=(two.url,))))
            informer, events = await stack.enter_async_context(following(api, stream=False))
            await until(lambda: one.kinds() == ["list", "watch"])
            await one.__aexit__()
            await until(lambda: len(informer.objects) == 2)
            assert kinds(events) == [("ADDED", "web"), ("ADDED", "late")]

    run(body())


def test_connections_notice_that_the_other_end_lost_its_power(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    make = client_http._socket

    def noted(address: tuple[Any, ...]) -> socket.socket:
        made.append(make(address))
        return made[-1]

    async def handler(_asked: Asked, link: Link) -> None:
        await hold(link, recorded.bookmark(VERSION))

    async def body() -> None:
        monkeypatch.setattr(client_http, "_socket", noted)
        async with (Scripted(handler) as server, ApiClient(server.config()) as api,
                    contextlib.aclosing(api.watch(SERVICES, {})) as frames):
            await anext(frames)
            (sock,) = made
            assert sock.getpeername()[1] == server.port
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == client_http.DEAD_SECONDS * 1000
            idle, again, count = (sock.getsockopt(socket.IPPROTO_TCP, option) for option in (
                socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT))
            assert idle + again * count == client_http.DEAD_SECONDS

    run(body())


# ---- credentials


def account(folder: Path, token: str) -> Path:
    """A service account's volume as the kubelet makes it: links that are switched over at once."""
    folder.mkdir(exist_ok=True)
    data = folder / f"..{len(list(folder.iterdir()))}"
    data.mkdir()
    for own, text in (("token", token + "\n"), ("ca.crt", AUTHORITY.certificate), ("namespace", "kube-system")):
        (data / own).write_text(text)
        if not (folder / own).is_symlink():
            (folder / own).symlink_to(f"..data/{own}")
    (folder / "..new").symlink_to(data.name)
    (folder / "..new").rename(folder / "..data")
    return folder


def test_in_cluster_and_a_token_that_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old token is refused: the new one is read at once, the request is said again, and the watch follows."""
    folder = account(tmp_path / "account", "admin-token")

    async def body() -> None:
        server = await asyncio.to_thread(Server().__enter__)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        monkeypatch.setenv("PODWIRE_SERVICE_ACCOUNT_DIR", str(folder))
        try:
            async with ApiClient(client_config.load(None)) as api, following(api) as (informer, _):
                await informer.synced.wait()
                with monkeypatch.context() as patch:
                    patch.delitem(TOKENS, "admin-token")
                    patch.setitem(TOKENS, "second-token", TOKENS["reader-token"])
                    with pytest.raises(ApiError) as caught:
                        await api.get(SERVICES)
                    assert caught.value.code == 401
                    account(folder, "second-token")
                    assert (await api.get(SERVICES))["items"] == []
                    assert api.config.token == "second-token" and api.config.server == f"https://127.0.0.1:{server.port}"
        finally:
            await asyncio.to_thread(server.__exit__)

    run(body())


def test_credentials_that_are_broken_for_a_moment_stay_as_they_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Server() as server:
        path = server.kubeconfig(tmp_path / "kubeconfig")
        good = path.read_text()

        async def body() -> None:
            async with ApiClient(client_config.load(path)) as api:
                path.write_text("half a kubeco")
                assert api._look(now=True) is False and (await api.get(SERVICES))["items"] == []
                path.write_text(good)
                assert api._look(now=True) is True and api._look(now=True) is False
                assert (await api.get(SERVICES))["items"] == []

        run(body())
    assert "the old ones stay" in capsys.readouterr().err


def test_a_renewed_certificate_is_shown_on_new_connections(tmp_path: Path) -> None:
    """As a kubelet's: client-certificate is a file, renewed in place."""
    with Server() as server:
        names = {"cert": tmp_path / "client.pem", "key": tmp_path / "client-key.pem"}

        def issue(user: str, group: str) -> None:
            pair = AUTHORITY.client(user, [group])
            pki.write_private(names["cert"], pair.certificate)
            pki.write_private(names["key"], pair.key)

        issue("nobody", "nothing")
        (tmp_path / "ca.pem").write_text(AUTHORITY.certificate)
        path = tmp_path / "kubeconfig"
        path.write_text(json.dumps({
            "current-context": "c", "clusters": [{"name": "c", "cluster": {
                "server": f"https://127.0.0.1:{server.port}", "certificate-authority": "ca.pem"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {"client-certificate": "client.pem", "client-key": "client-key.pem"}}]}))

        async def body() -> None:
            async with ApiClient(client_config.load(path)) as api:
                with pytest.raises(ApiError) as caught:
                    await api.get(SERVICES)
                assert caught.value.code == 403
                issue("admin", "system:masters")
                api._look(now=True)
                assert (await api.get(SERVICES))["items"] == []

        run(body())


def _kubeconfig(path: Path, user: Object | None = None, **cluster: Any) -> Path:
    path.write_text(json.dumps({
        "current-context": "c", "clusters": [{"name": "c", "cluster": {"server": "https://192.0.2.1:6443", **cluster}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": user or {}}]}))
    return path


@pytest.mark.parametrize(("user", "cluster", "field"), [
    ({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "aws"}}, {}, "user.exec"),
    ({"auth-provider": {"name": "gcp"}}, {}, "user.auth-provider"), ({"username": "x", "password": "y"}, {}, "user.username"),
    ({"as": "root"}, {}, "user.as"), ({"client-certificate-data": "eA=="}, {}, "client-key is missing"),
    ({"token": "t"}, {"proxy-url": "http://proxy"}, "cluster.proxy-url"), ({"tokenFile": "nowhere"}, {}, "nowhere"),
    ({}, {"server": "192.0.2.1:6443"}, "https://HOST:PORT"), ({}, {"certificate-authority-data": "eA=="}, "kubeconfig")])
def test_what_a_kubeconfig_asks_for_in_vain_is_named(tmp_path: Path, user: Object, cluster: Object, field: str) -> None:
    with pytest.raises(ConfigError, match=r"kubeconfig: .*" + field if field != "kubeconfig" else field):
        client_config.load(_kubeconfig(tmp_path / "kubeconfig", user, **cluster))


def test_addresses_and_names_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("t-1\n")
    path = _kubeconfig(tmp_path / "kubeconfig", {"tokenFile": "token"}, **{"tls-server-name": "kubernetes"})
    config = client_config.load(path)
    assert (config.servers, config.token, config.server_name) == (("https://192.0.2.1:6443",), "t-1", "kubernetes")
    assert set(config.files) == {path, tmp_path / "token"}
    monkeypatch.setenv("PODWIRE_API_SERVERS", "https://10.0.0.1:6443, https://10.0.0.2:6443/  https://10.0.0.1:6443")
    assert client_config.load(path).servers == ("https://10.0.0.1:6443", "https://10.0.0.2:6443")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    folder = account(tmp_path / "account", "t")
    assert client_config.load(None, folder=folder).servers[1] == "https://10.0.0.2:6443", "no Service is needed to begin with"
    monkeypatch.delenv("PODWIRE_API_SERVERS")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    assert client_config.load(None, folder=folder).server == "https://[fd00::1]:443"
    monkeypatch.chdir(tmp_path)
    assert client_config.load("kubeconfig").token == "t-1", "relative names are relative to the file"
    for env, word in ((("PODWIRE_API_SERVERS", "10.0.0.1"), "10.0.0.1"), (("KUBERNETES_SERVICE_HOST", ""), "outside a pod")):
        with monkeypatch.context() as patch:
            patch.setenv(*env)
            with pytest.raises(ConfigError, match=word):
                client_config.load(None, folder=folder)


def test_the_name_in_the_servers_certificate(tmp_path: Path) -> None:
    """A load balancer's address is not in the certificate: tls-server-name says what is."""
    with Server() as server:
        user = {"token": "admin-token"}
        (tmp_path / "ca.pem").write_text(AUTHORITY.certificate)
        for wanted, good in (("localhost", True), ("elsewhere", False)):
            path = _kubeconfig(tmp_path / "kubeconfig", user, **{
                "server": f"https://127.0.0.1:{server.port}", "certificate-authority": "ca.pem", "tls-server-name": wanted})

            async def body(path: Path = path) -> Object:
                async with ApiClient(client_config.load(path)) as api:
                    return await api.get(SERVICES)

            if good:
                assert run(body())["items"] == []
            else:
                with pytest.raises(ApiError, match="certificate"):
                    run(body())
