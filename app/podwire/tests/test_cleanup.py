"""Plain `podwire cleanup` takes the finalizer off the cluster's Services, or says why it did not."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from podwire.commands import explain
from podwire.main import cli
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import Refused
from podwire_proxy import backends

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: u, user: {}}]
"""
ADVICE = "podwire cleanup --load-balancers"


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No kernel is touched."""
    for name, found in (("foreign", []), ("existing", ["table ip podwire"]), ("cleanup", ["table ip podwire"])):
        monkeypatch.setattr(backends, name, lambda found=found: found)
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "PODWIRE_NAME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config").write_text(KUBECONFIG)
    return tmp_path / "config"


def cleanup(*words: str) -> str:
    done = CliRunner().invoke(cli, ["cleanup", *words])
    assert done.exit_code == 0, done.output
    assert "remove" in done.output and "table ip podwire" in done.output, "the rules are removed whatever the API says"
    return " ".join(done.output.split())


@pytest.mark.parametrize("dry", [False, True])
def test_with_credentials_it_takes_the_finalizer_off(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch, dry: bool
) -> None:
    async def release(_api: ApiClient, *, dry_run: bool) -> list[str]:
        return [f"Service d/web, {dry_run}"]

    monkeypatch.setattr(explain, "release", release)
    told = cleanup("--kubeconfig", str(kubeconfig), *(["--dry-run"] if dry else []))
    assert f"Service d/web, {dry}" in told and ADVICE not in told


def test_what_it_could_not_do_is_said(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = cleanup()
    assert "no --kubeconfig says how to reach the API server" in told and ADVICE in told
    told = cleanup("--kubeconfig", str(kubeconfig))
    assert "cannot connect" in told and ADVICE in told

    async def release(_api: ApiClient, *, dry_run: bool) -> list[str]:
        raise Refused(403, "Forbidden", "may not patch services/status")

    monkeypatch.setattr(explain, "release", release)
    told = cleanup("--kubeconfig", str(kubeconfig))
    assert "may not patch services/status" in told and ADVICE in told


def test_the_rules_of_one_node_of_a_cluster_are_no_reason(kubeconfig: Path) -> None:
    assert "finalizer" not in cleanup("--netns", "/proc/self/ns/net", "--kubeconfig", str(kubeconfig))
