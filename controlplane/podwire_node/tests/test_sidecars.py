"""Sidecars: their order, the pod's phase and conditions beside them, without a runtime."""

from __future__ import annotations

from typing import Any

import pytest

from podwire_base.kube.conditions import condition
from podwire_base.kube.meta import Object
from podwire_node import podstatus, sidecars
from podwire_node.podstatus import ContainerState


def ran(name: str, code: int | None = None, **more: Any) -> ContainerState:
    """Return a container that runs, or has ended with a code."""
    alive = code is None
    return ContainerState(
        name, waiting="", running_since=5.0 if alive else 0.0, last_started=5.0, exit_code=code, ready=alive, **more
    )


def waits(name: str, **more: Any) -> ContainerState:
    return ContainerState(name, **more)


def status(init: list[ContainerState], states: list[ContainerState], policy: str = "Always") -> Object:
    made = {"metadata": {"name": "p"}, "spec": {"restartPolicy": policy}}
    return podstatus.pod_status(made, init, states, ["10.1.0.2"], "172.30.0.2", "", 9.0)


BESIDE = {"sidecar": True}


@pytest.mark.parametrize(
    ("init", "states", "policy", "phase", "initialized", "ready"),
    [
        ([ran("s", **BESIDE)], [waits("c")], "Always", "Pending", "True", "False"),
        ([ran("s", **BESIDE, started=False)], [waits("c")], "Always", "Pending", "False", "False"),
        ([ran("s", **BESIDE)], [ran("c")], "Always", "Running", "True", "True"),
        ([ran("i", 0), ran("s", **BESIDE)], [ran("c")], "Always", "Running", "True", "True"),
        ([waits("s", **BESIDE)], [ran("c")], "Always", "Running", "True", "False"),
        ([ran("s", **BESIDE)], [ran("c", 0)], "Never", "Running", "True", "False"),
        ([ran("s", 143, **BESIDE)], [ran("c", 0)], "Never", "Succeeded", "True", "False"),
        ([ran("s", 143, **BESIDE)], [ran("c", 1)], "Never", "Failed", "True", "False"),
        ([ran("i", 1)], [waits("c")], "Never", "Failed", "False", "False"),
        ([ran("s", **BESIDE), ran("i", 1)], [waits("c")], "Never", "Running", "False", "False"),
        ([ran("i", 1)], [waits("c")], "OnFailure", "Pending", "False", "False"),
    ],
    ids=["first", "starting", "both", "after init", "restarts", "not over", "over", "failed", "init failed",
         "sidecar of a failed init", "init again"],
)  # fmt: skip
def test_the_status_of_a_pod_with_sidecars(
    init: list[ContainerState], states: list[ContainerState], policy: str, phase: str, initialized: str, ready: str
) -> None:
    found = status(init, states, policy)
    assert found["phase"] == phase
    assert condition({"status": found}, "Initialized")["status"] == initialized
    assert condition({"status": found}, "ContainersReady")["status"] == ready


def test_a_sidecar_is_ready_by_its_probe_and_not_by_its_end() -> None:
    rows = {row["name"]: row["ready"] for row in status([ran("i", 0), ran("s", 0, **BESIDE)], [ran("c")])[
        "initContainerStatuses"
    ]}  # fmt: skip
    assert rows == {"i": True, "s": False}


def test_sidecars_stop_last_and_in_reverse() -> None:
    spec = {
        "initContainers": [
            {"name": "s1", "restartPolicy": "Always"},
            {"name": "i"},
            {"name": "s2", "restartPolicy": "Always"},
        ],
        "containers": [{"name": "a"}, {"name": "b"}],
    }
    assert [[row["name"] for row in group] for group in sidecars.stop_order(spec)] == [["i", "a", "b"], ["s2"], ["s1"]]


@pytest.mark.parametrize(
    ("policy", "codes", "over"),
    [
        ("Never", [0, 1], True),
        ("OnFailure", [0, 1], False),
        ("OnFailure", [0, 0], True),
        ("Always", [0, 0], False),
        ("Never", [0, None], False),
    ],
)
def test_when_a_pods_own_containers_are_over(policy: str, codes: list[int | None], over: bool) -> None:
    assert sidecars.over(policy, [ran("s", **BESIDE)], [ran(str(n), code) for n, code in enumerate(codes)]) is over
    assert sidecars.over("Never", [ran("s", **BESIDE), ran("i", 2)], [waits("c")])
    assert not sidecars.over("Never", [ran("s", 2, **BESIDE)], [waits("c")]), "a sidecar is restarted"
