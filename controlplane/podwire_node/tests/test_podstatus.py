"""A pod's status from the states of its containers."""

from __future__ import annotations

import pytest

from podwire_base.kube.meta import Object
from podwire_node.podstatus import ContainerState, container_status, pod_status, was


def _running(restarts: int = 0, ready: bool = True) -> ContainerState:
    return ContainerState("web", running_since=5.0, waiting="", restarts=restarts, ready=ready, id="abc-web")


@pytest.mark.parametrize(
    ("said", "found", "kept"),
    [
        pytest.param(_running(), _running(ready=False), True, id="the same run"),
        pytest.param(_running(ready=False), _running(ready=False), False, id="it was not ready"),
        pytest.param(_running(), _running(restarts=1, ready=False), False, id="a later run"),
        pytest.param(None, _running(ready=False), False, id="no status yet"),
    ],
)
def test_a_restarted_agent_keeps_the_readiness_of_the_same_run(
    said: ContainerState | None, found: ContainerState, kept: bool
) -> None:
    pod = {"status": {"containerStatuses": [container_status(said)] if said else []}}
    assert was("ready", pod, found) is kept


def test_a_pod_is_ready_when_each_container_is() -> None:
    pod: Object = {"spec": {"containers": []}, "status": {}}
    states = [_running(), _running(ready=False)]
    for ready in (False, True):
        states[1].ready = ready
        status = pod_status(pod, [], states, ["10.1.0.2"], "172.30.0.2", "", 9.0)
        assert {c["type"]: c["status"] for c in status["conditions"]}["Ready"] == str(ready)
