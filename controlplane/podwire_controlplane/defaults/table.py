"""Which function sets the defaults of which kind."""

from __future__ import annotations

from collections.abc import Callable

from podwire_base.kube.meta import Object
from podwire_base.kube.registry import Resource

from . import others, pods, services, workloads

Fill = Callable[[Object], None]
_ADMISSION, _FLOW, _RBAC = "admissionregistration.k8s.io", "flowcontrol.apiserver.k8s.io", "rbac.authorization.k8s.io"
# (group, kind) -> function; a kind whose versions differ has its version too
DEFAULTS: dict[tuple[str, ...], Fill] = {
    ("", "Endpoints"): services.endpoints,
    ("", "LimitRange"): others.limit_range,
    ("", "Namespace"): others.namespace,
    ("", "Node"): others.node,
    ("", "PersistentVolume"): others.volume,
    ("", "PersistentVolumeClaim"): others.claim,
    ("", "Pod"): pods.pod,
    ("", "PodTemplate"): workloads.pod_template,
    ("", "ReplicationController"): workloads.replication_controller,
    ("", "Secret"): others.secret,
    ("", "Service"): services.service,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): others.custom_resource_definition,
    ("apiregistration.k8s.io", "APIService"): others.api_service,
    ("apps", "DaemonSet"): workloads.daemon_set,
    ("apps", "Deployment"): workloads.deployment,
    ("apps", "ReplicaSet"): workloads.replica_set,
    ("apps", "StatefulSet"): workloads.stateful_set,
    ("autoscaling", "HorizontalPodAutoscaler", "v1"): others.scaler_v1,
    ("autoscaling", "HorizontalPodAutoscaler", "v2"): others.scaler,
    ("batch", "CronJob"): workloads.cron_job,
    ("batch", "Job"): workloads.job,
    ("discovery.k8s.io", "EndpointSlice"): services.endpoint_slice,
    ("networking.k8s.io", "IngressClass"): others.ingress_class,
    ("networking.k8s.io", "NetworkPolicy"): others.network_policy,
    ("resource.k8s.io", "ResourceClaim"): others.resource_claim,
    ("resource.k8s.io", "ResourceClaimTemplate"): others.resource_claim_template,
    ("scheduling.k8s.io", "PriorityClass"): others.priority_class,
    ("storage.k8s.io", "CSIDriver"): others.csi_driver,
    ("storage.k8s.io", "StorageClass"): others.storage_class,
    (_ADMISSION, "MutatingAdmissionPolicy"): others.admission_policy,
    (_ADMISSION, "MutatingAdmissionPolicyBinding"): others.admission_binding,
    (_ADMISSION, "MutatingWebhookConfiguration"): others.mutating_webhooks,
    (_ADMISSION, "ValidatingAdmissionPolicy"): others.admission_policy,
    (_ADMISSION, "ValidatingAdmissionPolicyBinding"): others.admission_binding,
    (_ADMISSION, "ValidatingWebhookConfiguration"): others.validating_webhooks,
    (_FLOW, "FlowSchema"): others.flow_schema,
    (_FLOW, "PriorityLevelConfiguration"): others.priority_level,
    (_RBAC, "ClusterRoleBinding"): others.cluster_role_binding,
    (_RBAC, "RoleBinding"): others.role_binding,
}


def _nothing(_obj: Object) -> None:
    """The kind has no defaults."""


def of(resource: Resource) -> Fill:
    """Return the function that sets the defaults of a kind in place. Its argument is as gotypes.decode returns it."""
    pair = (resource.group, resource.kind)
    return DEFAULTS.get((*pair, resource.version)) or DEFAULTS.get(pair) or _nothing
