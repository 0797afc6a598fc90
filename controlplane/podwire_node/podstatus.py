"""A pod's status, computed from the state of its containers: phase, conditions, container statuses. No I/O here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from podwire_base.kube.conditions import condition
from podwire_base.kube.meta import Object
from podwire_base.kube.times import timestamp

_NUMBERS = re.compile(r"\d+")
BACKOFF_FIRST, BACKOFF_LAST, BACKOFF_RESET = 0.5, 300.0, 600.0


@dataclass(slots=True)
class ContainerState:
    """One container's state as the node agent sees it. Times are seconds since the epoch; 0 for "never"."""

    name: str
    image: str = ""
    running_since: float = 0.0
    waiting: str = "ContainerCreating"
    message: str = ""
    restarts: int = 0
    exit_code: int | None = None
    exit_signal: int = 0
    finished: float = 0.0
    last_started: float = 0.0
    ready: bool = False
    started: bool = True  # false until the startup probe has succeeded
    id: str = ""
    previous: Object = field(default_factory=dict)
    scheme: str = "podwire"  # of `id`: the runtime's name
    image_id: str = ""
    exit_reason: str = ""  # the runtime's, such as OOMKilled
    exit_message: str = ""
    sidecar: bool = False  # an init container that runs beside the others

    @property
    def running(self) -> bool:
        return self.running_since > 0


def backoff(restarts: int) -> float:
    """Return the seconds to wait before the next start. The first restart has no delay. The delay of further restarts
    doubles up to five minutes.

    The kubelet starts at 10 s. Here a killed container restarts at once, for users who experiment on a laptop.
    """
    return 0.0 if restarts <= 0 else min(BACKOFF_FIRST * 2 ** (restarts - 1), BACKOFF_LAST)


def restart_wanted(policy: str, exit_code: int) -> bool:
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def _state(c: ContainerState) -> Object:
    if c.running:
        return {"running": {"startedAt": timestamp(c.running_since)}}
    if c.waiting:
        return {"waiting": {"reason": c.waiting, **({"message": c.message} if c.message else {})}}
    return {"terminated": terminated(c)}


def terminated(c: ContainerState) -> Object:
    code = c.exit_code if c.exit_code is not None else 255
    return {
        "exitCode": code,
        "reason": c.exit_reason or ("Completed" if code == 0 else "Error"),
        **({"message": c.exit_message} if c.exit_message else {}),
        "startedAt": timestamp(c.last_started),
        "finishedAt": timestamp(c.finished),
        **({"signal": c.exit_signal} if c.exit_signal else {}),
        **({"containerID": f"{c.scheme}://{c.id}"} if c.id else {}),
    }


def container_status(c: ContainerState) -> Object:
    status: Object = {
        "name": c.name,
        "image": c.image,
        "imageID": c.image_id,
        "restartCount": c.restarts,
        "ready": c.ready,
        "started": c.running and c.started,
        "state": _state(c),
        "lastState": {"terminated": c.previous} if c.previous and (c.running or c.waiting) else {},
    }
    if c.id:
        status["containerID"] = f"{c.scheme}://{c.id}"
    return status


def was(field: str, pod: Object, c: ContainerState) -> bool:
    """Whether the API server's status says that this very run of the container is ready, or started (field). A
    restarted node agent keeps the readiness until the first result of the probe, so that the pod stays in its Services
    (KEP-4781).
    """
    status = pod.get("status", {})
    rows = [*(status.get("containerStatuses") or []), *(status.get("initContainerStatuses") or [])]
    run = (f"{c.scheme}://{c.id}", c.restarts)
    return any((row.get("containerID"), row.get("restartCount")) == run and bool(row.get(field)) for row in rows)


def phase(policy: str, states: list[ContainerState]) -> str:
    """Return the pod's phase: Pending, Running, Succeeded or Failed (core/v1 PodPhase)."""
    if (
        states
        and all(not c.running and not c.waiting and c.exit_code is not None for c in states)
        and policy != "Always"
    ):
        if not any(c.exit_code for c in states):
            return "Succeeded"
        return "Failed" if policy == "Never" else "Running"  # OnFailure: the failed container restarts
    if any(c.running or c.restarts or c.exit_code is not None for c in states):
        return "Running"
    return "Pending"


def failed(init: Iterable[ContainerState]) -> bool:
    """Whether an init container has failed. Where nothing is restarted, its pod has failed with it."""
    return any(not c.sidecar and not c.running and not c.waiting and c.exit_code for c in init)


def conditions(pod: Object, wanted: Mapping[str, tuple[bool, str, str]], now: float) -> list[Object]:
    """Return the pod's conditions, with those in `wanted` (type -> (status, reason, message)) replaced. A transition
    time changes only with the status.
    """
    rows = [c for c in pod.get("status", {}).get("conditions") or [] if c.get("type") not in wanted]
    for kind, (status, reason, message) in wanted.items():
        text, before = str(status), condition(pod, kind)
        since = before.get("lastTransitionTime") if before.get("status") == text else timestamp(now)
        row: Object = {"type": kind, "status": text, "lastTransitionTime": since}
        if reason:
            row["reason"] = reason
        if message:
            row["message"] = message
        rows.append(row)
    return rows


def beaten(rows: Iterable[Object], now: float) -> list[Object]:
    """Return conditions of a Node with the time at which they are sent. Those of other writers keep theirs."""
    return [{"lastHeartbeatTime": timestamp(now), **row} for row in rows]


def quiet(rows: Iterable[Object]) -> list[Object]:
    """Return conditions without the time at which they were sent: what is left changes only if there is news."""
    return [{key: value for key, value in row.items() if key != "lastHeartbeatTime"} for row in rows]


def new_words(before: Iterable[Object], after: Iterable[Object]) -> bool:
    """Whether conditions differ in more than the numbers in their messages. A changed number can wait for the next
    heartbeat, because each change of a Node sends an event to every client that watches Nodes, on every machine.
    """

    def words(rows: Iterable[Object]) -> list[tuple[str, ...]]:
        return sorted(
            (row["type"], row["status"], row.get("reason", ""), _NUMBERS.sub("#", row.get("message", "")))
            for row in rows
        )

    return words(before) != words(after)


def pod_status(
    pod: Object,
    init: list[ContainerState],
    states: list[ContainerState],
    addresses: list[str],
    host: str,
    problem: str,
    now: float,
) -> Object:
    """Return the pod's whole status. problem: the reason why the sandbox does not exist, "" if the sandbox exists."""
    policy = pod["spec"].get("restartPolicy", "Always")
    beside = [c for c in init if c.sidecar]
    ready = bool(states) and all(c.ready for c in [*states, *beside])
    ended = [not c.running and not c.waiting and c.exit_code == 0 for c in init]
    went = all(e or (c.sidecar and c.running and c.started) for c, e in zip(init, ended, strict=True))
    done = went or any(c.last_started for c in states)
    unready = ", ".join(c.name for c in [*beside, *states] if not c.ready)
    now_is = "Failed" if policy == "Never" and failed(init) else phase(policy, states)
    if now_is in ("Succeeded", "Failed") and any(c.running for c in beside):
        now_is = "Running"  # until its sidecars have stopped
    gates = [g["conditionType"] for g in pod["spec"].get("readinessGates") or []]
    closed = [g for g in gates if condition(pod, g).get("status") != "True"]
    why = (
        ("ContainersNotReady", f"containers not ready: {unready}")
        if not ready
        else ("ReadinessGatesNotReady", f"gates not true: {', '.join(closed)}")
        if closed
        else ("", "")
    )
    status: Object = {
        "phase": now_is,
        "hostIP": host,
        "hostIPs": [{"ip": host}],
        "startTime": pod.get("status", {}).get("startTime") or timestamp(now),
        "containerStatuses": [container_status(c) for c in states],
        "conditions": conditions(
            pod,
            {
                "PodScheduled": (True, "", ""),
                "PodReadyToStartContainers": (not problem and bool(addresses), "", problem),
                "Initialized": (done, "" if done else "ContainersNotInitialized", ""),
                "ContainersReady": (ready, "" if ready else "ContainersNotReady", "" if ready else why[1]),
                "Ready": (ready and not closed, *why),
            },
            now,
        ),
    }
    if init:
        rows = [container_status(c) for c in init]
        status["initContainerStatuses"] = [
            {**row, "ready": row["ready"] or (e and not c.sidecar)} for c, row, e in zip(init, rows, ended, strict=True)
        ]
    if addresses:
        status |= {"podIP": addresses[0], "podIPs": [{"ip": a} for a in addresses]}
    return status
