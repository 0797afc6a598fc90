"""Defaults of all other kinds (Kubernetes' packages apis/GROUP/VERSION, file defaults.go)."""

from __future__ import annotations

import copy
from typing import Any

from podwire_base.kube.meta import Object, name

from .pods import claim_spec, put, storage_source

_RBAC = "rbac.authorization.k8s.io"
_UP: Object = {
    "stabilizationWindowSeconds": 0,
    "selectPolicy": "Max",
    "policies": [
        {"type": "Pods", "value": 4, "periodSeconds": 15},
        {"type": "Percent", "value": 100, "periodSeconds": 15},
    ],
}
_DOWN: Object = {"selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}
_CPU: Object = {
    "type": "Resource",
    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
}


def _absent(obj: Object, **values: Any) -> None:
    for field, value in values.items():
        if obj.get(field) is None:
            obj[field] = copy.deepcopy(value)


# ---- core


def namespace(obj: Object) -> None:
    obj["metadata"]["labels"] = {
        **(obj["metadata"].get("labels") or {}),
        "kubernetes.io/metadata.name": name(obj),
    }
    if not obj["metadata"]["labels"]["kubernetes.io/metadata.name"]:
        del obj["metadata"]["labels"]["kubernetes.io/metadata.name"]


def node(obj: Object) -> None:
    status = obj.setdefault("status", {})
    if status.get("capacity"):
        status["allocatable"] = {**status["capacity"], **(status.get("allocatable") or {})}
    spec = obj.get("spec") or {}
    one, every = spec.get("podCIDR"), spec.get("podCIDRs") or []
    if one and (not every or every[0] != one):  # the first of podCIDRs is podCIDR; older writers know only that
        spec["podCIDRs"] = [one]
    elif every and not one:
        spec["podCIDR"] = every[0]


def secret(obj: Object) -> None:
    put(obj, type="Opaque")


def claim(obj: Object) -> None:
    put(obj.setdefault("status", {}), phase="Pending")
    claim_spec(obj.setdefault("spec", {}))


def volume(obj: Object) -> None:
    put(obj.setdefault("status", {}), phase="Pending")
    spec = obj.setdefault("spec", {})
    put(spec, persistentVolumeReclaimPolicy="Retain", volumeMode="Filesystem")
    storage_source(spec)


def limit_range(obj: Object) -> None:
    """A container's default limit is the maximum, and its default request the default limit or the minimum."""
    for item in (obj.get("spec") or {}).get("limits") or []:
        if item.get("type") != "Container":
            continue
        limits = {**(item.get("max") or {}), **(item.get("default") or {})}
        requests = {**(item.get("min") or {}), **limits, **(item.get("defaultRequest") or {})}
        if limits:
            item["default"] = limits
        if requests:
            item["defaultRequest"] = requests


# ---- networking, policy, scheduling


def network_policy(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    for way in ("ingress", "egress"):
        for rule in spec.get(way) or []:
            for port in rule.get("ports") or []:
                put(port, protocol="TCP")
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", *(["Egress"] if spec.get("egress") else [])]


def ingress_class(obj: Object) -> None:
    parameters = (obj.get("spec") or {}).get("parameters")
    if parameters is not None:
        put(parameters, scope="Cluster")


def priority_class(obj: Object) -> None:
    put(obj, preemptionPolicy="PreemptLowerPriority")


# ---- autoscaling


def _behavior(spec: Object) -> None:
    behavior = spec.get("behavior")
    if behavior is None:
        return
    for way, rules in (("scaleUp", _UP), ("scaleDown", _DOWN)):
        behavior[way] = {
            **copy.deepcopy(rules),
            **{k: v for k, v in (behavior.get(way) or {}).items() if v is not None},
        }


def scaler(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _absent(spec, minReplicas=1)
    if not spec.get("metrics"):
        spec["metrics"] = [copy.deepcopy(_CPU)]
    _behavior(spec)


def scaler_v1(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _absent(spec, minReplicas=1)
    if "autoscaling.alpha.kubernetes.io/metrics" not in (obj["metadata"].get("annotations") or {}):
        _absent(spec, targetCPUUtilizationPercentage=80)


# ---- storage


def storage_class(obj: Object) -> None:
    put(obj, reclaimPolicy="Delete", volumeBindingMode="Immediate")


def csi_driver(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _absent(spec, attachRequired=True, podInfoOnMount=False, storageCapacity=False, requiresRepublish=False)
    _absent(spec, fsGroupPolicy="ReadWriteOnceWithFSType", seLinuxMount=False)
    if not spec.get("volumeLifecycleModes"):
        spec["volumeLifecycleModes"] = ["Persistent"]


# ---- roles


def _role_ref(obj: Object) -> None:
    put(obj.setdefault("roleRef", {}), apiGroup=_RBAC)
    for subject in obj.get("subjects") or []:
        if not subject.get("apiGroup") and subject.get("kind") in ("User", "Group"):
            subject["apiGroup"] = _RBAC


role_binding = cluster_role_binding = _role_ref


# ---- admission, extensions


def _webhooks(obj: Object, mutating: bool) -> None:
    for hook in obj.get("webhooks") or []:
        put(hook, failurePolicy="Fail", matchPolicy="Equivalent")
        _absent(hook, namespaceSelector={}, objectSelector={}, timeoutSeconds=10)
        if mutating:
            put(hook, reinvocationPolicy="Never")
        service = (hook.get("clientConfig") or {}).get("service")
        if service is not None:
            _absent(service, port=443)
        for rule in hook.get("rules") or []:
            put(rule, scope="*")


def validating_webhooks(obj: Object) -> None:
    _webhooks(obj, mutating=False)


def mutating_webhooks(obj: Object) -> None:
    _webhooks(obj, mutating=True)


def _match(resources: Object | None) -> None:
    if resources is None:
        return
    put(resources, matchPolicy="Equivalent")
    _absent(resources, namespaceSelector={}, objectSelector={})
    for field in ("resourceRules", "excludeResourceRules"):
        for rule in resources.get(field) or []:
            put(rule, scope="*")


def admission_policy(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    put(spec, failurePolicy="Fail")
    _match(spec.get("matchConstraints"))


def admission_binding(obj: Object) -> None:
    _match((obj.get("spec") or {}).get("matchResources"))


def custom_resource_definition(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    names = spec.setdefault("names", {})
    if names.get("kind"):
        put(names, singular=names["kind"].lower(), listKind=names["kind"] + "List")
    conversion = spec.get("conversion")
    if conversion is None:
        conversion = spec["conversion"] = {}
    put(conversion, strategy="None")
    service = ((conversion.get("webhook") or {}).get("clientConfig") or {}).get("service")
    if service is not None:
        _absent(service, port=443)


def api_service(obj: Object) -> None:
    service = (obj.get("spec") or {}).get("service")
    if service is not None:
        _absent(service, port=443)


# ---- flow control, devices


def flow_schema(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    if not spec.get("matchingPrecedence"):
        spec["matchingPrecedence"] = 1000


def priority_level(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    if (limited := spec.get("limited")) is not None:
        _absent(limited, nominalConcurrencyShares=30, lendablePercent=0)
        queuing = (limited.get("limitResponse") or {}).get("queuing")
        if queuing is not None:
            for field, value in (("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)):
                queuing[field] = queuing.get(field) or value
    if (exempt := spec.get("exempt")) is not None:
        _absent(exempt, nominalConcurrencyShares=0, lendablePercent=0)


def _request(one: Object) -> None:
    put(one, allocationMode="ExactCount")
    if one["allocationMode"] == "ExactCount" and not one.get("count"):
        one["count"] = 1


def _devices(spec: Object) -> None:
    for request in (spec.get("devices") or {}).get("requests") or []:
        if (exactly := request.get("exactly")) is not None:
            _request(exactly)
        for one in request.get("firstAvailable") or []:
            _request(one)


def resource_claim(obj: Object) -> None:
    _devices(obj.get("spec") or {})


def resource_claim_template(obj: Object) -> None:
    _devices((obj.get("spec") or {}).get("spec") or {})
