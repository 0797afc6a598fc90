"""Builds Kubernetes objects for tests, in the form that the API returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from podwire_base.kube.meta import Object


def port(number: int, protocol: str = "TCP", name: str = "", node_port: int = 0) -> dict[str, Any]:
    """Returns one entry of a Service's spec.ports."""
    made: dict[str, Any] = {"name": name, "port": number, "protocol": protocol, "targetPort": number}
    return {**made, "nodePort": node_port} if node_port else made


def service(
    name: str,
    cluster_ip: str | Sequence[str],
    ports: Sequence[Mapping[str, Any]],
    *,
    type: str = "ClusterIP",
    labels: Mapping[str, str] | None = None,
    ingress: Sequence[Mapping[str, str]] = (),
    **spec: Any,
) -> Object:
    """Returns a Service in namespace default. Further keywords are fields of its spec, by their API names."""
    ips = [cluster_ip] if isinstance(cluster_ip, str) else list(cluster_ip)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": dict(labels or {}),
            "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"type": type, "clusterIP": ips[0], "clusterIPs": ips, "ports": [dict(p) for p in ports], **spec},
        "status": {"loadBalancer": {"ingress": [dict(i) for i in ingress]}},
    }


def endpoint(ip: str, node: str = "", *, hints: Mapping[str, Any] | None = None, **conditions: bool) -> dict[str, Any]:
    """Returns one entry of an EndpointSlice's endpoints.

    conditions: ready, serving, terminating; the API's default holds for an omitted condition.
    """
    made: dict[str, Any] = {"addresses": [ip], "conditions": conditions}
    if node:
        made["nodeName"] = node
    return {**made, "hints": dict(hints)} if hints else made


def endpoint_slice(
    owner: str,
    endpoints: Sequence[Mapping[str, Any]],
    ports: Sequence[tuple[str, str, int | None]] = (),
    *,
    name: str = "",
    labels: Mapping[str, str] | None = None,
    family: str = "IPv4",
) -> Object:
    """Returns an EndpointSlice of the Service `owner` in namespace default. ports: (name, protocol, number)."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": family,
        "metadata": {
            "name": name or f"{owner}-1",
            "namespace": "default",
            "resourceVersion": "1",
            "labels": {"kubernetes.io/service-name": owner, **(labels or {})},
        },
        "endpoints": [dict(e) for e in endpoints],
        "ports": [{"name": n, "protocol": p, "port": number} for n, p, number in ports],
    }
