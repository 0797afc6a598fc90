"""Events (core/v1): what a role tells about an object, for `kubectl describe` and `kubectl get events`."""

from __future__ import annotations

from .meta import Object
from .times import timestamp


def event(
    about: Object,
    reason: str,
    message: str,
    now: float,
    *,
    warning: bool = True,
    component: str = "podwire",
    host: str = "",
    suffix: str = "",
) -> Object:
    """Return a core/v1 Event.

    about: an object reference: kind, namespace (a Node has none), name, and apiVersion and uid where known. reason: a
    word such as FailedScheduling. now: seconds since the epoch. component, host: the role, and its node. suffix: the
    end of the Event's name, if one message makes one Event; by default the API server makes a new name.
    """
    stem = f"{about['name'][:200]}."
    source = {"component": component, **({"host": host} if host else {})}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            **({"name": stem + suffix} if suffix else {"generateName": stem}),
            "namespace": about.get("namespace", "default"),
        },
        "involvedObject": {"apiVersion": "v1", **about},
        "type": "Warning" if warning else "Normal",
        "reason": reason,
        "message": message,
        "source": source,
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
        "count": 1,
    }


def reference(kind: str, obj: Object, api_version: str = "v1") -> Object:
    """Return the reference to an object: apiVersion, kind, namespace, name and uid."""
    meta = obj["metadata"]
    return {
        "apiVersion": api_version,
        "kind": kind,
        "namespace": meta.get("namespace", ""),
        "name": meta["name"],
        "uid": meta.get("uid", ""),
    }
