"""The sources of a client's credentials, and what happens when credentials change or are wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from podwire_base.kube.client import config as client_config
from podwire_base.kube.client import http as client_http
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ConfigError, Refused, Unreachable
from podwire_base.kube.meta import Object
from podwire_base.testing.builders import run
from podwire_base.testing.following import SERVICES, following
from podwire_base.testing.scripted import Link, Request, Scripted
from podwire_controlplane.server import pki

from ..testing.servers import AUTHORITY, TOKENS, Server


def account(folder: Path, token: str) -> Path:
    """Write a service account's volume as the kubelet does, with symbolic links that are switched atomically."""
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


@contextlib.asynccontextmanager
async def serving(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    """An API server, named in a pod's environment variables."""
    server = await asyncio.to_thread(Server().__enter__)
    try:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        yield server
    finally:
        await asyncio.to_thread(server.__exit__)


def test_in_cluster_and_a_token_that_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server refuses the old token: the client reads the new one at once, repeats the request, and the watch
    continues.
    """
    folder = account(tmp_path / "account", "admin-token")

    async def body() -> None:
        monkeypatch.setenv("PODWIRE_SERVICE_ACCOUNT_DIR", str(folder))
        async with (
            serving(monkeypatch) as server,
            ApiClient(client_config.load(None)) as api,
            following(api) as (informer, _),
        ):
            await informer.synced.wait()
            with monkeypatch.context() as patch:
                patch.delitem(TOKENS, "admin-token")
                patch.setitem(TOKENS, "second-token", TOKENS["reader-token"])
                with pytest.raises(Refused) as caught:
                    await api.get(SERVICES)
                assert caught.value.code == 401
                account(folder, "second-token")
                assert (await api.get(SERVICES))["items"] == []
                assert api.config.token == "second-token" and api.config.server == f"https://127.0.0.1:{server.port}"

    run(body())


def test_a_renewed_token_is_used_before_the_old_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kubelet renews a token long before it expires, and the client reads the files periodically."""
    folder = account(tmp_path / "account", "admin-token")

    async def body() -> None:
        async with serving(monkeypatch), ApiClient(client_config.load(None, folder=folder)) as api:
            await api.get(SERVICES)
            account(folder, "reader-token")
            await api.get(SERVICES)
            assert api.config.token == "admin-token", "no disk access for each request"
            monkeypatch.setattr(client_http, "LOOK_SECONDS", 0.0)
            await api.get(SERVICES)
            assert api.config.token == "reader-token"

    run(body())


def test_a_watch_that_is_refused_has_the_new_token_the_next_time(tmp_path: Path) -> None:
    """After a suspend, the old token is expired, a new token exists, and the client sends only watches."""
    folder = account(tmp_path / "account", "old")

    async def body() -> None:
        async def handler(asked: Request, link: Link) -> None:
            if asked.headers["authorization"] != "Bearer new":
                await link.answer(401, {"kind": "Status", "code": 401, "reason": "Unauthorized"})
            elif asked.kind == "list":
                await link.answer(200, {"metadata": {"resourceVersion": "4"}, "items": []})
            else:
                await link.chunks(end=False)

        async with Scripted(handler) as server:
            config = replace(
                server.config(),
                token="old",
                files=(folder / "token",),
                again=lambda: replace(config, token=(folder / "token").read_text().strip()),
            )
            async with ApiClient(config) as api:
                api._look()  # the next periodic check is far away
                account(folder, "new")
                with pytest.raises(Refused) as caught:
                    async for _ in api.watch(SERVICES, {}):
                        pass
                assert caught.value.code == 401 and api.config.token == "new"

    run(body())


def test_credentials_that_are_broken_for_a_moment_stay_as_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    """client-certificate names a file that is renewed in place, as with a kubelet."""
    with Server() as server:
        names = {"cert": tmp_path / "client.pem", "key": tmp_path / "client-key.pem"}

        def issue(user: str, group: str) -> None:
            pair = AUTHORITY.client(user, [group])
            pki.write_private(names["cert"], pair.certificate)
            pki.write_private(names["key"], pair.key)

        issue("nobody", "nothing")
        (tmp_path / "ca.pem").write_text(AUTHORITY.certificate)
        path = tmp_path / "kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "current-context": "c",
                    "clusters": [
                        {
                            "name": "c",
                            "cluster": {
                                "server": f"https://127.0.0.1:{server.port}",
                                "certificate-authority": "ca.pem",
                            },
                        }
                    ],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "users": [
                        {"name": "u", "user": {"client-certificate": "client.pem", "client-key": "client-key.pem"}}
                    ],
                }
            )
        )

        async def body() -> None:
            async with ApiClient(client_config.load(path)) as api:
                with pytest.raises(Refused) as caught:
                    await api.get(SERVICES)
                assert caught.value.code == 403
                issue("admin", "system:masters")
                api._look(now=True)
                assert (await api.get(SERVICES))["items"] == []

        run(body())


def _kubeconfig(path: Path, user: Object | None = None, **cluster: Any) -> Path:
    path.write_text(
        json.dumps(
            {
                "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": "https://192.0.2.1:6443", **cluster}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": user or {}}],
            }
        )
    )
    return path


@pytest.mark.parametrize(
    ("user", "cluster", "field"),
    [
        ({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "aws"}}, {}, "user.exec"),
        ({"auth-provider": {"name": "gcp"}}, {}, "user.auth-provider"),
        ({"username": "x", "password": "y"}, {}, "user.username"),
        ({"as": "root"}, {}, "user.as"),
        ({"client-certificate-data": "eA=="}, {}, "client-key is missing"),
        ({"token": "t"}, {"proxy-url": "http://proxy"}, "cluster.proxy-url"),
        ({"tokenFile": "nowhere"}, {}, "nowhere"),
        ({}, {"server": "192.0.2.1:6443"}, "https://HOST:PORT"),
        ({}, {"certificate-authority-data": "eA=="}, "kubeconfig"),
    ],
)
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
    assert client_config.load(None, folder=folder).servers[1] == "https://10.0.0.2:6443", (
        "no Service is needed to begin with"
    )
    monkeypatch.delenv("PODWIRE_API_SERVERS")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    assert client_config.load(None, folder=folder).server == "https://[fd00::1]:443"
    monkeypatch.chdir(tmp_path)
    assert client_config.load("kubeconfig").token == "t-1", "relative names are relative to the file"
    for env, word in (
        (("PODWIRE_API_SERVERS", "10.0.0.1"), "10.0.0.1"),
        (("KUBERNETES_SERVICE_HOST", ""), "outside a pod"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(*env)
            with pytest.raises(ConfigError, match=word):
                client_config.load(None, folder=folder)


def test_the_name_in_the_servers_certificate(tmp_path: Path) -> None:
    """The certificate lacks the load balancer's address; tls-server-name gives a name that the certificate has."""
    with Server() as server:
        user = {"token": "admin-token"}
        (tmp_path / "ca.pem").write_text(AUTHORITY.certificate)
        for wanted, good in (("localhost", True), ("elsewhere", False)):
            path = _kubeconfig(
                tmp_path / "kubeconfig",
                user,
                **{
                    "server": f"https://127.0.0.1:{server.port}",
                    "certificate-authority": "ca.pem",
                    "tls-server-name": wanted,
                },
            )

            async def body(path: Path = path) -> Object:
                async with ApiClient(client_config.load(path)) as api:
                    return await api.get(SERVICES)

            if good:
                assert run(body())["items"] == []
            else:
                with pytest.raises(Unreachable, match="certificate"):
                    run(body())
