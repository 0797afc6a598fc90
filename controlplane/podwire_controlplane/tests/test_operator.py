"""kopf, unmodified, runs an operator on a custom resource."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podwire_base.patience import patient

from ..testing.servers import Server
from ..testing.widgets import CRDS, WIDGETS, definition, widget

kopf: Any = pytest.importorskip("kopf")
MERGE = {"Content-Type": "application/merge-patch+json"}
HELD = "kopf.zalando.org/KopfFinalizerMarker"


def operator() -> Any:
    """Return the operator: it writes the phase of each widget, and holds a deleted one until it has seen it."""
    registry = kopf.OperatorRegistry()
    which = ("example.com", "v1", "widgets")

    def follow(spec: Any, patch: Any, **_: Any) -> None:
        patch.status["phase"] = f"size {spec['size']}"

    def gone(**_: Any) -> None:
        """Kopf holds a widget by a finalizer until this has run."""

    kopf.on.login(registry=registry)(kopf.login_with_kubeconfig)
    kopf.on.create(*which, registry=registry)(follow)
    kopf.on.update(*which, field="spec.size", registry=registry)(follow)
    kopf.on.delete(*which, registry=registry)(gone)
    return registry


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as found:
        found.good("POST", "/api/v1/namespaces", {"metadata": {"name": "team-a"}})
        found.good("POST", CRDS, definition())
        monkeypatch.setenv("KUBECONFIG", str(found.kubeconfig(tmp_path / "kubeconfig")))
        yield found


def phase(server: Server, own: str, want: str) -> None:
    end = time.monotonic() + patient(20)
    while (found := server.good("GET", f"{WIDGETS}/{own}").get("status", {}).get("phase")) != want:
        assert time.monotonic() < end, found
        time.sleep(0.02)


def test_kopf_follows_widgets(server: Server) -> None:
    stop, ready = threading.Event(), threading.Event()
    registry = operator()

    def run() -> None:
        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        work = kopf.operator(
            registry=registry,
            settings=settings,
            namespaces=["team-a"],
            stop_flag=stop,
            ready_flag=ready,
            standalone=True,
        )
        asyncio.run(work)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(patient(20))
        server.good("POST", WIDGETS, widget("a", size=3))
        phase(server, "a", "size 3")
        assert HELD in server.good("GET", f"{WIDGETS}/a")["metadata"]["finalizers"]
        server.good("PATCH", f"{WIDGETS}/a", {"spec": {"size": 4}}, headers=MERGE)
        phase(server, "a", "size 4")
        server.good("DELETE", f"{WIDGETS}/a")
        end = time.monotonic() + patient(20)
        while server.ask("GET", f"{WIDGETS}/a")[0] != 404:
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        stop.set()
        thread.join(patient(20))
