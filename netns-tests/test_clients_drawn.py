"""schemathesis draws requests from the server's own OpenAPI: none is answered by a fault of the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import clients
from lab.patience import patient
from podwire_controlplane.server import handlers
from podwire_controlplane.testing.servers import AUTHORITY, Server
from podwire_controlplane.testing.widgets import CRDS, definition

pytestmark = [pytest.mark.clients, pytest.mark.long]
DOCUMENTS = ("apis/batch/v1", "apis/networking.k8s.io/v1", "apis/example.com/v1", "apis/policy/v1")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_request_is_answered_by_a_fault(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with clients.reachable("schemathesis"):
        packages = clients.site_packages()
    monkeypatch.setattr(handlers, "MAX_WATCH", 0.3)
    (tmp_path / "ca.pem").write_text(AUTHORITY.certificate)
    hooks = {"PYTHONPATH": f"{packages}:{clients.PYTHON}", "SCHEMATHESIS_HOOKS": "drawn"}
    with Server() as server:
        server.good("POST", CRDS, definition())
        (tmp_path / "openapi.json").write_text(json.dumps(server.good("GET", f"/openapi/v3/{document}")))
        words = [
            *("run", str(tmp_path / "openapi.json"), "--url", f"https://127.0.0.1:{server.port}"),
            *("--header", "Authorization: Bearer admin-token", "--tls-verify", str(tmp_path / "ca.pem")),
            *("--checks", "no_fault_of_the_server", "--phases", "fuzzing", "--max-examples", "10", "--seed", "1"),
            *("--continue-on-failure", "--suppress-health-check", "all", "--warnings", "off", "--no-color"),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", *words],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **hooks, "HOME": str(tmp_path)},
            cwd=tmp_path,
            timeout=patient(300),
        )
        assert server.good("GET", "/version")["major"] == "1", "it still serves"
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Tested" in done.stdout
