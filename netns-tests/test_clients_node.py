"""@kubernetes/client-node, unmodified: objects, patches, a watch, and an informer across a restart of the server."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lab import clients
from lab.patience import patient
from podwire_controlplane.store.memory import MemoryStore
from podwire_controlplane.store.sqlite import SqliteStore
from podwire_controlplane.testing.servers import Server

WANTED = [
    "read red",
    "replaced blue",
    "conflict 409",
    "patched green",
    "listed 1",
    "deployments 0",
    "made b",
    "watched ADDED:a,DELETED:a",
    "informed c",
]


@pytest.mark.clients
@pytest.mark.long
def test_node_follows_across_a_restart(tmp_path: Path) -> None:
    def make() -> MemoryStore:
        return SqliteStore(tmp_path / "s.db")

    with clients.reachable("@kubernetes/client-node"):
        folder = clients.node_modules()
    first = Server(make).__enter__()
    kubeconfig = first.kubeconfig(tmp_path / "kubeconfig")
    client = subprocess.Popen(
        ["node", str(clients.NODE / "client.js")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KUBECONFIG": str(kubeconfig), "NODE_PATH": str(folder)},
    )
    running = first
    try:
        assert client.stdin is not None and client.stdout is not None
        for line in WANTED:
            assert client.stdout.readline().strip() == line
        first.__exit__()
        running = Server(make, first.port).__enter__()
        rest, errors = client.communicate("go on\n", timeout=patient(60))
        assert (rest.strip(), client.returncode) == ("again c,d", 0), errors
    finally:
        client.kill()
        print(client.communicate()[1])
        running.__exit__()
