"""Which Strategy each kind has. A custom kind brings its own; a kind that needs nothing special has the plain one."""

from __future__ import annotations

from podwire_base.kube.registry import BUILTIN, Resource

from .apps import DaemonSetStrategy, DefinitionStrategy, DeploymentStrategy, JobStrategy
from .base import Strategy
from .certificates import RequestStrategy
from .core import (
    ClaimStrategy,
    Counted,
    CountedCreated,
    Created,
    Fixed,
    NamespaceStrategy,
    NodeStrategy,
    PodStrategy,
    SecretStrategy,
    ServiceStrategy,
    SliceStrategy,
    VolumeStrategy,
)

_COUNTED = (  # the kinds whose generation counts changes, and that need nothing else
    ("", "PodTemplate"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding"),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
    ("apps", "ReplicaSet"),
    ("apps", "StatefulSet"),
    ("batch", "CronJob"),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema"),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration"),
    ("networking.k8s.io", "Ingress"),
    ("networking.k8s.io", "IngressClass"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("policy", "PodDisruptionBudget"),
    ("resource.k8s.io", "DeviceClass"),
    ("resource.k8s.io", "ResourceSlice"),
)
_CREATED = (  # a PUT of an absent object creates it
    ("", "Endpoints"),
    ("", "Event"),
    ("", "LimitRange"),
    ("coordination.k8s.io", "Lease"),
    ("events.k8s.io", "Event"),
    ("rbac.authorization.k8s.io", "ClusterRole"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io", "Role"),
    ("rbac.authorization.k8s.io", "RoleBinding"),
)
STRATEGIES: dict[tuple[str, str], type[Strategy]] = {
    **dict.fromkeys(_COUNTED, Counted),
    **dict.fromkeys(_CREATED, Created),
    ("", "Namespace"): NamespaceStrategy,
    ("", "Node"): NodeStrategy,
    ("", "PersistentVolume"): VolumeStrategy,
    ("", "PersistentVolumeClaim"): ClaimStrategy,
    ("", "Pod"): PodStrategy,
    ("", "ReplicationController"): CountedCreated,
    ("", "Secret"): SecretStrategy,
    ("", "Service"): ServiceStrategy,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): DefinitionStrategy,
    ("apps", "DaemonSet"): DaemonSetStrategy,
    ("apps", "Deployment"): DeploymentStrategy,
    ("batch", "Job"): JobStrategy,
    ("certificates.k8s.io", "CertificateSigningRequest"): RequestStrategy,
    ("discovery.k8s.io", "EndpointSlice"): SliceStrategy,
    ("scheduling.k8s.io", "PriorityClass"): Fixed,
}


# a PUT of an object of these kinds names the version that it replaces, and so does one of a custom resource
_VERSIONED = frozenset(
    (
        ("apiextensions.k8s.io", "CustomResourceDefinition"),
        ("apiregistration.k8s.io", "APIService"),
        ("coordination.k8s.io", "Lease"),
        ("node.k8s.io", "RuntimeClass"),
        ("policy", "PodDisruptionBudget"),
        *(("storage.k8s.io", kind) for kind in ("CSIDriver", "CSINode", "CSIStorageCapacity", "VolumeAttachment")),
        ("storage.k8s.io", "VolumeAttributesClass"),
        *(
            ("admissionregistration.k8s.io", f"{how}{what}")
            for how in ("Mutating", "Validating")
            for what in ("AdmissionPolicy", "AdmissionPolicyBinding", "WebhookConfiguration")
        ),
    )
)


def unconditional(resource: Resource) -> bool:
    """Whether a PUT without a resourceVersion replaces whatever is stored."""
    pair = (resource.group, resource.kind)
    return pair not in _VERSIONED and (resource.api_version, resource.kind) in BUILTIN.by_kind


def strategy_of(resource: Resource) -> Strategy:
    if resource.custom is not None:
        own: Strategy = resource.custom.strategy
        return own
    where = resource.group, resource.version, resource.kind  # the hash of a whole row takes a microsecond
    found = _BUILTIN.get(where)
    if found is None:
        found = _BUILTIN[where] = STRATEGIES.get((resource.group, resource.kind), Strategy)(resource)
    return found


_BUILTIN: dict[tuple[str, str, str], Strategy] = {}
