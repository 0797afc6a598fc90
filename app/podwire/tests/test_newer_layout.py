"""State of a later version on the node: every role refuses it by name before it touches anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from podwire.agent import AgentConfig, roles
from podwire.main import cli
from podwire.settings import ROLES
from podwire_base.role import layout, logs
from podwire_controlplane.server import auth, pki


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


@pytest.mark.parametrize("name", ["wiring", "proxy", "dns-feeder", "dns", "lb", "node"])
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
