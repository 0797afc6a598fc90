"""Reads and builds Kubernetes objects for the role. The rules do not use these helpers. Pure."""

from __future__ import annotations

import hashlib

import msgspec

from podwire_base.kube import meta
from podwire_base.kube.events import event, reference
from podwire_base.kube.times import parse_time


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


def claims_of(node: meta.Object) -> meta.Object:
    """Returns the part of a Node that decides about externalIPs."""
    spec, status = node.get("spec"), node.get("status")
    return {
        "spec": {key: value for key, value in (spec or {}).items() if key in ("podCIDR", "podCIDRs")},
        "status": {"addresses": (status or {}).get("addresses")},
    }


def about(kind: str, key: str, uid: str = "") -> meta.Object:
    """Returns the reference of an Event to an object. key: "namespace/name"."""
    namespace, _, name = key.partition("/")
    return reference(kind, {"metadata": {"namespace": namespace, "name": name, "uid": uid}})


def service_event(node: str, service: meta.Object, reason: str, why: str, now: float) -> meta.Object:
    """Returns a Warning Event about a Service, as the proxy of `node` sees it. service: the reference to it."""
    return event(service, reason, f"node {node}: {why}", now, component="podwire-proxy", host=node)


def claim_event(service: meta.Object, why: str, now: float) -> meta.Object:
    """Returns a Warning Event about a Service whose address and port another Service has. All nodes say the same, so
    the Event's name is that of what it says.
    """
    suffix = hashlib.sha256(why.encode()).hexdigest()[:16]
    return event(service, "AddressTaken", why, now, component="podwire-proxy", suffix=suffix)


def host_port_event(node: str, pod: meta.Object, why: str, now: float) -> meta.Object:
    """Returns a Warning Event about a pod of `node` whose hostPort a Service has."""
    return event(pod, "HostPortTaken", f"node {node}: {why}", now, component="podwire-proxy", host=node)
