"""The fields that a fieldSelector may name, by kind: those of kube-apiserver (its conversion functions for field
labels). Every kind has metadata.name and metadata.namespace.
"""

from __future__ import annotations

from podwire_base.kube.registry import Resource

COMMON = frozenset({"metadata.name", "metadata.namespace"})
_REFERENCE = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
_POD = (
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.podIPs",
    "status.nominatedNodeName",
)
_EVENT = (
    *(f"involvedObject.{field}" for field in _REFERENCE),
    "reason",
    "reportingComponent",
    "source",
    "type",
)
_NEW_EVENT = (
    *(f"regarding.{field}" for field in _REFERENCE),
    *(f"involvedObject.{field}" for field in _REFERENCE),
    "reason",
    "reportingController",
    "type",
)
_FIELDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("", "Pod"): _POD,
    ("", "Node"): ("spec.unschedulable",),
    ("", "Event"): _EVENT,
    ("events.k8s.io", "Event"): _NEW_EVENT,
    ("", "Namespace"): ("status.phase",),
    ("", "Secret"): ("type",),
    ("", "Service"): ("spec.clusterIP", "spec.type"),
    ("", "ReplicationController"): ("status.replicas",),
    ("batch", "Job"): ("status.successful",),
    ("certificates.k8s.io", "CertificateSigningRequest"): ("spec.signerName",),
    ("networking.k8s.io", "IPAddress"): ("spec.parentRef.name",),
    ("resource.k8s.io", "ResourceSlice"): ("spec.nodeName", "spec.driver"),
}


def of(resource: Resource) -> frozenset[str]:
    """Returns the paths that a fieldSelector of the kind may name."""
    if resource.custom is not None:
        return COMMON | frozenset(resource.custom.fields)
    return COMMON | frozenset(_FIELDS.get((resource.group, resource.kind), ()))
