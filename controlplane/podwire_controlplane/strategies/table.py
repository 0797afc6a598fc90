"""Which Strategy each kind has. A custom kind, and a kind that needs nothing of its own, has the plain one."""

from __future__ import annotations

from functools import cache

from podwire_base.kube.registry import Resource

from .base import Strategy
from .core import Counted, Created, DeploymentStrategy, NamespaceStrategy, NodeStrategy, PodStrategy, ServiceStrategy

_COUNTED = (  # the kinds whose generation counts changes, and that need nothing else
    ("", "PodTemplate"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding"),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
    ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ("apps", "DaemonSet"),
    ("apps", "ReplicaSet"),
    ("apps", "StatefulSet"),
    ("", "ReplicationController"),
    ("batch", "CronJob"),
    ("batch", "Job"),
    ("discovery.k8s.io", "EndpointSlice"),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema"),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration"),
    ("networking.k8s.io", "Ingress"),
    ("networking.k8s.io", "IngressClass"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("policy", "PodDisruptionBudget"),
    ("resource.k8s.io", "DeviceClass"),
    ("resource.k8s.io", "ResourceSlice"),
    ("scheduling.k8s.io", "PriorityClass"),
)
_CREATED = (  # a PUT of an absent object creates it
    ("", "Endpoints"),
    ("", "Event"),
    ("", "LimitRange"),
    ("", "ReplicationController"),
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
    ("apps", "Deployment"): DeploymentStrategy,
    ("", "Namespace"): NamespaceStrategy,
    ("", "Node"): NodeStrategy,
    ("", "Pod"): PodStrategy,
    ("", "Service"): ServiceStrategy,
}


@cache
def strategy_of(resource: Resource) -> Strategy:
    return STRATEGIES.get((resource.group, resource.kind), Strategy)(resource)
