"""Events (core/v1): what a role tells about an object, for `kubectl describe` and `kubectl get events`."""

from __future__ import annotations

from .meta import Object
from .times import micro_timestamp, timestamp

ABOUT = "involvedObject"  # the field of an Event with the reference to its object


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
        ABOUT: {"apiVersion": "v1", **about},
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


def action(
    about: Object,
    reason: str,
    message: str,
    now: float,
    *,
    warning: bool = False,
    verb: str,
    controller: str,
    host: str,
) -> Object:
    """Return an Event of the form of events.k8s.io/v1 as core/v1 shows it: with a time of its own, what was done
    (`verb`), and who did it: the controller, and its instance on a host. One that is told again has a series.
    """
    made = event(about, reason, message, now, warning=warning)
    for field in ("firstTimestamp", "lastTimestamp", "count", "source"):
        del made[field]
    instance = f"{controller}-{host}" if host else controller
    who = {"reportingComponent": controller, "reportingInstance": instance[:128]}
    return {**made, **who, "eventTime": micro_timestamp(now), "action": verb}
