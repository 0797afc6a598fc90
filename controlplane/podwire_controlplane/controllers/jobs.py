"""Jobs (batch/v1): pods until enough have succeeded or too many have failed.

Each pod carries a finalizer until its end is counted in the Job's status, so that no end is counted twice or lost
(KEP-2307): its uid is first stored in status.uncountedTerminatedPods, then the finalizer goes, then it is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from podwire_base.kube.conditions import condition, is_true
from podwire_base.kube.meta import Object, annotations_of, controller_of, deleting, name, namespace, uid
from podwire_base.kube.times import parse_time, timestamp
from podwire_base.numerals import INT32, decimal

from .base import Controller, Snapshot, Write, again, itself
from .claiming import claim, claimants
from .podmaking import changed_status, creates, deletes, make_pod, number, telling, tells

FINALIZER = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"
_BACKOFF_FIRST, _BACKOFF_LAST = 10.0, 600.0
_BURST = 500


def finished(job: Object) -> bool:
    return is_true(job, "Complete") or is_true(job, "Failed")


# ---- indexes


def read_indexes(text: str) -> set[int]:
    """Return the numbers of a text such as "0-2,5" (status.completedIndexes). What is no number is left out."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        low, high = decimal(first, INT32), decimal(last or first, INT32)
        if low is not None and high is not None:
            found.update(range(low, high + 1))
    return found


def write_indexes(indexes: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for one in sorted(indexes):
        if runs and one == runs[-1][1] + 1:
            runs[-1][1] = one
        else:
            runs.append([one, one])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _index(pod: Object) -> int:
    found = decimal(annotations_of(pod).get(INDEX, ""), INT32)
    return -1 if found is None else found


# ---- what the pods say


@dataclass(slots=True)
class _Count:
    """What the Job's pods say. ends: uid -> whether it succeeded, of pods whose end is not counted yet."""

    active: list[Object]
    ends: dict[str, bool]
    succeeded: int
    failed: int
    indexes: set[int]
    last_failure: float


def _phase(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase") or "")


def _failed(pod: Object, only_ended: bool) -> bool:
    return _phase(pod) == "Failed" or (deleting(pod) and not only_ended and _phase(pod) != "Succeeded")


def _ending(pod: Object) -> bool:
    return deleting(pod) and _phase(pod) not in ("Succeeded", "Failed")


def _finish_time(pod: Object) -> float:
    rows = (pod.get("status") or {}).get("containerStatuses") or []
    ends = [((row.get("state") or {}).get("terminated") or {}).get("finishedAt") for row in rows]
    return max((parse_time(end).timestamp() for end in ends if end), default=0.0)


def _count(job: Object, pods: list[Object]) -> _Count:
    status, spec = job.get("status") or {}, job["spec"]
    only_ended = spec.get("podReplacementPolicy") == "Failed"
    held = status.get("uncountedTerminatedPods") or {}
    counted = _Count(
        [p for p in pods if _phase(p) not in ("Succeeded", "Failed") and not deleting(p)],
        {},
        int(status.get("succeeded") or 0),
        int(status.get("failed") or 0),
        read_indexes(status.get("completedIndexes") or ""),
        max((_finish_time(p) for p in pods if _phase(p) == "Failed"), default=0.0),
    )
    tracked = {uid(p) for p in pods if FINALIZER in (p["metadata"].get("finalizers") or [])}
    for field in ("succeeded", "failed"):
        for one in held.get(field) or []:
            if one in tracked:
                counted.ends[one] = field == "succeeded"
            else:  # its finalizer is gone: now it counts
                setattr(counted, field, getattr(counted, field) + 1)
    for pod in pods:
        if uid(pod) in tracked and (_phase(pod) == "Succeeded" or _failed(pod, only_ended)):
            counted.ends.setdefault(uid(pod), _phase(pod) == "Succeeded")
    if spec.get("completionMode") == "Indexed":
        most = number(spec, "completions", 0)
        counted.indexes |= {_index(p) for p in pods if _phase(p) == "Succeeded" and 0 <= _index(p) < most}
    return counted


def _releases(pods: list[Object], wanted: Iterable[str]) -> list[Write]:
    """Return the writes that take the finalizer from pods, named by uid."""
    uids = set(wanted)
    changes = []
    for pod in pods:
        held = pod["metadata"].get("finalizers") or []
        if uid(pod) in uids and FINALIZER in held:
            rest = [one for one in held if one != FINALIZER]
            changes.append(
                Write(
                    "patch",
                    "Pod",
                    namespace(pod),
                    name(pod),
                    {"metadata": {"uid": uid(pod), "finalizers": rest or None}},
                    "its end is counted",
                )
            )
    return changes


# ---- the verdict


def _totals(counted: _Count, indexed: bool) -> tuple[int, int]:
    """Return (succeeded, failed) with the ends that are not in the status yet."""
    succeeded = len(counted.indexes) if indexed else counted.succeeded + sum(counted.ends.values())
    return succeeded, counted.failed + sum(not good for good in counted.ends.values())


def _verdict(job: Object, counted: _Count, now: float) -> tuple[str, str, str] | None:
    """Return (condition, reason, message) if the Job has ended."""
    spec, status = job["spec"], job.get("status") or {}
    indexed = spec.get("completionMode") == "Indexed"
    succeeded, failed = _totals(counted, indexed)
    limit = number(spec, "backoffLimit", 6)
    restarts = sum(
        int(row.get("restartCount") or 0)
        for pod in counted.active
        for field in ("initContainerStatuses", "containerStatuses")
        for row in (pod.get("status") or {}).get(field) or []
    )
    if failed > limit or (restarts and restarts >= limit and spec["template"]["spec"].get("restartPolicy") != "Never"):
        return "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    deadline, began = spec.get("activeDeadlineSeconds"), status.get("startTime")
    if deadline is not None and began and now - parse_time(began).timestamp() >= deadline:
        return "Failed", "DeadlineExceeded", "Job was active longer than specified deadline"
    completions = spec.get("completions")
    done = succeeded > 0 and not counted.active if completions is None else succeeded >= completions
    if done:
        return "Complete", "CompletionsReached", "Reached expected number of succeeded pods"
    return None


_FIRST = {"Complete": "SuccessCriteriaMet", "Failed": "FailureTarget"}  # before the last pods have ended


def _decided(rows: list[Object]) -> tuple[str, str, str] | None:
    """Return the verdict that the conditions have already."""
    for kind, first in _FIRST.items():
        for row in rows:
            if row["type"] == first and row["status"] == "True":
                return kind, str(row.get("reason") or ""), str(row.get("message") or "")
    return None


def _condition(kind: str, status: bool, reason: str, message: str, now: float) -> Object:
    moment = timestamp(now)
    return {
        "type": kind,
        "status": str(status),
        "reason": reason,
        "message": message,
        "lastProbeTime": moment,
        "lastTransitionTime": moment,
    }


def _put(rows: list[Object], row: Object) -> list[Object]:
    return [r for r in rows if r.get("type") != row["type"]] + [row]


# ---- pods


def _missing(job: Object, counted: _Count, now: float) -> list[Write]:
    """Return what brings the number of active pods to what the Job wants now."""
    spec = job["spec"]
    indexed = spec.get("completionMode") == "Indexed"
    succeeded, failed = _totals(counted, indexed)
    parallel, completions = number(spec, "parallelism", 1), spec.get("completions")
    if completions is None:
        wanted = len(counted.active) if succeeded else parallel  # a work queue: after one success no new pod
    else:
        wanted = min(parallel, completions - succeeded)
    surplus = sorted(counted.active, key=lambda p: (is_true(p, "Ready"), str(p["metadata"].get("creationTimestamp"))))
    changes = [deletes(pod, f"{name(job)} wants {wanted}") for pod in surplus[: max(0, len(surplus) - wanted)]]
    lacking = min(wanted - len(counted.active), _BURST)
    if lacking <= 0:
        return changes
    if failed and counted.last_failure:
        due = counted.last_failure + min(_BACKOFF_FIRST * 2.0 ** min(failed - 1, 10), _BACKOFF_LAST)
        if due > now:
            return [*changes, again("Job", due - now)]
    if not indexed:
        pods = [make_pod(job, spec["template"], finalizers=(FINALIZER,)) for _ in range(lacking)]
        return [*changes, *map(creates, pods)]
    taken = counted.indexes | {_index(pod) for pod in counted.active}
    free = [n for n in range(int(completions or 0)) if n not in taken]
    return [*changes, *(creates(_indexed_pod(job, n)) for n in free[:lacking])]


def _indexed_pod(job: Object, index: int) -> Object:
    pod = make_pod(
        job,
        job["spec"]["template"],
        prefix=f"{name(job)}-{index}-",
        extra_labels={INDEX: str(index)},
        extra_annotations={INDEX: str(index)},
        finalizers=(FINALIZER,),
    )
    pod["spec"].setdefault("hostname", f"{name(job)}-{index}")
    variable = {
        "name": "JOB_COMPLETION_INDEX",
        "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{INDEX}']"}},
    }
    for container in [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]:
        if all(row.get("name") != variable["name"] for row in container.get("env") or []):
            container["env"] = [*(container.get("env") or []), variable]
    return pod


# ---- the controller


def reconcile(wanted: str, snapshot: Snapshot, now: float) -> list[Write]:
    job = snapshot.get("Job", wanted)
    if job is None or deleting(job):
        return _orphans(wanted, snapshot)
    if (job["spec"].get("managedBy") or "kubernetes.io/job-controller") != "kubernetes.io/job-controller":
        return []
    pods, adopted = claim("Pod", job, snapshot, finalizer=FINALIZER)
    counted = _count(job, pods)
    if finished(job):
        return [*adopted, *_status(job, pods, counted, job["status"]["conditions"], now), *_expires(job, now)]
    rows, told = list((job.get("status") or {}).get("conditions") or []), list[Write]()
    changes: list[Write] = []
    if verdict := _decided(rows) or _verdict(job, counted, now):
        kind, reason, message = verdict
        if not any(row["type"] == _FIRST[kind] for row in rows):
            rows = _put(rows, _condition(_FIRST[kind], True, reason, message, now))
        changes = [deletes(pod, message) for pod in counted.active]
        if not counted.active and not counted.ends and not any(map(_ending, pods)):
            rows = _put(rows, _condition(kind, True, reason, message, now))
            words = ("Completed", "Job completed") if kind == "Complete" else (reason, message)
            told = [tells("Job", job, *words, now, warning=kind == "Failed")]
    elif job["spec"].get("suspend"):
        changes = [deletes(pod, "suspended") for pod in counted.active]
        if not is_true(job, "Suspended"):
            rows = _put(rows, _condition("Suspended", True, "JobSuspended", "Job suspended", now))
            told = [tells("Job", job, "Suspended", "Job suspended", now)]
    else:
        if is_true(job, "Suspended"):
            rows = _put(rows, _condition("Suspended", False, "JobResumed", "Job resumed", now))
            told = [tells("Job", job, "Resumed", "Job resumed", now)]
        changes = _missing(job, counted, now) + _deadline(job, now)
    return [*adopted, *_status(job, pods, counted, rows, now), *telling("Job", job, changes), *told]


def _status(job: Object, pods: list[Object], counted: _Count, rows: list[Object], now: float) -> list[Write]:
    """Return the write of the status, and then the writes that take the finalizers from the pods that it names."""
    before = job.get("status") or {}
    kinds = {row["type"] for row in rows if row["status"] == "True"}
    ended, suspended = bool(kinds & {"Complete", "Failed"}), "Suspended" in kinds
    ends = {
        field: sorted(one for one, good in counted.ends.items() if good == (field == "succeeded")) or None
        for field in ("succeeded", "failed")
    }
    status: Object = {
        "active": 0 if ended or suspended else len(counted.active),
        "ready": 0 if ended or suspended else sum(is_true(p, "Ready") for p in counted.active),
        "terminating": sum(map(_ending, pods)),
        "succeeded": counted.succeeded,
        "failed": counted.failed,
        "uncountedTerminatedPods": ends,
        "startTime": None if suspended else before.get("startTime") or timestamp(now),
    }
    if rows != (before.get("conditions") or []):
        status["conditions"] = rows
    if job["spec"].get("completionMode") == "Indexed":
        status["completedIndexes"] = write_indexes(counted.indexes)
    if "Complete" in kinds and not before.get("completionTime"):
        status["completionTime"] = timestamp(now)
    held = before.get("uncountedTerminatedPods") or {}
    same = {**before, "uncountedTerminatedPods": {field: held.get(field) for field in ends}}
    changes = changed_status("Job", {**job, "status": same}, status)
    return [*changes, *_releases(pods, counted.ends)]


def _deadline(job: Object, now: float) -> list[Write]:
    deadline, began = job["spec"].get("activeDeadlineSeconds"), (job.get("status") or {}).get("startTime")
    if deadline is None:
        return []
    start = parse_time(began).timestamp() if began else now
    return [again("Job", start + deadline - now)]


def _expires(job: Object, now: float) -> list[Write]:
    """Return the deletion of a Job that ended longer than ttlSecondsAfterFinished ago, or when to look again."""
    seconds = job["spec"].get("ttlSecondsAfterFinished")
    if seconds is None:
        return []
    row = condition(job, "Complete") if is_true(job, "Complete") else condition(job, "Failed")
    due = parse_time(row["lastTransitionTime"]).timestamp() + seconds
    if due > now:
        return [again("Job", due - now)]
    options = {"propagationPolicy": "Background", "preconditions": {"uid": uid(job)}}
    return [Write("delete", "Job", namespace(job), name(job), options, "ttlSecondsAfterFinished")]


def _orphans(wanted: str, snapshot: Snapshot) -> list[Write]:
    """Take the finalizer from the pods of a Job that is gone, or that goes."""
    space, _, own = wanted.partition("/")
    pods = [
        pod
        for pod in snapshot.list("Pod", space)
        if (ref := controller_of(pod)) and ref.get("kind") == "Job" and ref.get("name") == own
    ]
    return _releases(pods, map(uid, pods))


CONTROLLERS = (Controller("job", {"Job": itself, "Pod": claimants("Job")}, reconcile),)
