"""One pod's worker beside the files that a running pod leaves on the node."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any, cast

from podwire_base.kube.meta import Object
from podwire_node import shim
from podwire_node.podspec import NodeDns
from podwire_node.podworker import PodHost, PodWorker
from podwire_node.runtime import Process

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
