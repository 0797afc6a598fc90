"""StatefulSets (apps/v1): pods with stable names and claims, one after the other or all at once."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from podwire_base.kube.conditions import is_true
from podwire_base.kube.meta import Object, deleting, labels, name, namespace
from podwire_base.numerals import INT32, decimal

from . import revisions
from .base import Controller, Snapshot, Write, again, itself, owner_of, pod_ended
from .claiming import claim, claimants
from .podmaking import REVISION_HASH, available_in, changed_status, creates, deletes, make_pod, number, telling

POD_NAME, POD_INDEX = "statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index"


def _ordinal(owner: Object, pod: Object) -> int:
    """Return the number at the end of the pod's name, -1 if the name is no name of the set."""
    head, _, tail = name(pod).rpartition("-")
    found = decimal(tail, INT32) if head == name(owner) and str(decimal(tail, INT32)) == tail else None
    return -1 if found is None else found


def _claims(owner: Object, pod: str) -> dict[str, str]:
    """Return volume name -> claim name, for each of volumeClaimTemplates."""
    return {
        template["metadata"]["name"]: f"{template['metadata']['name']}-{pod}"
        for template in owner["spec"].get("volumeClaimTemplates") or []
    }


def _make(owner: Object, template: Object, digest: str, ordinal: int, snapshot: Snapshot) -> list[Write]:
    """Return the creation of the claims that a pod lacks, and then of the pod."""
    own, space = f"{name(owner)}-{ordinal}", namespace(owner)
    claims, changes = _claims(owner, own), list[Write]()
    for made in owner["spec"].get("volumeClaimTemplates") or []:
        claim = claims[made["metadata"]["name"]]
        if snapshot.get("PersistentVolumeClaim", f"{space}/{claim}") is None:
            body = copy.deepcopy(made)
            matched = (owner["spec"].get("selector") or {}).get("matchLabels") or {}
            body |= {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
            body["metadata"] = {
                **body["metadata"],
                "name": claim,
                "namespace": space,
                "labels": {**labels(body), **matched},
            }
            body.pop("status", None)
            changes.append(Write("create", "PersistentVolumeClaim", space, claim, body, f"for {own}"))
    pod = make_pod(
        owner,
        template,
        own=own,
        extra_labels={POD_NAME: own, POD_INDEX: str(ordinal), REVISION_HASH: f"{name(owner)}-{digest}"},
    )
    spec = pod["spec"]
    spec["hostname"] = own
    if owner["spec"].get("serviceName"):
        spec["subdomain"] = owner["spec"]["serviceName"]
    if claims:
        rest = [v for v in spec.get("volumes") or [] if v["name"] not in claims]
        spec["volumes"] = [
            *({"name": volume, "persistentVolumeClaim": {"claimName": claim}} for volume, claim in claims.items()),
            *rest,
        ]
    return [*changes, creates(pod)]


@dataclass(frozen=True, slots=True)
class _View:
    """A StatefulSet as one reconciliation sees it. pods: ordinal -> pod. current, update: hashes of the templates."""

    owner: Object
    pods: dict[int, Object]
    current: str
    update: str
    now: float

    @property
    def seconds(self) -> int:
        return number(self.owner["spec"], "minReadySeconds", 0)

    @property
    def wanted(self) -> range:
        start = number(self.owner["spec"].get("ordinals") or {}, "start", 0)
        return range(start, start + number(self.owner["spec"], "replicas", 1))

    @property
    def partition(self) -> int:
        rolling = (self.owner["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}
        return number(rolling, "partition", 0)

    @property
    def parallel(self) -> bool:
        return bool(self.owner["spec"].get("podManagementPolicy") == "Parallel")

    def hash(self, pod: Object) -> str:
        return labels(pod).get(REVISION_HASH, "").removeprefix(f"{name(self.owner)}-")

    def healthy(self, pod: Object | None) -> bool:
        return pod is not None and not deleting(pod) and available_in(pod, self.seconds, self.now) == 0

    def hash_for(self, ordinal: int) -> str:
        """Return the template of a new pod: below the partition it is the former one."""
        rolling = (self.owner["spec"].get("updateStrategy") or {}).get("type") != "OnDelete"
        return self.update if not rolling or ordinal >= self.wanted.start + self.partition else self.current


def _grow(view: _View, known: list[Object], snapshot: Snapshot) -> tuple[list[Write], bool]:
    """Return the creation of missing pods, and whether all wanted pods are there and healthy."""
    changes, whole = list[Write](), True
    for ordinal in view.wanted:
        pod = view.pods.get(ordinal)
        if pod is None:
            digest = view.hash_for(ordinal)
            kept = next((r for r in known if name(r) == f"{name(view.owner)}-{digest}"), None)
            newest = digest == view.update or kept is None
            template = view.owner["spec"]["template"] if newest else revisions.template_of(kept or {})
            changes += _make(view.owner, template, view.update if newest else digest, ordinal, snapshot)
        elif not deleting(pod) and pod_ended(pod):
            changes.append(deletes(pod, "it has ended"))
        elif view.healthy(pod):
            continue
        whole = False
        if not view.parallel:
            break
    return changes, whole


def _shrink(view: _View, whole: bool) -> list[Write]:
    """Return the deletion of surplus pods, the highest first: one at a time, and only while the others are healthy."""
    surplus = sorted((n for n in view.pods if n not in view.wanted), reverse=True)
    if view.parallel:
        return [deletes(view.pods[n], "the set is smaller") for n in surplus if not deleting(view.pods[n])]
    if not surplus or not whole or any(deleting(view.pods[n]) for n in surplus):
        return []
    sick = [n for n in surplus if not view.healthy(view.pods[n])]
    chosen = surplus[0] if not sick or surplus[0] == min(sick) else max(sick)
    return [deletes(view.pods[chosen], "the set is smaller")]


def _update(view: _View) -> list[Write]:
    """Return the deletion of the next pod of an older template: from the highest ordinal down to the partition."""
    if (view.owner["spec"].get("updateStrategy") or {}).get("type") == "OnDelete":
        return []
    for ordinal in reversed(view.wanted):
        if ordinal < view.wanted.start + view.partition:
            break
        pod = view.pods.get(ordinal)
        if pod is None or deleting(pod):
            return []
        if view.hash(pod) != view.update:
            return [deletes(pod, "it is of an older template")]
        if not view.healthy(pod):
            return []
    return []


def _status(view: _View) -> list[Write]:
    owner, pods = view.owner, [view.pods[n] for n in view.pods if not pod_ended(view.pods[n])]
    wanted = [view.pods.get(n) for n in view.wanted]
    done = all(view.healthy(p) and p is not None and view.hash(p) == view.update for p in wanted)
    current = view.update if done and view.partition == 0 else view.current
    living = [p for p in pods if not deleting(p)]
    status = {
        "replicas": len(pods),
        "readyReplicas": sum(is_true(p, "Ready") for p in living),
        "availableReplicas": sum(view.healthy(p) for p in living),
        "currentReplicas": sum(view.hash(p) == current for p in living),
        "updatedReplicas": sum(view.hash(p) == view.update for p in living),
        "currentRevision": f"{name(owner)}-{current}",
        "updateRevision": f"{name(owner)}-{view.update}",
        "observedGeneration": owner["metadata"].get("generation", 1),
        "collisionCount": 0,
    }
    return changed_status("StatefulSet", owner, status)


def reconcile(wanted: str, snapshot: Snapshot, now: float) -> list[Write]:
    owner = snapshot.get("StatefulSet", wanted)
    if owner is None or deleting(owner):
        return []
    held, adopted = claim("Pod", owner, snapshot, lambda pod: _ordinal(owner, pod) >= 0)
    pods = {_ordinal(owner, pod): pod for pod in held}
    update, known = revisions.hash_of(owner), revisions.of(owner, snapshot)
    said = str((owner.get("status") or {}).get("currentRevision") or "").removeprefix(f"{name(owner)}-")
    view = _View(owner, pods, said or update, update, now)
    changes = revisions.keep(owner, known, {view.current, *map(view.hash, pods.values())})
    grown, whole = _grow(view, known, snapshot)
    shrunk = _shrink(view, whole)
    changes += [*adopted, *grown, *shrunk]
    if not grown and not shrunk and (whole or view.parallel):  # as upstream, a set in order waits for each pod
        changes += _update(view)
    left = [seconds for pod in pods.values() if (seconds := available_in(pod, view.seconds, now))]
    changes += [*_status(view), *([again("StatefulSet", min(left))] if left else [])]
    return telling("StatefulSet", owner, changes)


CONTROLLERS = (
    Controller(
        "statefulset",
        {
            "StatefulSet": itself,
            "Pod": claimants("StatefulSet"),
            "ControllerRevision": owner_of("StatefulSet"),
            "PersistentVolumeClaim": lambda _claim, _snapshot: (),
        },
        reconcile,
    ),
)
