"""Which functions validate which kind: a creation, what an update may change, a write of /status, and warnings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from podwire_base.kube.meta import Object

from ..custom import definition
from . import (
    access,
    autoscaling,
    batch,
    certificates,
    core,
    devices,
    extensions,
    network,
    pods,
    services,
    storage,
    workloads,
)
from .fields import Causes

Check = Callable[[Object], Causes]
Change = Callable[[Object, Object], Causes]  # (new object, the one before)


def _nothing(_obj: Object) -> Causes:
    yield from ()


def _free(_obj: Object, _before: Object) -> Causes:
    yield from ()


@dataclass(frozen=True, slots=True)
class Rules:
    """create: what every object of the kind must be. update: what an update may not change. kept: an update is also
    checked as a creation, as it is for most kinds. whole: then its metadata too, as upstream does for some kinds.
    templates: paths of pod specs, for warnings.
    """

    create: Check = _nothing
    update: Change = _free
    status: Change = _free
    kept: bool = True
    whole: bool = False
    warnings: Callable[[Object], list[str]] | None = None
    pods: tuple[tuple[str, ...], ...] = ()


_TEMPLATE = (("spec", "template", "spec"),)
_ADMISSION, _RBAC = "admissionregistration.k8s.io", "rbac.authorization.k8s.io"
RULES: dict[tuple[str, ...], Rules] = {
    ("", "ConfigMap"): Rules(core.config_map, core.config_map_update, whole=True),
    ("", "Endpoints"): Rules(services.endpoints),
    ("", "Event"): Rules(core.event, whole=True),
    ("", "LimitRange"): Rules(core.limit_range, whole=True),
    ("", "Namespace"): Rules(core.namespace, kept=False),
    ("", "Node"): Rules(core.node, core.node_update),
    ("", "PersistentVolume"): Rules(storage.volume, storage.volume_update, whole=True),
    ("", "PersistentVolumeClaim"): Rules(storage.claim, storage.claim_update, kept=False),
    ("", "Pod"): Rules(pods.create, pods.update, kept=False, pods=(("spec",),)),
    ("", "PodTemplate"): Rules(workloads.pod_template, pods=(("template", "spec"),)),
    ("", "ReplicationController"): Rules(
        workloads.replication_controller, status=workloads.replica_status, pods=_TEMPLATE
    ),
    ("", "ResourceQuota"): Rules(core.quota, core.quota_update),
    ("", "Secret"): Rules(core.secret, core.secret_update, whole=True, warnings=core.secret_warnings),
    ("", "Service"): Rules(
        services.service,
        services.service_update,
        services.service_status,
        whole=True,
        warnings=services.service_warnings,
    ),
    ("apiextensions.k8s.io", "CustomResourceDefinition"): Rules(
        definition.create, definition.update, definition.update_status, kept=False
    ),
    ("apps", "ControllerRevision"): Rules(workloads.revision, workloads.revision_update),
    ("apps", "DaemonSet"): Rules(workloads.daemon_set, workloads.deployment_update, pods=_TEMPLATE),
    ("apps", "Deployment"): Rules(
        workloads.deployment, workloads.deployment_update, workloads.deployment_status, pods=_TEMPLATE
    ),
    ("apps", "ReplicaSet"): Rules(
        workloads.replica_set, workloads.deployment_update, workloads.replica_status, pods=_TEMPLATE
    ),
    ("apps", "StatefulSet"): Rules(workloads.stateful_set, workloads.stateful_set_update, pods=_TEMPLATE),
    ("autoscaling", "HorizontalPodAutoscaler", "v1"): Rules(autoscaling.scaler_v1),
    ("autoscaling", "HorizontalPodAutoscaler", "v2"): Rules(autoscaling.scaler),
    ("autoscaling", "Scale"): Rules(workloads.scale),
    ("batch", "CronJob"): Rules(batch.cron_job, pods=(("spec", "jobTemplate", "spec", "template", "spec"),)),
    ("batch", "Job"): Rules(batch.job, batch.job_update, pods=_TEMPLATE),
    ("certificates.k8s.io", "CertificateSigningRequest"): Rules(
        certificates.request, certificates.update, certificates.update_status, kept=False
    ),
    ("coordination.k8s.io", "Lease"): Rules(core.lease),
    ("discovery.k8s.io", "EndpointSlice"): Rules(
        services.endpoint_slice,
        services.slice_update,
        kept=False,
        warnings=lambda obj: (
            ["spec.addressType: FQDN endpoints are deprecated"] if obj.get("addressType") == "FQDN" else []
        ),
    ),
    ("events.k8s.io", "Event"): Rules(core.new_event),
    ("networking.k8s.io", "IPAddress"): Rules(network.ip_address, network.ip_address_update),
    ("networking.k8s.io", "Ingress"): Rules(
        network.ingress_create, status=network.ingress_status, warnings=network.ingress_warnings
    ),
    ("networking.k8s.io", "IngressClass"): Rules(network.ingress_class, network.ingress_class_update),
    ("networking.k8s.io", "NetworkPolicy"): Rules(network.network_policy),
    ("networking.k8s.io", "ServiceCIDR"): Rules(network.service_cidr, network.service_cidr_update, kept=False),
    ("node.k8s.io", "RuntimeClass"): Rules(core.runtime_class, core.runtime_class_update),
    ("policy", "PodDisruptionBudget"): Rules(workloads.budget),
    ("scheduling.k8s.io", "PriorityClass"): Rules(core.priority_class, core.priority_class_update, kept=False),
    ("apiregistration.k8s.io", "APIService"): Rules(extensions.api_service),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema"): Rules(extensions.flow_schema),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration"): Rules(extensions.priority_level),
    ("resource.k8s.io", "DeviceClass"): Rules(devices.device_class),
    ("resource.k8s.io", "ResourceClaim"): Rules(devices.claim, devices.claim_update, devices.claim_status, kept=False),
    ("resource.k8s.io", "ResourceClaimTemplate"): Rules(devices.template, devices.claim_update, kept=False),
    ("resource.k8s.io", "ResourceSlice"): Rules(extensions.resource_slice, extensions.resource_slice_update),
    ("storage.k8s.io", "CSIDriver"): Rules(
        extensions.csi_driver, extensions.csi_driver_update, warnings=storage.csi_driver_warnings
    ),
    ("storage.k8s.io", "CSINode"): Rules(extensions.csi_node),
    ("storage.k8s.io", "CSIStorageCapacity"): Rules(extensions.storage_capacity, extensions.storage_capacity_update),
    ("storage.k8s.io", "VolumeAttachment"): Rules(extensions.attachment, extensions.attachment_update),
    ("storage.k8s.io", "VolumeAttributesClass"): Rules(
        extensions.attributes_class, extensions.attributes_class_update, kept=False
    ),
    ("storage.k8s.io", "StorageClass"): Rules(storage.storage_class, storage.storage_class_update),
    (_ADMISSION, "MutatingAdmissionPolicy"): Rules(extensions.mutating_policy),
    (_ADMISSION, "MutatingAdmissionPolicyBinding"): Rules(extensions.mutating_binding),
    (_ADMISSION, "ValidatingAdmissionPolicy"): Rules(extensions.validating_policy),
    (_ADMISSION, "ValidatingAdmissionPolicyBinding"): Rules(extensions.validating_binding),
    (_ADMISSION, "MutatingWebhookConfiguration"): Rules(access.mutating_webhooks),
    (_ADMISSION, "ValidatingWebhookConfiguration"): Rules(access.validating_webhooks),
    (_RBAC, "ClusterRole"): Rules(access.cluster_role, whole=True),
    (_RBAC, "ClusterRoleBinding"): Rules(access.cluster_role_binding, access.binding_update, whole=True),
    (_RBAC, "Role"): Rules(access.role, whole=True),
    (_RBAC, "RoleBinding"): Rules(access.role_binding, access.binding_update, whole=True),
}
_NONE = Rules()


def of(group: str, kind: str, version: str) -> Rules:
    return RULES.get((group, kind, version)) or RULES.get((group, kind)) or _NONE
