"""Helpers that read and make Kubernetes objects for the role, apart from the rules. Pure."""

from __future__ import annotations

import msgspec

from podwire_base.kube import meta
from podwire_base.kube.times import parse_time, timestamp


def stub(obj: meta.Object) -> meta.Object:
    """All that the informers must remember; what the rules need of an object, the tracker keeps."""
    kept = {
        field: obj["metadata"][field] for field in ("name", "namespace", "resourceVersion") if field in obj["metadata"]
    }
    fresh: meta.Object = msgspec.json.decode(msgspec.json.encode({"metadata": kept}))
    return fresh  # of new strings: an old one would keep the memory that its list was read into


def triggered(obj: meta.Object | None) -> float:
    """When what an EndpointSlice tells of happened (Unix time), 0 where it does not say."""
    text = meta.annotations_of(obj).get("endpoints.kubernetes.io/last-change-trigger-time", "") if obj else ""
    try:
        return parse_time(text).timestamp() if text else 0.0
    except (ValueError, TypeError):
        return 0.0


def check_failed(node: str, service: str, why: str, now: float) -> meta.Object:
    """The Event that says that a Service's health check cannot be served on `node`."""
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
