"""One pod's worker beside the files that a running pod leaves on the node."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from podwire_base.kube.meta import Object
from podwire_node import probes, shim
from podwire_node.podspec import NodeDns
from podwire_node.podstatus import container_status
from podwire_node.podworker import PodHost, PodWorker
from podwire_node.runtime import Container, Process

SLOW_PROBE = {"tcpSocket": {"port": 9}, "initialDelaySeconds": 600}
CONTAINER = {"name": "web", "image": "podwire.io/echo", "readinessProbe": SLOW_PROBE}


def _taken_up(tmp_path: Path, said_ready: bool) -> bool:
    """Let a new worker find a running container whose API status says `said_ready`; return its readiness."""
    box = tmp_path / "pods" / "u1" / "containers" / "web"
    box.mkdir(parents=True)
    own = {"shim": os.getpid(), "shim_started": shim.started(os.getpid()), "since": 5.0}
    (box / "state.json").write_text(json.dumps(own))
    (tmp_path / "pods" / "u1" / "pod.json").write_text(json.dumps({"sandbox": "abcdefabcdef00"}))
    said = {"name": "web", "containerID": "podwire://abcdefabcdef-web", "restartCount": 0, "ready": said_ready}
    pod: Object = {
        "metadata": {"name": "p", "namespace": "default", "uid": "u1"},
        "spec": {"containers": [CONTAINER]},
        "status": {"containerStatuses": [said]},
    }
    host = PodHost(tmp_path, "172.30.0.2", cast(NodeDns, None), cast(Any, None), [], *cast(Any, (None, None, None)))

    async def look() -> bool:
        worker = PodWorker(pod, host)
        worker.addresses = ["10.1.0.2"]
        await worker._sync_one(Process(0, 0), worker.states[0], CONTAINER, "Always")
        ready = worker.states[0].ready
        for task in worker._tasks:
            task.cancel()
        return ready

    return asyncio.run(look())


def test_a_new_worker_keeps_a_ready_container_ready_until_its_probe_has_a_result(tmp_path: Path) -> None:
    assert _taken_up(tmp_path, said_ready=True)


def test_a_new_worker_does_not_make_an_unready_container_ready(tmp_path: Path) -> None:
    assert not _taken_up(tmp_path, said_ready=False)


class Watched:
    """A worker with a running container, whose probes tell what the test says. told: reasons of Events."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: Object) -> None:
        self.told: list[str] = []
        self.stopped: list[float] = []
        self.results: dict[str, Callable[[bool, str], None]] = {}
        pod: Object = {
            "metadata": {"name": "p", "namespace": "default", "uid": "u1"},
            "spec": {"containers": [container]},
        }
        callbacks = cast(
            Any, (None, None, lambda _pod, _kind, reason, message: self.told.append(f"{reason}: {message}"))
        )
        self.worker = PodWorker(
            pod, PodHost(tmp_path, "172.30.0.2", cast(NodeDns, None), cast(Any, None), [], *callbacks)
        )
        self.worker.addresses = ["10.1.0.2"]
        self.state = self.worker.states[0]
        self.state.running_since = 5.0

        async def watch(probe: Object, *words: Any, once: bool) -> None:
            self.results[probe["tcpSocket"]["port"]] = words[3]
            assert once is (probe["tcpSocket"]["port"] == "startup")

        async def stop(_box: Container, grace: float) -> None:
            self.stopped.append(grace)

        monkeypatch.setattr(probes, "watch", watch)
        monkeypatch.setattr(Container, "stop", stop)

    def seen(self) -> tuple[bool, bool]:
        status = container_status(self.state)
        return status["started"], status["ready"]


def test_other_probes_wait_for_the_startup_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """startupProbe was ignored: a slow program was killed by its liveness probe."""

    def probe(which: str) -> Object:
        return {"tcpSocket": {"port": which}}

    container: Object = {
        "name": "web",
        "image": "podwire.io/echo",
        **{f"{which}Probe": probe(which) for which in ("startup", "readiness", "liveness")},
    }

    async def work() -> None:
        watched = Watched(tmp_path, monkeypatch, container)
        watched.worker._began(watched.state, container, Process(0, 0))
        await asyncio.sleep(0)
        assert watched.seen() == (False, False) and set(watched.results) == {"startup"}
        watched.results["startup"](True, "")
        await asyncio.sleep(0)
        assert watched.seen() == (True, False) and set(watched.results) == {"startup", "readiness", "liveness"}
        watched.results["readiness"](True, "")
        assert watched.seen() == (True, True)
        watched.results["liveness"](False, "refused")
        await asyncio.sleep(0)
        assert watched.told == [
            "Unhealthy: Liveness probe failed: container web: refused",
            "Killing: Container web failed liveness probe, will be restarted",
        ]
        assert watched.stopped == [0]

    asyncio.run(work())


def test_a_container_that_never_starts_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    container: Object = {"name": "web", "image": "podwire.io/echo", "startupProbe": {"tcpSocket": {"port": "startup"}}}

    async def work() -> None:
        watched = Watched(tmp_path, monkeypatch, container)
        watched.worker._began(watched.state, container, Process(0, 0))
        await asyncio.sleep(0)
        watched.results["startup"](False, "refused")
        await asyncio.sleep(0)
        assert watched.seen() == (False, False) and watched.stopped == [0]
        assert watched.told[0] == "Unhealthy: Startup probe failed: container web: refused"

    asyncio.run(work())


def test_a_failed_post_start_handler_ends_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    action = {"exec": {"command": ["false"]}}
    container: Object = {"name": "web", "image": "podwire.io/echo", "lifecycle": {"postStart": action}}

    async def work() -> None:
        watched = Watched(tmp_path, monkeypatch, container)
        await watched.worker.health.post_start(
            watched.state, container
        )  # nothing runs: the command ends with status 126
        assert watched.told == [
            "FailedPostStartHook: PostStartHook failed: container web: the command ended with status 126"
        ]
        assert watched.stopped == [0]

    asyncio.run(work())


def test_a_container_that_ends_while_it_is_looked_at_has_its_own_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had 137, as if nobody knew how it ended: the runtime was asked before the end, and the process looked at after
    it.
    """
    container: Object = {"name": "web", "image": "podwire.io/echo"}
    alive: list[Process | None] = [Process(os.getpid(), shim.started(os.getpid())), None]

    async def look(box: Container) -> None:
        if len(alive) == 1:  # it was seen to have ended
            (box.directory / "exit.json").write_text(json.dumps({"code": 2, "signal": 0, "finished": 9.0}))

    async def work() -> None:
        watched = Watched(tmp_path, monkeypatch, container)
        monkeypatch.setattr(Container, "look", look)
        monkeypatch.setattr(Container, "running", lambda _: alive[0] if len(alive) == 1 else alive.pop(0))
        box = watched.worker.sandbox.container("web")
        box.directory.mkdir(parents=True)
        await watched.worker._see(watched.state, box, container)
        assert watched.state.running, "its end is not known yet"
        await watched.worker._see(watched.state, box, container)
        assert (watched.state.running, watched.state.exit_code) == (False, 2)

    asyncio.run(work())
