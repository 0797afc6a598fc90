"""Clients of Python, unmodified, in processes of their own: what each is told by the API server, and who leads."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import clients
from lab.patience import patient
from podwire_controlplane.server import watch
from podwire_controlplane.testing.servers import Server

pytestmark = [pytest.mark.clients, pytest.mark.long]
SAID: dict[str, dict[str, Any]] = {
    "official": {
        "replaced": {"color": "blue"},
        "conflict": [409, "Conflict"],
        "merged": {"color": "blue", "size": "1"},
        "patched": {"color": "blue"},
        "refused": [422, "metadata.name"],
        "pages": [["a", "b"], ["c", "d"], ["e"]],
        "bookmarks": ["BOOKMARK"],
        "resumed": [["ADDED", "watched"], ["DELETED", "watched"]],
        "strategy": "RollingUpdate",
        "scaled": 5,
        "strategic": ["j", 3],
        "service": "ClusterIP",
        "removed": "ConfigMapList",
        "applied": {"a": "1"},
        "allowed": True,
        "token": "system:serviceaccount:default:robot",
        "version": "1",
    },
    "asynchronous": {
        "replaced": {"color": "blue"},
        "conflict": 409,
        "patched": {"color": "blue", "size": "1"},
        "removed": {"color": "blue"},
        "listed": 20,
        "first": ["ADDED", "BOOKMARK"],
        "second": ["DELETED", "b"],
        "end": {"k8s.io/initial-events-end": "true"},
        "initial": 20,
    },
    "short": {
        "version": "1",
        "kinds": 3,
        "exists": [True, False],
        "found": [{"color": "blue"}],
        "by short name": ["a"],
        "first": "ADDED",
        "scaled": 3,
        "refused": 422,
        "left": [],
    },
    "pykube_ng": {
        "version": ["1", "36"],
        "data": {"color": "blue", "size": "1"},
        "selected": ["a"],
        "columns": ["Name", "Data", "Age"],
        "row": ["a", 2],
        "by name": "a",
        "scaled": 3,
        "left": None,
        "watched": ["ADDED", "MODIFIED", "MODIFIED", "DELETED"],
    },
}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The API server, and what a client's process needs to find it and its packages."""
    with clients.reachable("clients of Python"):
        packages = clients.site_packages()
    monkeypatch.setattr(watch, "BOOKMARK_EVERY", 0.2)
    with Server() as server:
        kubeconfig = server.kubeconfig(tmp_path / "kubeconfig")
        yield {**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONPATH": str(packages), "HOME": str(tmp_path)}


@pytest.mark.parametrize("script", SAID)
def test_a_client_is_told_what_it_should(script: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        clients.python(script), capture_output=True, text=True, check=False, env=environment, timeout=patient(120)
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == SAID[script]


@pytest.mark.parametrize("kind", ["lease", "configmap"])
def test_another_candidate_leads_when_the_leader_dies(kind: str, environment: dict[str, str]) -> None:
    with contextlib.ExitStack() as stack:

        def candidate(name: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [*clients.python("candidate"), name, kind], stdout=subprocess.PIPE, text=True, env=environment
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        def says(process: subprocess.Popen[str]) -> str:
            assert process.stdout is not None
            return process.stdout.readline().strip()

        first = candidate("ann")
        assert says(first) == "leads"
        second = candidate("bob")
        assert says(second) == "follows ann"
        first.kill()
        first.wait()
        assert says(second) == "leads", "the lease of a dead leader runs out"
        third = candidate("cid")
        assert says(third) == "follows bob"
