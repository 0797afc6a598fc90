"""A small cluster as objects, for the tests of explain: two nodes, pods of a Deployment, and Services of each kind."""

from __future__ import annotations

from typing import Any

from podwire.explain.catalogue import Catalogue
from podwire_base.kube.meta import Object

NODES = {"node1": ("172.30.0.11", "fd00:30::11"), "node2": ("172.30.0.12", "fd00:30::12")}


def pod(name: str, ip: str, node: str, *, space: str = "default", ready: bool = True, **spec: Any) -> Object:
    family6 = f"fd00:244::{ip.rpartition('.')[2]}" if ip else ""
    containers = spec.pop("containers", [{"name": "main", "ports": [{"containerPort": 9376, "name": "http"}]}])
    owner = spec.pop("owner", None)
    status: dict[str, Any] = spec.pop("status", {})
    return {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": space,
            "labels": spec.pop("labels", {"app": "web"}),
            "ownerReferences": [{"kind": owner[0], "name": owner[1], "controller": True}] if owner else [],
        },
        "spec": {"nodeName": node, "containers": containers, **spec},
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}, {"ip": family6}] if ip else [],
            "conditions": [{"type": "Ready", "status": str(ready)}],
            **status,
        },
    }


def service(name: str, ip: str, *ports: dict[str, Any], space: str = "default", **spec: Any) -> Object:
    ips = [ip] if ip and ip != "None" else []
    return {
        "kind": "Service",
        "metadata": {"name": name, "namespace": space, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"clusterIP": ip, "clusterIPs": ips, "ports": list(ports), "selector": {"app": "web"}, **spec},
    }


def hidden(made: Object) -> Object:
    """The same Service, which the proxy leaves alone: its address is bound on every node."""
    named = {"service.kubernetes.io/service-proxy-name": "dns"}
    return {**made, "metadata": {**made["metadata"], "labels": named}}


def endpoint_slice(owner: str, *endpoints: dict[str, Any], space: str = "default", port: int = 9376) -> Object:
    return {
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{owner}-1",
            "namespace": space,
            "labels": {"kubernetes.io/service-name": owner},
        },
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [{"name": "http", "protocol": "TCP", "port": port}],
    }


def node(name: str) -> Object:
    return {
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {},
        "status": {
            "addresses": [{"type": "InternalIP", "address": ip} for ip in NODES[name]],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


HTTP = {"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}
DNS = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
PODS = (
    pod("web-5d4-a", "10.244.1.2", "node1", owner=("ReplicaSet", "web-5d4")),
    pod("web-5d4-b", "10.244.2.2", "node2", owner=("ReplicaSet", "web-5d4"), ready=False),
    pod("db-0", "10.244.2.3", "node2", space="data", owner=("StatefulSet", "db"), labels={"app": "db"}),
    pod("client", "10.244.1.9", "node1", labels={"app": "client"}, containers=[{"name": "c"}]),
    pod("host", "172.30.0.12", "node2", hostNetwork=True, labels={"app": "host"}),
    pod("plain", "10.244.1.8", "node1", dnsPolicy="Default", labels={"app": "x"}, containers=[{"name": "c"}]),
)
SERVICES = (
    service("web", "10.96.0.20", HTTP, {"name": "metrics", "port": 9090, "protocol": "TCP"}),
    service("db", "None", {"port": 5432, "protocol": "TCP"}, space="data"),
    service("one", "10.96.0.22", {"port": 8080, "protocol": "TCP"}),
    service("alias", "", type="ExternalName", externalName="db.data.svc.cluster.local"),
    service("away", "", type="ExternalName", externalName="www.example.test"),
    service("loop", "", type="ExternalName", externalName="loop2.default.svc.cluster.local"),
    service("loop2", "", type="ExternalName", externalName="loop.default.svc.cluster.local"),
    service("number", "", type="ExternalName", externalName="192.0.2.1"),
    hidden(service("kube-dns", "10.96.0.10", *DNS, space="kube-system")),
    service("empty", "None", {"port": 80, "protocol": "TCP"}),
    service("udp", "10.96.0.23", {"port": 161, "protocol": "UDP"}),
)
SLICES = (
    endpoint_slice("web", {"addresses": ["10.244.1.2"]}, {"addresses": ["10.244.2.2"], "conditions": {"ready": False}}),
    endpoint_slice("db", {"addresses": ["10.244.2.3"], "hostname": "db-0"}, space="data", port=5432),
)


def catalogue(**more: tuple[Object, ...]) -> Catalogue:
    objects = {
        "Pod": PODS, "Service": SERVICES, "EndpointSlice": SLICES, "Node": tuple(map(node, NODES)), "Event": (),
    }  # fmt: skip
    return Catalogue({**objects, **more})
