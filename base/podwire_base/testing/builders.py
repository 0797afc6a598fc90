"""Objects for tests: manifests as people write them, and objects as the API stores them."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Coroutine
from typing import Any, TypeVar

from podwire_base.kube.meta import Object, name
from podwire_base.kube.registry import Resource

T = TypeVar("T")
NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


# ---- manifests, as users write them


def meta(own: str, space: str = "default", **more: Any) -> Object:
    return {"name": own, **({"namespace": space} if space else {}), **more}


def service(
    own: str = "web", *, ports: list[Object] | None = None, labels: dict[str, str] | None = None, **spec: Any
) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(own, labels=labels or {}),
        "spec": {"ports": [{"port": 80}] if ports is None else ports, **spec},
    }


def pod(own: str = "p1", *, labels: dict[str, str] | None = None, **spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta(own, labels=labels or {"app": "web"}),
        "spec": {"containers": [{"name": "c", "image": "podwire.io/echo"}], **spec},
    }


def deployment(own: str = "web", replicas: int = 3, **spec: Any) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta(own),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": own}},
            "template": {
                "metadata": {"labels": {"app": own}},
                "spec": {"containers": [{"name": "c", "image": "podwire.io/echo"}]},
            },
            **spec,
        },
    }


def replica_set(own: str = "web", replicas: int = 3, **spec: Any) -> Object:
    made = deployment(own, replicas, **spec)
    return {**made, "kind": "ReplicaSet"}


def node(own: str, *, labels: dict[str, str] | None = None, ready: bool = True, **spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": meta(own, "", labels=labels or {}),
        "spec": spec,
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def minimal(resource: Resource, own: str = "x") -> Object:
    """Returns the smallest object of the kind that the API accepts."""
    made: dict[str, Object] = {
        "Pod": pod(own),
        "Service": service(own),
        "Deployment": deployment(own),
        "ReplicaSet": replica_set(own),
        "EndpointSlice": {"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]},
        "Event": {"involvedObject": {"kind": "Pod", "name": "p"}},
    }
    head = {"apiVersion": resource.api_version, "kind": resource.kind}
    return {**made.get(resource.kind, {}), **head, "metadata": meta(own, "default" if resource.namespaced else "")}


# ---- objects as the API server stores them, for controllers


def stored(obj: Object, *, uid: str = "", status: Object | None = None, **metadata: Any) -> Object:
    """Returns a copy of the object with uid, creationTimestamp, `status` and `metadata`."""
    made = copy.deepcopy(obj)
    made["metadata"] = {
        "uid": uid or f"uid-{name(obj)}",
        "creationTimestamp": "2027-01-15T07:00:00Z",
        **made["metadata"],
        **metadata,
    }
    if status is not None:
        made["status"] = {**made.get("status", {}), **status}
    return made


def running(
    own: str,
    address: str,
    on: str = "n1",
    *,
    ready: bool = True,
    labels: dict[str, str] | None = None,
    deleted: bool = False,
    **spec: Any,
) -> Object:
    """Returns a pod as the node agent reports it."""
    extra = {"deletionTimestamp": "2027-01-15T08:00:30Z"} if deleted else {}
    return stored(
        pod(own, labels=labels, nodeName=on, **spec),
        status={
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": str(ready), "lastTransitionTime": "2027-01-15T07:30:00Z"}],
        },
        **extra,
    )


def version(obj: Object) -> str:
    return str(obj["metadata"]["resourceVersion"])
