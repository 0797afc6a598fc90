"""Says on each object of a kind for which nothing acts that this is so: an Event with the reason NoController."""

from __future__ import annotations

from functools import partial

from podwire_base.kube.events import event, reference
from podwire_base.kube.meta import Object, deleting, key, name, namespace, uid
from podwire_base.kube.registry import of
from podwire_base.kube.unattended import MISSING, REASON

from .base import Controller, Keys, Snapshot, Write

RESYNC = 1800.0  # seconds; an Event lives for an hour


def _told(obj: Object) -> str:
    """Return the end of the Event's name: the same for each telling, so that there is one Event for each object."""
    return f"nocontroller-{uid(obj)[:8]}"


def reconcile(wanted: str, snapshot: Snapshot, now: float) -> list[Write]:
    kind, _, own = wanted.partition(":")
    obj = snapshot.get(kind, own)
    if obj is None or deleting(obj):
        return []
    space = snapshot.get("Namespace", namespace(obj))
    if space is None or deleting(space):
        return []  # nothing can be created there
    about = reference(kind, obj, of(kind).api_version)
    suffix = _told(obj)
    if snapshot.get("Event", f"{namespace(obj)}/{name(obj)[:200]}.{suffix}") is not None:
        return []
    text = f"This cluster has no controller for the kind {kind}: {MISSING[kind]}"
    told = event(about, REASON, text, now, component="podwire-controllers", suffix=suffix)
    return [Write("create", "Event", namespace(obj), "", told, text)]


def _of(kind: str, obj: Object, _snapshot: Snapshot) -> Keys:
    return (f"{kind}:{key(obj)}",)


def _nothing(_obj: Object, _snapshot: Snapshot) -> Keys:
    return ()


CONTROLLERS = (
    Controller(
        "unattended",
        {
            **{kind: partial(_of, kind) for kind in MISSING},
            "Namespace": _nothing,
            "Event": _nothing,
        },
        reconcile,
        resync=RESYNC,
    ),
)
