"""Deployments and ReplicaSets (apps/v1): rolling updates, scaling, status."""

from __future__ import annotations

import copy
import hashlib
import json
from functools import partial

from podwire_base.kube.conditions import condition, is_true
from podwire_base.kube.events import reference
from podwire_base.kube.meta import Object, annotations_of, deleting, labels, name, namespace
from podwire_base.kube.times import timestamp
from podwire_base.numerals import INT32, decimal

from .base import Controller, Snapshot, Told, Write, itself, owner_reference, pod_ended
from .claiming import claim, claimants

HASH = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
_BURST = 200


# ---- ReplicaSet


def _victim_order(pod: Object) -> tuple[bool, bool, str]:
    """Return the sort key for deletion: pods without a node come first, then pods that are not ready, then the youngest
    pods.
    """
    born = str(pod["metadata"].get("creationTimestamp", ""))
    return bool(pod["spec"].get("nodeName")), is_true(pod, "Ready"), _inverted(born)


def _inverted(text: str) -> str:
    return "".join(chr(0x10FF - ord(c)) for c in text)


def _reconcile_replicas(kind: str, wanted: str, snapshot: Snapshot, _now: float) -> list[Write]:
    """Reconcile a ReplicaSet or a ReplicationController: they differ in nothing but the form of their selectors."""
    owner = snapshot.get(kind, wanted)
    if owner is None or deleting(owner):
        return []
    pods, changes = claim("Pod", owner, snapshot, lambda p: not pod_ended(p) and not deleting(p))
    space, replicas = namespace(owner), int(owner["spec"].get("replicas", 1))
    old = kind == "ReplicationController"
    about, who = reference(kind, owner, "v1" if old else "apps/v1"), "replication" if old else "replicaset"
    created = Told(about, "SuccessfulCreate", "Created pod: {name}", f"{who}-controller", "FailedCreate")
    deleted = Told(about, "SuccessfulDelete", "Deleted pod: {name}", f"{who}-controller", "FailedDelete")
    for _ in range(min(replicas - len(pods), _BURST)):
        template = copy.deepcopy(owner["spec"]["template"])
        metadata = {
            "generateName": f"{name(owner)}-",
            "namespace": space,
            "labels": labels(template),
            "annotations": annotations_of(template),
            "ownerReferences": [owner_reference(owner)],
        }
        changes.append(
            Write(
                "create",
                "Pod",
                space,
                "",
                {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]},
                told=created,
            )
        )
    for pod in sorted(pods, key=_victim_order)[: max(0, len(pods) - replicas)]:
        why = f"{name(owner)} wants {replicas}"
        changes.append(Write("delete", "Pod", space, name(pod), why=why, told=deleted))
    ready = sum(is_true(p, "Ready") for p in pods)
    status = {
        "replicas": len(pods),
        "fullyLabeledReplicas": len(pods),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "observedGeneration": owner["metadata"].get("generation", 1),
    }
    if {k: (owner.get("status") or {}).get(k) for k in status} != status:
        changes.append(Write("status", kind, space, name(owner), {"status": status}))
    return changes


reconcile_replica_set = partial(_reconcile_replicas, "ReplicaSet")
reconcile_replication_controller = partial(_reconcile_replicas, "ReplicationController")


# ---- Deployment


def template_hash(template: Object) -> str:
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()
    return "".join("bcdfghjklmnpqrst"[int(c, 16)] for c in digest[:9])


def resolve(value: object, replicas: int, *, up: bool) -> int:
    """Return maxSurge or maxUnavailable as a number of pods. `value` is a number or a percentage of `replicas`. A
    percentage is rounded up if `up` is true (maxSurge), else down (maxUnavailable).
    """
    if isinstance(value, int):
        return value
    number = decimal(str(value).rstrip("%"), INT32)
    percent = INT32 if number is None else number
    return -(-percent * replicas // 100) if up else percent * replicas // 100


def _revision(found: Object) -> int:
    """Return the revision of a ReplicaSet; 0 if its annotation, which everybody may write, is no number."""
    return decimal(annotations_of(found).get(REVISION, "0"), INT32) or 0


def _own_template(deployment: Object) -> Object:
    template: Object = copy.deepcopy(deployment["spec"]["template"])
    template.setdefault("metadata", {})
    return template


def _new_set(deployment: Object, digest: str, revision: int, replicas: int) -> Write:
    template = _own_template(deployment)
    marked = {**labels(template), HASH: digest}
    template["metadata"]["labels"] = marked
    selector = copy.deepcopy(deployment["spec"]["selector"])
    selector.setdefault("matchLabels", {})[HASH] = digest
    own = f"{name(deployment)}-{digest}"
    return Write(
        "create",
        "ReplicaSet",
        namespace(deployment),
        own,
        {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": own,
                "namespace": namespace(deployment),
                "labels": marked,
                "annotations": {REVISION: str(revision)},
                "ownerReferences": [owner_reference(deployment)],
            },
            "spec": {"replicas": replicas, "selector": selector, "template": template},
        },
        told=_scaled(deployment, own, 0, replicas) if replicas else None,
    )


def _scaled(deployment: Object, found: str, before: int, after: int) -> Told:
    way = "up" if after > before else "down"
    message = f"Scaled {way} replica set {found} from {before} to {after}"
    return Told(reference("Deployment", deployment, "apps/v1"), "ScalingReplicaSet", message, "deployment-controller")


def _scale(deployment: Object, found: Object, replicas: int) -> list[Write]:
    before = int(found["spec"].get("replicas", 1))
    if before == replicas:
        return []
    body, told = {"spec": {"replicas": replicas}}, _scaled(deployment, name(found), before, replicas)
    return [Write("patch", "ReplicaSet", namespace(found), name(found), body, told=told)]


def _ready(found: Object) -> int:
    return int((found.get("status") or {}).get("availableReplicas") or 0)


def _pods(found: Object) -> int:
    return int((found.get("status") or {}).get("replicas") or 0)


def _wanted(found: Object) -> int:
    return int(found["spec"].get("replicas", 1))


def _roll(deployment: Object, new: Object, old: list[Object]) -> list[Write]:
    """Return one step of a rollout: scale the new ReplicaSet up within maxSurge, and the old ReplicaSets down within
    maxUnavailable. With strategy Recreate, the new ReplicaSet is scaled up when the old ReplicaSets have no pods.
    """
    replicas = int(deployment["spec"].get("replicas", 1))
    strategy = deployment["spec"].get("strategy") or {}
    if strategy.get("type") == "Recreate":
        busy = any(_wanted(s) or (s.get("status") or {}).get("replicas") for s in old)
        changes = [c for s in old for c in _scale(deployment, s, 0)]
        return changes + ([] if busy else _scale(deployment, new, replicas))
    rolling = strategy.get("rollingUpdate") or {}
    surge = resolve(rolling.get("maxSurge", "25%"), replicas, up=True)
    unavailable = resolve(rolling.get("maxUnavailable", "25%"), replicas, up=False)
    unavailable = unavailable or int(surge == 0)
    total = _wanted(new) + sum(max(_wanted(s), _pods(s)) for s in old)  # deleted pods may still exist
    target = _wanted(new)
    if target > replicas:
        target = replicas
    elif target < replicas:
        target = min(replicas, target + max(0, replicas + surge - total))
    changes = _scale(deployment, new, target)
    spare = _ready(new) + sum(min(_ready(s), _wanted(s)) for s in old) - (replicas - unavailable)
    for found in old:
        broken = max(0, _wanted(found) - _ready(found))  # pods that are not ready can be deleted at once
        take = min(_wanted(found), broken + max(0, spare))
        spare -= max(0, take - broken)
        changes += _scale(deployment, found, _wanted(found) - take)
    return changes


def _status(deployment: Object, new: Object | None, sets: list[Object], now: float) -> list[Write]:
    replicas = int(deployment["spec"].get("replicas", 1))
    count = {
        field: sum(int((s.get("status") or {}).get(field) or 0) for s in sets)
        for field in ("replicas", "readyReplicas", "availableReplicas")
    }
    updated = int((new.get("status") or {}).get("replicas") or 0) if new else 0
    rolling = (deployment["spec"].get("strategy") or {}).get("rollingUpdate") or {}
    spare = resolve(rolling.get("maxUnavailable", "25%"), replicas, up=False)
    available = count["availableReplicas"] >= replicas - spare
    done = updated == replicas == count["availableReplicas"] == count["replicas"]
    status: Object = {
        **count,
        "updatedReplicas": updated,
        "unavailableReplicas": max(0, replicas - count["availableReplicas"]),
        "observedGeneration": deployment["metadata"].get("generation", 1),
        "conditions": [],
    }
    for kind, value, reason in (
        ("Available", available, "MinimumReplicasAvailable" if available else "MinimumReplicasUnavailable"),
        ("Progressing", True, "NewReplicaSetAvailable" if done else "ReplicaSetUpdated"),
    ):
        text, before = str(value), condition(deployment, kind)
        since = before.get("lastTransitionTime") if before.get("status") == text else timestamp(now)
        status["conditions"].append({"type": kind, "status": text, "reason": reason, "lastTransitionTime": since})
    if {k: (deployment.get("status") or {}).get(k) for k in status} == status:
        return []
    return [Write("status", "Deployment", namespace(deployment), name(deployment), {"status": status})]


def reconcile_deployment(wanted: str, snapshot: Snapshot, now: float) -> list[Write]:
    deployment = snapshot.get("Deployment", wanted)
    if deployment is None or deleting(deployment):
        return []
    digest = template_hash(_own_template(deployment))
    claimed, adopting = claim("ReplicaSet", deployment, snapshot)
    sets = sorted(claimed, key=_revision)
    new = next((s for s in sets if labels(s).get(HASH) == digest), None)
    old = [s for s in sets if s is not new]
    latest = max(map(_revision, sets), default=0)
    if new is None:
        first = int(deployment["spec"].get("replicas", 1)) if not old else 0
        return [*adopting, _new_set(deployment, digest, latest + 1, first), *_status(deployment, None, sets, now)]
    changes: list[Write] = adopting
    # after a rollback to an older template, its ReplicaSet gets the highest revision number
    if old and _revision(new) < latest:
        changes.append(
            Write(
                "patch",
                "ReplicaSet",
                namespace(new),
                name(new),
                {"metadata": {"annotations": {REVISION: str(latest + 1)}}},
            )
        )
    if not deployment["spec"].get("paused"):
        changes += _roll(deployment, new, old)
    idle = [s for s in old if not _wanted(s) and not (s.get("status") or {}).get("replicas")]
    keep = int(deployment["spec"].get("revisionHistoryLimit", 10))
    changes += [
        Write("delete", "ReplicaSet", namespace(s), name(s), why="revisionHistoryLimit")
        for s in idle[: max(0, len(idle) - keep)]
    ]
    return changes + _status(deployment, new, sets, now)


CONTROLLERS = (
    Controller("replicaset", {"ReplicaSet": itself, "Pod": claimants("ReplicaSet")}, reconcile_replica_set),
    Controller(
        "replicationcontroller",
        {"ReplicationController": itself, "Pod": claimants("ReplicationController")},
        reconcile_replication_controller,
    ),
    Controller("deployment", {"Deployment": itself, "ReplicaSet": claimants("Deployment")}, reconcile_deployment),
)
