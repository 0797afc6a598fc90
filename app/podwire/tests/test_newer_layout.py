"""State of a later version on the node: every role refuses it by name before it touches anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from podwire.agent import AgentConfig, roles
from podwire.main import cli
from podwire.settings import ROLES
from podwire_base.role import layout, logs
from podwire_controlplane.server import auth, pki
from podwire_controlplane.server import main as server


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A run directory of a later version, and a kubeconfig. Roles name their node in the log of this process; the tests
    that follow must not.
    """
    monkeypatch.setattr(logs, "configure", lambda **_: None)
    run_dir, kubeconfig = tmp_path / "run", tmp_path / "kubeconfig"
    run_dir.mkdir()
    (run_dir / layout.FILE).write_text(json.dumps({"layout": 2, "version": "9.1.0"}))
    authority = pki.Authority()
    pair = authority.client("admin", [auth.ADMINS])
    kubeconfig.write_text(pki.kubeconfig("c", "https://127.0.0.1:1", authority.certificate, "admin", pair))
    return run_dir, kubeconfig


@pytest.mark.parametrize("name", ["policy", "wiring", "proxy", "dns-feeder", "dns", "lb", "observe", "node"])
def test_each_role_refuses(node: tuple[Path, Path], name: str) -> None:
    run_dir, kubeconfig = node
    config = AgentConfig("n1", str(kubeconfig), run_dir, "192.0.2.1", uplink="lo", roles=ROLES)
    (role,) = [row for row in roles(config) if row.name == name]
    with pytest.raises(layout.NewerLayout, match=r"podwire 9\.1\.0 wrote"):
        role.run()
    assert [file.name for file in run_dir.iterdir()] == [layout.FILE]


def test_the_agent_refuses_before_it_starts_a_role(node: tuple[Path, Path]) -> None:
    run_dir, kubeconfig = node
    words = ["agent", "--node-name", "n1", "--kubeconfig", str(kubeconfig), "--run-dir", str(run_dir)]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 1 and "podwire 9.1.0" in done.output and "--for-downgrade" in done.output
    assert [file.name for file in run_dir.iterdir()] == [layout.FILE]


@pytest.mark.parametrize("state", ["newer", "damaged", "locked"])
def test_the_api_server_names_a_store_that_it_cannot_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(server, "main", lambda _, work: asyncio.run(work))  # without changes of this process
    path = tmp_path / "store.db"
    with contextlib.ExitStack() as stack:
        if state == "damaged":
            path.write_bytes(b"not a database " * 1000)
        else:
            db = stack.enter_context(contextlib.closing(sqlite3.connect(path, isolation_level=None)))
            db.execute("PRAGMA user_version=7")
            if state == "locked":
                db.execute("BEGIN EXCLUSIVE")
        done = CliRunner().invoke(cli, ["apiserver", "--data", str(tmp_path), "--listen", "127.0.0.1:1"])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit) and str(path) in done.output
    said = " ".join(done.output.split())  # without the line breaks of a terminal
    assert {"newer": "layout 7", "damaged": "damaged", "locked": "another API server"}[state] in said
