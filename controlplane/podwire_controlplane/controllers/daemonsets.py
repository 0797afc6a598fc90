"""DaemonSets (apps/v1): one pod on every node that the template fits, and rolling updates."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from podwire_base.kube.conditions import is_true
from podwire_base.kube.meta import Object, deleting, key, labels, name

from . import affinity, revisions
from .base import Controller, Keys, Snapshot, Write, again, itself, owner_of
from .claiming import claim, claimants
from .podmaking import REVISION_HASH, available_in, changed_status, creates, deletes, make_pod, number, telling
from .taints import tolerated
from .workloads import resolve

_TAINT = "node.kubernetes.io/"
# A daemon's pod stays where other pods leave or are kept away (pkg/controller/daemon/util).
_TOLERATIONS = (
    ("not-ready", "NoExecute"),
    ("unreachable", "NoExecute"),
    ("disk-pressure", "NoSchedule"),
    ("memory-pressure", "NoSchedule"),
    ("pid-pressure", "NoSchedule"),
    ("unschedulable", "NoSchedule"),
)


def _tolerations(spec: Object) -> list[Object]:
    rows = [*_TOLERATIONS, *([("network-unavailable", "NoSchedule")] if spec.get("hostNetwork") else [])]
    added = [{"key": _TAINT + own, "operator": "Exists", "effect": effect} for own, effect in rows]
    held = spec.get("tolerations") or []
    return [*held, *(one for one in added if one not in held)]


def _fits(owner: Object, node: Object) -> tuple[bool, bool]:
    """Return whether a pod should start on the node, and whether one that is there may stay."""
    spec, taints = owner["spec"]["template"]["spec"], (node.get("spec") or {}).get("taints") or []
    if not affinity.wants(spec, node) or spec.get("nodeName") not in (None, "", name(node)):
        return False, False
    tolerations = _tolerations(spec)
    stays = tolerated([t for t in taints if t.get("effect") == "NoExecute"], tolerations)
    return tolerated(taints, tolerations), stays


@dataclass(slots=True)
class _Here:
    """The pods of the set on one node that run or will run: those of the newest template, and the others."""

    new: list[Object] = field(default_factory=list)
    old: list[Object] = field(default_factory=list)
    going: bool = False


def _pod(owner: Object, node: str, digest: str) -> Object:
    template = copy.deepcopy(owner["spec"]["template"])
    template["spec"]["tolerations"] = _tolerations(template["spec"])
    affinity.only(template["spec"], node)
    return make_pod(owner, template, extra_labels={REVISION_HASH: digest})


def _by_node(pods: list[Object], digest: str) -> tuple[dict[str, _Here], list[Write]]:
    """Return the pods by node, and the deletion of those that have ended: others take their place."""
    here: dict[str, _Here] = {}
    changes: list[Write] = []
    for pod in pods:
        place = here.setdefault(affinity.target(pod), _Here())
        if deleting(pod):
            place.going = True
        elif (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded"):
            place.going = True
            changes.append(deletes(pod, "it has ended"))
        else:
            (place.new if labels(pod).get(REVISION_HASH) == digest else place.old).append(pod)
    return here, changes


def _surplus(pods: list[Object]) -> list[Write]:
    """Return the deletion of all pods of a node but the oldest one."""
    order = sorted(pods, key=lambda p: (not p["spec"].get("nodeName"), str(p["metadata"].get("creationTimestamp"))))
    return [deletes(pod, "the node has another one") for pod in order[1:]]


@dataclass(frozen=True, slots=True)
class _Roll:
    """surge, unavailable: the numbers of maxSurge and maxUnavailable. seconds: minReadySeconds."""

    surge: int
    unavailable: int
    seconds: int
    now: float

    def ready(self, pod: Object) -> bool:
        return available_in(pod, self.seconds, self.now) == 0


def _limits(owner: Object, desired: int, now: float) -> _Roll:
    spec = owner["spec"]
    rolling = (spec.get("updateStrategy") or {}).get("rollingUpdate") or {}
    surge = resolve(rolling.get("maxSurge", 0), desired, up=True)
    unavailable = resolve(rolling.get("maxUnavailable", 1), desired, up=True)
    return _Roll(surge, unavailable or int(surge == 0), number(spec, "minReadySeconds", 0), now)


def _replace(owner: Object, places: dict[str, _Here], roll: _Roll, digest: str) -> list[Write]:
    """Return one step of a rolling update."""
    changes: list[Write] = []
    if roll.surge:
        more = roll.surge - sum(bool(place.new and place.old) for place in places.values())
        for node, place in sorted(places.items()):
            if not place.old:
                continue
            if any(map(roll.ready, place.new)):
                changes += [deletes(pod, "its successor is available") for pod in place.old]
            elif not any(map(roll.ready, place.old)):
                changes += [deletes(pod, "it is old and not available") for pod in place.old]
            elif not place.new and more > 0:
                changes.append(creates(_pod(owner, node, digest)))
                more -= 1
        return changes
    away = sum(not any(map(roll.ready, [*place.new, *place.old])) for place in places.values())
    spare = roll.unavailable - away
    for _, place in sorted(places.items()):
        if not place.old:
            continue
        if not any(map(roll.ready, place.old)):
            changes += [deletes(pod, "it is old and not available") for pod in place.old]
        elif spare > 0:
            changes += [deletes(pod, "it is old") for pod in place.old]
            spare -= 1
    return changes


def reconcile(wanted: str, snapshot: Snapshot, now: float) -> list[Write]:
    owner = snapshot.get("DaemonSet", wanted)
    if owner is None or deleting(owner):
        return []
    pods, adopted = claim("Pod", owner, snapshot)
    digest = revisions.hash_of(owner)
    used = {labels(p).get(REVISION_HASH, "") for p in pods}
    changes = revisions.keep(owner, revisions.of(owner, snapshot), used)
    here, ended = _by_node(pods, digest)
    changes += [*adopted, *ended]
    places: dict[str, _Here] = {}
    misplaced = 0
    for node in sorted(snapshot.list("Node"), key=name):
        starts, stays = _fits(owner, node)
        place = here.pop(name(node), _Here())
        held = [*place.new, *place.old]
        if starts:
            places[name(node)] = place
            if not held and not place.going:
                changes.append(creates(_pod(owner, name(node), digest)))
            changes += _surplus(place.new) + _surplus(place.old)
        else:
            misplaced += bool(held)
            changes += [deletes(pod, "the node is none of the set's") for pod in held if not stays]
    roll = _limits(owner, len(places), now)
    if (owner["spec"].get("updateStrategy") or {}).get("type") != "OnDelete":
        changes += _replace(owner, places, roll, digest)
    changes += [*_status(owner, places, misplaced, roll), *_waits(pods, roll)]
    return telling("DaemonSet", owner, changes)


def _waits(pods: list[Object], roll: _Roll) -> list[Write]:
    left = [seconds for pod in pods if (seconds := available_in(pod, roll.seconds, roll.now))]
    return [again("DaemonSet", min(left))] if left else []


def _status(owner: Object, places: dict[str, _Here], misplaced: int, roll: _Roll) -> list[Write]:
    held = [[*place.new, *place.old] for place in places.values()]
    available = sum(any(map(roll.ready, pods)) for pods in held)
    return changed_status(
        "DaemonSet",
        owner,
        {
            "currentNumberScheduled": sum(bool(pods) for pods in held),
            "numberMisscheduled": misplaced,
            "desiredNumberScheduled": len(places),
            "numberReady": sum(any(is_true(pod, "Ready") for pod in pods) for pods in held),
            "observedGeneration": owner["metadata"].get("generation", 1),
            "updatedNumberScheduled": sum(bool(place.new) for place in places.values()),
            "numberAvailable": available,
            "numberUnavailable": len(places) - available,
        },
    )


def _all(_node: Object, snapshot: Snapshot) -> Keys:
    return [key(owner) for owner in snapshot.list("DaemonSet")]


CONTROLLERS = (
    Controller(
        "daemonset",
        {
            "DaemonSet": itself,
            "Pod": claimants("DaemonSet"),
            "ControllerRevision": owner_of("DaemonSet"),
            "Node": _all,
        },
        reconcile,
    ),
)
