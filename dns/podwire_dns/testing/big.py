"""A large cluster, for benches and for tests that count work. It has 257,000 answers at the default size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .cases import Object

NAMESPACES = 100
PORTS = tuple(
    {"name": name, "protocol": "TCP", "port": port} for name, port in (("http", 80), ("https", 443), ("metrics", 9100))
)


def namespace_of(index: int) -> str:
    return f"ns{index % NAMESPACES}"


def namespaces() -> Iterator[Object]:
    for index in range(NAMESPACES):
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"ns{index}", "resourceVersion": "1"}}


def services(count: int = 10_000, headless_each: int = 10) -> Iterator[Object]:
    """Yields Services. Every `headless_each`th Service is headless and has one port.

    All other Services have a ClusterIP and three named ports.
    """
    for index in range(count):
        headless = index % headless_each == 0
        address = "None" if headless else f"10.96.{index >> 8}.{index & 255}"
        ports: tuple[Any, ...] = PORTS[:1] if headless else PORTS
        yield {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": f"svc-{index}",
                "namespace": namespace_of(index),
                "resourceVersion": "1",
                "uid": f"00000000-0000-4000-8000-{index:012d}",
                "labels": {"app": f"app-{index}"},
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {
                "type": "ClusterIP",
                "clusterIP": address,
                "clusterIPs": [address],
                "selector": {"app": f"app-{index}"},
                "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack",
                "sessionAffinity": "None",
                "internalTrafficPolicy": "Cluster",
                "ports": [{**port, "targetPort": 8080} for port in ports],
            },
            "status": {"loadBalancer": {}},
        }


def slice_of(index: int, part: int, addresses: list[str], *, headless: bool = True) -> Object:
    ports: tuple[Any, ...] = PORTS[:1] if headless else PORTS
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": "IPv4",
        "metadata": {
            "name": f"svc-{index}-{part}",
            "namespace": namespace_of(index),
            "resourceVersion": "1",
            "labels": {
                "kubernetes.io/service-name": f"svc-{index}",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
        },
        "ports": [dict(port) for port in ports],
        "endpoints": [
            {
                "addresses": [address],
                "nodeName": f"node-{int(address.rpartition('.')[2]) % 50}",
                "zone": "a",
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "targetRef": {"kind": "Pod", "namespace": namespace_of(index), "name": f"pod-{address}"},
            }
            for address in addresses
        ],
    }


def slices(count: int = 10_000, headless_each: int = 10, endpoints: int = 100) -> Iterator[Object]:
    """Yields one EndpointSlice of `endpoints` pods for each headless Service."""
    for number, index in enumerate(range(0, count, headless_each)):
        first = number * endpoints
        yield slice_of(
            index, 0, [f"10.{244 + (i >> 16)}.{i >> 8 & 255}.{i & 255}" for i in range(first, first + endpoints)]
        )
