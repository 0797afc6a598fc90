"""ControllerRevisions (apps/v1): the templates that a StatefulSet or DaemonSet had, for `kubectl rollout undo`."""

from __future__ import annotations

import copy

from podwire_base.kube.meta import Object, labels, name, namespace

from .base import Snapshot, Write, owner_reference
from .podmaking import REVISION_HASH, number
from .workloads import template_hash


def hash_of(owner: Object) -> str:
    return template_hash(owner["spec"]["template"])


def _number(revision: Object) -> int:
    return int(revision.get("revision") or 0)


def of(owner: Object, snapshot: Snapshot) -> list[Object]:
    """Return the revisions of an owner, the oldest first."""
    return sorted(snapshot.owned("ControllerRevision", owner), key=_number)


def template_of(revision: Object) -> Object:
    """Return the pod template that a revision keeps."""
    template: Object = copy.deepcopy(((revision.get("data") or {}).get("spec") or {}).get("template") or {})
    template.pop("$patch", None)
    return template


def keep(owner: Object, known: list[Object], used: set[str]) -> list[Write]:
    """Return the writes that store the owner's template as its newest revision, and that forget those which nobody
    uses beyond revisionHistoryLimit. used: hashes of the revisions of living pods.
    """
    digest, space = hash_of(owner), namespace(owner)
    own = next((r for r in known if labels(r).get(REVISION_HASH) == digest), None)
    latest = max(map(_number, known), default=0)
    changes: list[Write] = []
    if own is None:
        template = copy.deepcopy(owner["spec"]["template"])
        made: Object = {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": f"{name(owner)}-{digest}",
                "namespace": space,
                "labels": {**labels(template), REVISION_HASH: digest},
                "ownerReferences": [owner_reference(owner)],
            },
            "data": {"spec": {"template": {**template, "$patch": "replace"}}},
            "revision": latest + 1,
        }
        changes.append(Write("create", "ControllerRevision", space, made["metadata"]["name"], made))
    elif _number(own) < latest:  # a rollback: the old template is the newest again
        changes.append(Write("patch", "ControllerRevision", space, name(own), {"revision": latest + 1}))
    idle = [r for r in known if labels(r).get(REVISION_HASH) not in {digest, *used}]
    limit = number(owner["spec"], "revisionHistoryLimit", 10)
    changes += [
        Write("delete", "ControllerRevision", space, name(r), why="revisionHistoryLimit")
        for r in idle[: max(0, len(idle) - limit)]
    ]
    return changes
