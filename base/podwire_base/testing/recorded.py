"""Objects and answers in the form of Kubernetes 1.3x.

They have managedFields, fields that podwire does not know, large resourceVersions, Status errors with details and
causes, and bookmarks: objects of the kind with nothing but a version.
"""

from __future__ import annotations

import json
from typing import Any

from podwire_base.kube.meta import Object


def _managed(manager: str, operation: str, fields: Object, sub: str = "") -> Object:
    return {
        "manager": manager,
        "operation": operation,
        "apiVersion": "v1",
        "time": "2026-11-20T07:14:09Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
        **({"subresource": sub} if sub else {}),
    }


def node(name: str, address: str, cidr: str, version: int, zone: str = "eu-1a") -> Object:
    """Returns a Node as kubelet, kube-controller-manager and a cloud provider write it. Items of a list
    have no kind.
    """
    return {
        "metadata": {
            "name": name,
            "uid": f"6f0f5f4e-7f1c-4a3e-9d2b-{version:012d}",
            "resourceVersion": str(version),
            "creationTimestamp": "2026-11-19T10:00:01Z",
            "generation": 3,
            "labels": {
                "beta.kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": zone,
                "node.kubernetes.io/exclude-from-external-load-balancers": "",
            },
            "annotations": {
                "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                "kubeadm.alpha.kubernetes.io/cri-socket": "unix:///run/containerd/containerd.sock",
            },
            "managedFields": [
                _managed("kubelet", "Update", {"f:metadata": {"f:labels": {".": {}, "f:kubernetes.io/os": {}}}}),
                _managed(
                    "kube-controller-manager",
                    "Update",
                    {"f:spec": {"f:podCIDR": {}, "f:podCIDRs": {".": {}, f'v:"{cidr}"': {}}}},
                ),
                _managed(
                    "kubelet",
                    "Update",
                    {"f:status": {"f:conditions": {'k:{"type":"Ready"}': {"f:status": {}}}}},
                    "status",
                ),
            ],
        },
        "spec": {
            "podCIDR": cidr,
            "podCIDRs": [cidr],
            "providerID": f"kind://docker/kind/{name}",
            "taints": [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}],
        },
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": address},
                {"type": "ExternalIP", "address": "203.0.113.7"},
                {"type": "Hostname", "address": name},
                {"type": "InternalDNS", "address": f"{name}.internal"},
            ],
            "allocatable": {
                "cpu": "2",
                "ephemeral-storage": "47093746742",
                "hugepages-2Mi": "0",
                "memory": "3924784Ki",
                "pods": "110",
            },
            "capacity": {"cpu": "2", "memory": "4027184Ki", "pods": "110"},
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "KubeletReady",
                    "message": "kubelet is posting",
                    "lastHeartbeatTime": "2026-11-23T08:00:00Z",
                    "lastTransitionTime": "2026-11-19T10:00:40Z",
                },
                {"type": "NetworkUnavailable", "status": "False", "reason": "FlannelIsUp"},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "features": {"supplementalGroupsPolicy": True},
            "runtimeHandlers": [{"name": "", "features": {"recursiveReadOnlyMounts": True, "userNamespaces": True}}],
            "images": [
                {"names": ["registry.k8s.io/pause@sha256:ee6521f2", "registry.k8s.io/pause:3.10"], "sizeBytes": 320368}
            ],
            "nodeInfo": {"kubeletVersion": "v1.37.1", "containerRuntimeVersion": "containerd://2.2.0", "swap": {}},
        },
    }


def service(name: str, ip: str, version: int, *, port: int = 80, target: Any = "http", **spec: Any) -> Object:
    last = json.dumps({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}})
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": f"0a4f0b5e-1111-4a3e-9d2b-{version:012d}",
            "resourceVersion": str(version),
            "creationTimestamp": "2026-11-20T07:14:09Z",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": last},
            "managedFields": [
                _managed(
                    "kubectl-client-side-apply",
                    "Update",
                    {"f:spec": {"f:ports": {".": {}, 'k:{"port":80,"protocol":"TCP"}': {".": {}, "f:port": {}}}}},
                )
            ],
        },
        "spec": {
            "clusterIP": ip,
            "clusterIPs": [ip],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "http", "port": port, "protocol": "TCP", "targetPort": target}],
            "selector": {"app": name},
            "sessionAffinity": "None",
            "type": "ClusterIP",
            "aFieldOfTomorrow": {"nested": [1, None, {"x": "y"}]},
            **spec,
        },
        "status": {"loadBalancer": {}},
    }


def endpoint_slice(service_name: str, addresses: list[str], port: int, version: int, node_name: str) -> Object:
    name = f"{service_name}-8xk2w"
    return {
        "addressType": "IPv4",
        "metadata": {
            "name": name,
            "generateName": f"{service_name}-",
            "namespace": "default",
            "resourceVersion": str(version),
            "uid": f"77f2ac6e-1111-4a3e-9d2b-{version:012d}",
            "generation": 7,
            "creationTimestamp": "2026-11-20T07:14:09Z",
            "labels": {
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": service_name,
            },
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-20T07:14:12Z"},
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "name": service_name,
                    "uid": "u",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
            "managedFields": [_managed("kube-controller-manager", "Update", {"f:endpoints": {}})],
        },
        "endpoints": [
            {
                "addresses": [ip],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": node_name,
                "zone": "eu-1a",
                "hints": {"forZones": [{"name": "eu-1a"}]},
                "targetRef": {"kind": "Pod", "namespace": "default", "name": f"{service_name}-{n}", "uid": f"p{n}"},
            }
            for n, ip in enumerate(addresses)
        ],
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
    }


def listed(kind: str, items: list[Object], version: int, more: str = "", remaining: int = 0) -> Object:
    metadata = {
        "resourceVersion": str(version),
        **({"continue": more, "remainingItemCount": remaining} if more else {}),
    }
    return {"kind": f"{kind}List", "apiVersion": "v1", "metadata": metadata, "items": items}


def status(code: int, reason: str, message: str, **details: Any) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "details": details or {},
        "code": code,
    }


def frame(kind: str, obj: Object, api_kind: str = "Service") -> bytes:
    """Returns one line of a watch. Unlike the items of a list, the object has its kind."""
    typed = obj if obj.get("kind") else {"kind": api_kind, "apiVersion": "v1", **obj}
    return json.dumps({"type": kind, "object": typed}, separators=(",", ":")).encode() + b"\n"


def bookmark(version: int, *, end: bool = False, api_kind: str = "Service") -> bytes:
    """Returns a bookmark. It includes Go's zero values: an empty spec and status, and a creationTimestamp
    that is null.
    """
    metadata: Object = {"resourceVersion": str(version), "creationTimestamp": None}
    if end:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return frame(
        "BOOKMARK",
        {"kind": api_kind, "apiVersion": "v1", "metadata": metadata, "spec": {}, "status": {"loadBalancer": {}}},
    )


GONE = status(410, "Expired", "too old resource version: 812345678901 (812345699999)")
NO_WATCHLIST = status(
    422,
    "Invalid",
    'ListOptions.meta.k8s.io "" is invalid: sendInitialEvents: Forbidden: '
    "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
    group="meta.k8s.io",
    kind="ListOptions",
    causes=[{"reason": "FieldValueForbidden", "field": "sendInitialEvents"}],
)
BUSY = status(
    429,
    "TooManyRequests",
    "the server has received too many requests and has asked us to try again later",
    retryAfterSeconds=1,
)
