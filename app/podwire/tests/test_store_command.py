"""`podwire store backup` of a running server, and `restore` for a server that does not run."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web
from click.testing import CliRunner

from podwire.commands.join import revoke
from podwire.commands.store import store as command
from podwire_base.kube.client.http import ApiClient
from podwire_base.testing.builders import pod
from podwire_controlplane.server import backups
from podwire_controlplane.store import copies
from podwire_controlplane.store.base import Compacted
from podwire_controlplane.store.sqlite import SqliteStore
from podwire_controlplane.testing.servers import Server

PODS = "/api/v1/namespaces/default/pods"


class Backed(Server):
    def _routes(self) -> list[web.RouteDef]:
        assert isinstance(self.store, SqliteStore)
        return backups.routes(self.store)


def _run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    return result.exit_code, " ".join(result.output.split())  # without the line breaks of a terminal


def test_backup_and_restore(tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "backup.db"
    data.mkdir()
    with Backed(lambda: SqliteStore(data / "store.db")) as server:
        server.good("POST", PODS, pod("kept"))
        admin = server.kubeconfig(tmp_path / "admin.conf")
        code, text = _run("backup", file, "--kubeconfig", admin)
        assert code == 0 and "objects at revision" in text and file.stat().st_mode & 0o777 == 0o600
        assert _run("backup", file, "--kubeconfig", admin)[0] != 0, "a backup is never overwritten"
        assert server.ask("GET", backups.PATH, token="reader-token")[0] == 403
        server.good("POST", PODS, pod("later"))
        code, text = _run("restore", file, "--data", data)
        assert code != 0 and "another API server" in text
        last = server.do(server.store.revision())
    code, text = _run("restore", file, "--data", data)
    assert code == 0 and "before-restore" in text

    async def look() -> None:
        store = SqliteStore(data / "store.db")
        assert [i.key.rpartition("/")[2] for i in await store.scan("/core/pods/")] == ["kept"]
        assert await store.revision() > last + copies.JUMP / 2
        try:
            await store.since("/", last)
            raise AssertionError("a watch of the old store has to list again")
        except Compacted:
            pass
        await store.close()

    asyncio.run(look())
    with Backed(lambda: SqliteStore(data / "store.db")) as server:
        server.good("POST", PODS, pod("new"))
        assert [i["metadata"]["name"] for i in server.good("GET", PODS)["items"]] == ["kept", "new"]


def test_files_that_are_no_backups(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("this is not a store")
    code, text = _run("restore", bad, "--data", tmp_path)
    assert code != 0 and "not a backup" in text and not (tmp_path / "store.db").exists()


def test_a_download_that_is_refused(tmp_path: Path) -> None:
    async def work(server: Server) -> bytes:
        async with ApiClient(server.config("reader-token")) as api:
            return await api.download("/metrics")

    with Server() as server:
        try:
            asyncio.run(work(server))
            raise AssertionError("a reader reads no metrics")
        except Exception as err:
            assert "cannot get path" in str(err)


def test_a_server_that_is_not_podwires_own_is_named(tmp_path: Path) -> None:
    with Server() as server:  # without the paths of podwire's own
        admin = server.kubeconfig(tmp_path / "admin.conf")
        code, text = _run("backup", tmp_path / "backup.db", "--kubeconfig", admin)
        assert code == 1 and f"the API server of {admin} does not serve this command" in text
        result = CliRunner().invoke(revoke, ["node1", "--kubeconfig", str(admin)])
        assert result.exit_code == 1 and "not podwire's own" in " ".join(result.output.split())
        code, text = _run("backup", tmp_path / "backup.db", "--kubeconfig", tmp_path / "missing.conf")
        assert code == 1 and "does not serve" not in text
    assert not (tmp_path / "backup.db").exists()
