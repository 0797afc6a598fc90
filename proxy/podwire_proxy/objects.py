"""Reads and builds Kubernetes objects for the role. The rules do not use these helpers. Pure."""

from __future__ import annotations

import msgspec

from podwire_base.kube import meta
from podwire_base.kube.times import parse_time, timestamp


def stub(obj: meta.Object) -> meta.Object:
    """Returns the part of an object that the informers must remember. The tracker keeps the part for the rules."""
    kept = {
        field: obj["metadata"][field] for field in ("name", "namespace", "resourceVersion") if field in obj["metadata"]
    }
    fresh: meta.Object = msgspec.json.decode(msgspec.json.encode({"metadata": kept}))
    return fresh  # all strings are copies: one original would keep the whole list in memory


def triggered(obj: meta.Object | None) -> float:
    """Returns the time of the change that caused an EndpointSlice's update (Unix time); 0 if unknown."""
    text = meta.annotations_of(obj).get("endpoints.kubernetes.io/last-change-trigger-time", "") if obj else ""
    try:
        return parse_time(text).timestamp() if text else 0.0
    except (ValueError, TypeError):
        return 0.0


def check_failed(node: str, service: str, why: str, now: float) -> meta.Object:
    """Returns the Event for a Service whose health check has no listener on `node`."""
    namespace, _, name = service.partition("/")
    stamp = timestamp(now)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{name}.", "namespace": namespace},
        "involvedObject": {"apiVersion": "v1", "kind": "Service", "namespace": namespace, "name": name},
        "reason": "FailedToStartServiceHealthcheck",
        "message": f"node {node}: {why}",
        "type": "Warning",
        "source": {"component": "podwire-proxy", "host": node},
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }
