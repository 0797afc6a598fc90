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


_CLASSES = {"app": "web"}
_REQUEST = (  # a PKCS #10 request in PEM, in base64
    "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIa01JR0xBZ0VBTUNreEZ6QVZCZ05WQkFvTURuTjVjM1JsYlRw"
    "dFlYTjBaWEp6TVE0d0RBWURWUVFEREFWaApaRzFwYmpCWk1CTUdCeXFHU000OUFnRUdDQ3FHU000OUF3RUhBMElBQkVVby9qNVZP"
    "aWQwSmluSkkzeFNNZXpiCmZ2NnJDQ2tKa2x3blM4aWVUZkRyUklHUW05dXdMOGxvVExOa2JSQnMrSFhWQkgvNjgwTis0cGRRWkM1"
    "aTFJK2cKQURBS0JnZ3Foa2pPUFFRREFnTklBREJGQWlBazFTQ2NHc29XTHZsWldTbVR0Y20rcWJTdE5hSDRNVkp3NU1UOAphbXNW"
    "VHdJaEFMNnJrNU9YQ1VYWllEVy9DRUhRMUlPSEVCODZIK2lPaGE5aDlnSHVJZkkrCi0tLS0tRU5EIENFUlRJRklDQVRFIFJFUVVF"
    "U1QtLS0tLQo="
)
_CEL = {
    "matchConstraints": {
        "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["pods"]}]
    }
}
_TEMPLATE = {"metadata": {"labels": _CLASSES}, "spec": {"containers": [{"name": "c", "image": "podwire.io/echo"}]}}
_WORKLOAD = {"spec": {"selector": {"matchLabels": _CLASSES}, "template": _TEMPLATE}}
_NEVER = {**_TEMPLATE, "spec": {**_TEMPLATE["spec"], "restartPolicy": "Never"}}  # type: ignore[dict-item]  # mixed JSON
_ROLE = {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}}
# what the smallest object of a kind has beside its metadata, where that is something
MINIMAL: dict[str, Object] = {
    "APIService": {
        "spec": {
            "group": "x.example.com",
            "version": "v1",
            "groupPriorityMinimum": 1,
            "versionPriority": 1,
            "service": {"namespace": "default", "name": "x"},
            "insecureSkipTLSVerify": True,
        }
    },
    "CSIDriver": {"spec": {}},
    "CSINode": {"spec": {"drivers": []}},
    "CSIStorageCapacity": {"storageClassName": "fast"},
    "CertificateSigningRequest": {
        "spec": {"request": _REQUEST, "signerName": "example.com/x", "usages": ["client auth"]}
    },
    "ClusterRoleBinding": _ROLE,
    "ControllerRevision": {"revision": 1, "data": {"a": 1}},
    "CronJob": {"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": _NEVER}}}},
    "CustomResourceDefinition": {
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "toys", "kind": "Toy", "singular": "toy", "listKind": "ToyList"},
            "versions": [
                {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
            ],
        }
    },
    "DaemonSet": _WORKLOAD,
    "DeviceClass": {"spec": {}},
    "EndpointSlice": {"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]},
    "Event": {"involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}},
    "FlowSchema": {"spec": {"priorityLevelConfiguration": {"name": "x"}, "matchingPrecedence": 5}},
    "HorizontalPodAutoscaler": {
        "spec": {"maxReplicas": 2, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}
    },
    "IPAddress": {"spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "web"}}},
    "Ingress": {"spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}},
    "IngressClass": {"spec": {"controller": "example.com/x"}},
    "Job": {"spec": {"template": _NEVER}},
    "MutatingAdmissionPolicy": {
        "spec": {
            **_CEL,
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "[]"}}],
        }
    },
    "MutatingAdmissionPolicyBinding": {"spec": {"policyName": "x"}},
    "PersistentVolume": {
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/data"}}
    },
    "PersistentVolumeClaim": {
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    },
    "PodTemplate": {"template": _TEMPLATE},
    "PriorityClass": {"value": 1},
    "PriorityLevelConfiguration": {"spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}}},
    "ReplicationController": {"spec": {"selector": _CLASSES, "template": _TEMPLATE}},
    "ResourceClaim": {"spec": {}},
    "ResourceClaimTemplate": {"spec": {"spec": {}}},
    "ResourceSlice": {
        "spec": {
            "driver": "x.example.com",
            "nodeName": "n1",
            "pool": {"name": "n1", "generation": 1, "resourceSliceCount": 1},
        }
    },
    "RoleBinding": _ROLE,
    "RuntimeClass": {"handler": "runc"},
    "ServiceCIDR": {"spec": {"cidrs": ["10.97.0.0/16"]}},
    "StatefulSet": _WORKLOAD,
    "StorageClass": {"provisioner": "example.com/x"},
    "ValidatingAdmissionPolicy": {"spec": {**_CEL, "validations": [{"expression": "true"}]}},
    "ValidatingAdmissionPolicyBinding": {"spec": {"policyName": "x", "validationActions": ["Deny"]}},
    "VolumeAttachment": {
        "spec": {"attacher": "x.example.com", "nodeName": "n1", "source": {"persistentVolumeName": "pv"}}
    },
    "VolumeAttributesClass": {"driverName": "x.example.com", "parameters": {"a": "b"}},
}
# kinds whose names follow a rule of their own
_OWN_NAMES = {
    "CustomResourceDefinition": "toys.example.com",
    "APIService": "v1.x.example.com",
    "IPAddress": "10.96.0.77",
}


def minimal(resource: Resource, own: str = "") -> Object:
    """Returns the smallest object of the kind that the API accepts. own: its name; default: "x", or a name that the
    kind allows.
    """
    own = own or _OWN_NAMES.get(resource.kind, "x")
    made: dict[str, Object] = {
        "Pod": pod(own),
        "Service": service(own),
        "Deployment": deployment(own),
        "ReplicaSet": replica_set(own),
    }
    head = {"apiVersion": resource.api_version, "kind": resource.kind}
    body = copy.deepcopy(made.get(resource.kind) or MINIMAL.get(resource.kind, {}))
    if (resource.group, resource.kind) == ("events.k8s.io", "Event"):
        body = {
            "regarding": body.pop("involvedObject"),
            "eventTime": "2027-01-15T08:00:00.000000Z",
            "action": "a",
            "reason": "r",
            "type": "Normal",
            "reportingController": "example.com/c",
            "reportingInstance": "i",
        }
    return {**body, **head, "metadata": meta(own, "default" if resource.namespaced else "")}


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
