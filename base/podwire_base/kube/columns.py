"""The columns that `kubectl get` prints, kind by kind, with kube-apiserver's names, types and cells (Kubernetes,
pkg/printers/internalversion). Pure. Those of pods, nodes, workloads and storage are in columns_core.py.
"""

from __future__ import annotations

from typing import Any

from .cells import (
    AGE,
    CREATED,
    NAME,
    NONE,
    UNSET,
    Cell,
    Column,
    at,
    at_or,
    format_selector,
    human,
    joined,
    load_balancer,
    number,
    since,
    size,
)
from .columns_core import COLUMNS as CORE
from .meta import Object, name


def _param_kind(obj: Object) -> str:
    found = at(obj, "spec.paramKind")
    return f"{found.get('apiVersion')}/{found.get('kind')}" if found else UNSET


def _param_ref(obj: Object) -> str:
    found = at(obj, "spec.paramRef") or {}
    own = found.get("name") or ("*" if found.get("selector") else "")
    return "/".join(p for p in (found.get("namespace"), own) if p) or UNSET


def _available(obj: Object) -> str:
    for row in at(obj, "status.conditions") or []:
        if row.get("type") == "Available":
            return "True" if row.get("status") == "True" else f"{row.get('status')} ({row.get('reason', '')})"
    return "Unknown"


def _api_service(obj: Object) -> str:
    found = at(obj, "spec.service")
    return f"{found.get('namespace')}/{found.get('name')}" if found else "Local"


def _csr(obj: Object) -> str:
    kinds = {row.get("type") for row in at(obj, "status.conditions") or []}
    state = "Approved" if "Approved" in kinds else "Denied" if "Denied" in kinds else "Pending"
    return state + (",Failed" if "Failed" in kinds else "") + (",Issued" if at(obj, "status.certificate") else "")


def _csr_duration(obj: Object, now: Any) -> str:
    seconds = at(obj, "spec.expirationSeconds")
    return human(seconds) if seconds else NONE


def _event(obj: Object, old: str, new: str) -> Any:
    return obj.get(old) if obj.get(old) is not None else obj.get(new)


def _first_seen(obj: Object, now: Any) -> str:
    return since(_event(obj, "firstTimestamp", "deprecatedFirstTimestamp") or obj.get("eventTime") or "", now)


def _last_seen(obj: Object, now: Any) -> str:
    if series := obj.get("series"):
        return since(series.get("lastObservedTime") or "", now)
    last = _event(obj, "lastTimestamp", "deprecatedLastTimestamp")
    return since(last, now) if last else _first_seen(obj, now)


def _event_count(obj: Object) -> int:
    if series := obj.get("series"):
        return int(series.get("count") or 0)
    return int(_event(obj, "count", "deprecatedCount") or 1)


def _involved(obj: Object) -> Object:
    return obj.get("involvedObject") or obj.get("regarding") or {}


def _target(obj: Object) -> str:
    found = _involved(obj)
    return "/".join(p for p in (str(found.get("kind") or "").lower(), found.get("name")) if p)


def _event_source(obj: Object) -> str:
    source = _event(obj, "source", "deprecatedSource") or {}
    component = source.get("component") or _event(obj, "reportingComponent", "reportingController") or ""
    host = source.get("host") or obj.get("reportingInstance")
    return f"{component}, {host}" if host else component


_EVENT = (
    Column("Last Seen", timed=_last_seen),
    Column("Type", at_or("type", "")),
    Column("Reason", at_or("reason", "")),
    Column("Object", _target),
    Column("Subobject", lambda o: _involved(o).get("fieldPath") or "", priority=1),
    Column("Source", _event_source, priority=1),
    Column("Message", lambda o: str(_event(o, "message", "note") or "").strip()),
    Column("First Seen", timed=_first_seen, priority=1),
    Column("Count", _event_count, priority=1),
    Column("Name", name, format="name", priority=1),
)


def _subjects(kind: str) -> Cell:
    def cell(obj: Object) -> str:
        rows = [s for s in obj.get("subjects") or [] if s.get("kind") == kind]
        if kind == "ServiceAccount":
            return ", ".join(f"{s.get('namespace', '')}/{s.get('name')}" for s in rows)
        return ", ".join(str(s.get("name")) for s in rows)

    return cell


_BINDING = (
    NAME,
    Column("Role", lambda o: f"{at(o, 'roleRef.kind')}/{at(o, 'roleRef.name')}"),
    AGE,
    Column("Users", _subjects("User"), priority=1),
    Column("Groups", _subjects("Group"), priority=1),
    Column("ServiceAccounts", _subjects("ServiceAccount"), priority=1),
)


def _hosts(obj: Object) -> str:
    found = [r["host"] for r in at(obj, "spec.rules") or [] if r.get("host")]
    more = f" + {len(found) - 3} more..." if len(found) > 3 else ""
    return ",".join(found[:3]) + more or "*"


def _ingress_class(obj: Object) -> str:
    old = (obj["metadata"].get("annotations") or {}).get("kubernetes.io/ingress.class")
    return at(obj, "spec.ingressClassName") or old or NONE


def _parameters(obj: Object) -> str:
    found = at(obj, "spec.parameters")
    if not found:
        return NONE
    group = f".{found['apiGroup']}" if found.get("apiGroup") else ""
    space = f"{found['namespace']}/" if found.get("namespace") else ""
    return f"{found.get('kind')}{group}/{space}{found.get('name')}"


def _parent(obj: Object) -> str:
    found = at(obj, "spec.parentRef") or {}
    resource = ".".join(p for p in (found.get("resource"), found.get("group")) if p)
    return "/".join(p for p in (resource, found.get("namespace"), found.get("name")) if p)


def _claim(obj: Object) -> str:
    states = ["deleted"] if obj["metadata"].get("deletionTimestamp") else []
    if at(obj, "status.allocation"):
        states.append("allocated")
        if at(obj, "status.reservedFor"):
            states.append("reserved")
    elif not states:
        states.append("pending")
    return ",".join(states)


def _queuing(field: str) -> Cell:
    return at_or(f"spec.limited.limitResponse.queuing.{field}", NONE)


def _requests(obj: Object) -> str:
    return ",".join(str(r.get("audience") or "") for r in at(obj, "spec.tokenRequests") or []) or UNSET


def _default_class(obj: Object) -> str:
    marks = obj["metadata"].get("annotations") or {}
    default = marks.get("storageclass.kubernetes.io/is-default-class") == "true"
    return name(obj) + (" (default)" if default else "")


def _flag(path: str) -> Cell:
    return lambda obj: bool(at(obj, path))


_ADMISSION = "admissionregistration.k8s.io"
_WEBHOOKS = (NAME, Column("Webhooks", size("webhooks"), "integer"), AGE)
_POLICY_BINDING = (NAME, Column("PolicyName", at_or("spec.policyName", "")), Column("ParamRef", _param_ref), AGE)

COLUMNS: dict[tuple[str, str], tuple[Column, ...]] = {
    **CORE,
    ("", "Event"): _EVENT,
    ("events.k8s.io", "Event"): _EVENT,
    ("", "LimitRange"): (NAME, CREATED),
    ("", "ComponentStatus"): (NAME, Column("Status", str), Column("Message", str), Column("Error", str)),
    (_ADMISSION, "MutatingWebhookConfiguration"): _WEBHOOKS,
    (_ADMISSION, "ValidatingWebhookConfiguration"): _WEBHOOKS,
    (_ADMISSION, "MutatingAdmissionPolicy"): (
        NAME,
        Column("Mutations", size("spec.mutations"), "integer"),
        Column("ParamKind", _param_kind),
        AGE,
    ),
    (_ADMISSION, "ValidatingAdmissionPolicy"): (
        NAME,
        Column("Validations", size("spec.validations"), "integer"),
        Column("ParamKind", _param_kind),
        AGE,
    ),
    (_ADMISSION, "MutatingAdmissionPolicyBinding"): _POLICY_BINDING,
    (_ADMISSION, "ValidatingAdmissionPolicyBinding"): _POLICY_BINDING,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): (NAME, CREATED),
    ("apiregistration.k8s.io", "APIService"): (
        NAME,
        Column("Service", _api_service),
        Column("Available", _available),
        AGE,
    ),
    ("certificates.k8s.io", "CertificateSigningRequest"): (
        NAME,
        AGE,
        Column("SignerName", at_or("spec.signerName", NONE)),
        Column("Requestor", at_or("spec.username", "")),
        Column("RequestedDuration", timed=_csr_duration),
        Column("Condition", _csr),
    ),
    ("coordination.k8s.io", "Lease"): (NAME, Column("Holder", at_or("spec.holderIdentity", "")), AGE),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema"): (
        NAME,
        Column("PriorityLevel", at_or("spec.priorityLevelConfiguration.name", "")),
        Column("MatchingPrecedence", number("spec.matchingPrecedence")),
        Column("DistinguisherMethod", at_or("spec.distinguisherMethod.type", NONE)),
        AGE,
        Column("MissingPL", lambda o: "?"),
    ),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration"): (
        NAME,
        Column("Type", at_or("spec.type", "")),
        Column("NominalConcurrencyShares", at_or("spec.limited.nominalConcurrencyShares", NONE)),
        Column("Queues", _queuing("queues")),
        Column("HandSize", _queuing("handSize")),
        Column("QueueLengthLimit", _queuing("queueLengthLimit")),
        AGE,
    ),
    ("networking.k8s.io", "IPAddress"): (NAME, Column("ParentRef", _parent), Column("", timed=AGE.timed, hidden=True)),
    ("networking.k8s.io", "Ingress"): (
        NAME,
        Column("Class", _ingress_class),
        Column("Hosts", _hosts),
        Column("Address", load_balancer),
        Column("Ports", lambda o: "80, 443" if at(o, "spec.tls") else "80"),
        AGE,
    ),
    ("networking.k8s.io", "IngressClass"): (
        NAME,
        Column("Controller", at_or("spec.controller", "")),
        Column("Parameters", _parameters),
        AGE,
    ),
    ("networking.k8s.io", "NetworkPolicy"): (
        NAME,
        Column("Pod-Selector", lambda o: format_selector(at(o, "spec.podSelector"))),
        AGE,
    ),
    ("networking.k8s.io", "ServiceCIDR"): (NAME, Column("CIDRs", joined("spec.cidrs")), AGE),
    ("node.k8s.io", "RuntimeClass"): (NAME, Column("Handler", at_or("handler", "")), AGE),
    ("policy", "PodDisruptionBudget"): (
        NAME,
        Column("Min Available", lambda o: str(at_or("spec.minAvailable", "N/A")(o))),
        Column("Max Unavailable", lambda o: str(at_or("spec.maxUnavailable", "N/A")(o))),
        Column("Allowed Disruptions", number("status.disruptionsAllowed"), "integer"),
        AGE,
    ),
    ("rbac.authorization.k8s.io", "Role"): (NAME, CREATED),
    ("rbac.authorization.k8s.io", "ClusterRole"): (NAME, CREATED),
    ("rbac.authorization.k8s.io", "RoleBinding"): _BINDING,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): _BINDING,
    ("resource.k8s.io", "ResourceClaim"): (NAME, Column("State", _claim), AGE),
    ("resource.k8s.io", "ResourceSlice"): (
        NAME,
        Column("Node", at_or("spec.nodeName", "")),
        Column("Driver", at_or("spec.driver", "")),
        Column("Pool", at_or("spec.pool.name", "")),
        AGE,
    ),
    ("scheduling.k8s.io", "PriorityClass"): (
        NAME,
        Column("Value", number("value"), "integer"),
        Column("Global-Default", _flag("globalDefault"), "boolean"),
        AGE,
        Column("PreemptionPolicy", at_or("preemptionPolicy", "")),
    ),
    ("storage.k8s.io", "CSIDriver"): (
        NAME,
        Column("AttachRequired", _flag("spec.attachRequired"), "boolean"),
        Column("PodInfoOnMount", _flag("spec.podInfoOnMount"), "boolean"),
        Column("StorageCapacity", _flag("spec.storageCapacity"), "boolean"),
        Column("TokenRequests", _requests),
        Column("RequiresRepublish", _flag("spec.requiresRepublish"), "boolean"),
        Column("Modes", joined("spec.volumeLifecycleModes")),
        AGE,
    ),
    ("storage.k8s.io", "CSINode"): (NAME, Column("Drivers", size("spec.drivers"), "integer"), AGE),
    ("storage.k8s.io", "CSIStorageCapacity"): (NAME, CREATED),
    ("storage.k8s.io", "StorageClass"): (
        Column("Name", _default_class, format="name"),
        Column("Provisioner", at_or("provisioner", "")),
        Column("ReclaimPolicy", at_or("reclaimPolicy", "")),
        Column("VolumeBindingMode", at_or("volumeBindingMode", "")),
        Column("AllowVolumeExpansion", _flag("allowVolumeExpansion")),
        AGE,
    ),
    ("storage.k8s.io", "VolumeAttachment"): (
        NAME,
        Column("Attacher", at_or("spec.attacher", ""), format="name"),
        Column("PV", at_or("spec.source.persistentVolumeName", "")),
        Column("Node", at_or("spec.nodeName", "")),
        Column("Attached", _flag("status.attached"), "boolean"),
        AGE,
    ),
    ("storage.k8s.io", "VolumeAttributesClass"): (NAME, Column("DriverName", at_or("driverName", "")), AGE),
}
DEFAULT = (NAME, AGE)
