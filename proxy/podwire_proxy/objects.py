"""Helpers that read and make Kubernetes objects for the role, apart from the rules. Pure."""

from __future__ import annotations

import msgspec

from podwire_base.kube import meta
from podwire_base.kube.times import parse_time, timestamp


def stub(obj: meta.Object) -> meta.Object:
    """The part of an object that the informers must remember; the tracker keeps the part that the rules need."""
    kept = {
        field: obj["metadata"][field] for field in ("name", "namespace", "resourceVersion") if field in obj["metadata"]
    }
    fresh: meta.Object = msgspec.json.decode(msgspec.json.encode({"metadata": kept}))
    return fresh  # of new strings: an old one would keep the memory into which its list was read


def triggered(obj: meta.Object | None) -> float:
    """The time of the change behind an EndpointSlice (Unix time), 0 if it has none."""
    text = meta.annotations_of(obj).get("endpoints.kubernetes.io/last-change-trigger-time", "") if obj else ""
    try:
        return parse_time(text).timestamp() if text else 0.0
    except (ValueError, TypeError):
        return 0.0


def check_failed(node: str, service: str, why: str, now: float) -> meta.Object:
    """The Event for a Service whose health check cannot be served on `node`."""
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
