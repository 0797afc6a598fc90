"""Validation of kinds that extend a cluster: storage drivers, aggregated APIs, flow control, admission policies and
devices (pkg/apis/storage, flowcontrol, admissionregistration, resource; kube-aggregator).
"""

from __future__ import annotations

from typing import Any

from podwire_base.kube import quantity
from podwire_base.kube.meta import Object, name

from . import fields, meta, scheduling
from .fields import Causes, all_invalid, duplicate, forbidden, invalid, not_negative, one_of, required

_LIFECYCLES = ("Ephemeral", "Persistent")
_GROUP_POLICIES = ("File", "None", "ReadWriteOnceWithFSType")
_DRIVER_MAX = 63
_SUBJECTS = ("Group", "ServiceAccount", "User")


# ---- storage


def _driver(path: str, text: str) -> Causes:
    if not text:
        yield required(path)
    elif len(text) > _DRIVER_MAX:
        yield fields.too_long(path, _DRIVER_MAX)
    else:
        yield from all_invalid(path, text, fields.subdomain(text.lower()))


def csi_driver(obj: Object) -> Causes:
    yield from _driver("metadata.name", name(obj))
    spec = obj.get("spec") or {}
    for n, mode in enumerate(spec.get("volumeLifecycleModes") or []):
        yield from one_of(f"spec.volumeLifecycleModes[{n}]", mode, _LIFECYCLES)
    if spec.get("fsGroupPolicy") is not None:
        yield from one_of("spec.fsGroupPolicy", spec["fsGroupPolicy"], _GROUP_POLICIES)
    seen: set[str] = set()
    for n, one in enumerate(spec.get("tokenRequests") or []):
        audience, seconds = one.get("audience") or "", one.get("expirationSeconds")
        if audience in seen:
            yield duplicate(f"spec.tokenRequests[{n}].audience", audience)
        seen.add(audience)
        if seconds is not None and not 600 <= seconds <= 2**32:
            yield invalid(f"spec.tokenRequests[{n}].expirationSeconds", seconds, "must be between 600 and 2^32")


def csi_driver_update(obj: Object, before: Object) -> Causes:
    for field in ("attachRequired", "volumeLifecycleModes"):
        new, old = (obj.get("spec") or {}).get(field), (before.get("spec") or {}).get(field)
        if new != old:
            yield meta.immutable(f"spec.{field}", new)


def csi_node(obj: Object) -> Causes:
    seen: set[str] = set()
    for n, one in enumerate((obj.get("spec") or {}).get("drivers") or []):
        path, own = f"spec.drivers[{n}]", one.get("name") or ""
        yield from _driver(f"{path}.name", own)
        if not one.get("nodeID"):
            yield required(f"{path}.nodeID")
        elif len(one["nodeID"]) > 256:
            yield invalid(f"{path}.nodeID", one["nodeID"], "must be 256 characters or less")
        count = (one.get("allocatable") or {}).get("count")
        if count is not None and count < 0:
            yield invalid(f"{path}.allocatable.count", count, "must be greater than or equal to 0")
        keys: set[str] = set()
        for key in one.get("topologyKeys") or []:
            if key in keys:
                yield duplicate(f"{path}.topologyKeys", key)
            keys.add(key)
            yield from all_invalid(f"{path}.topologyKeys", key, fields.qualified(key))
        if own and own in seen:
            yield duplicate(f"{path}.name", own)
        seen.add(own)


def storage_capacity(obj: Object) -> Causes:
    held = obj.get("storageClassName") or ""
    if not held:
        yield required("storageClassName")
    else:
        yield from all_invalid("storageClassName", held, fields.subdomain(held))
    for field in ("capacity", "maximumVolumeSize"):
        text = obj.get(field)
        if text is not None and quantity.parse(text) < 0:
            yield invalid(field, text, "must be greater than or equal to 0")
    yield from meta.label_selector("nodeTopology", obj.get("nodeTopology"))


def storage_capacity_update(obj: Object, before: Object) -> Causes:
    for field in ("nodeTopology", "storageClassName"):
        if obj.get(field) != before.get(field):
            yield meta.immutable(field, obj.get(field))


def attachment(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    source = spec.get("source") or {}
    yield from _driver("spec.attacher", spec.get("attacher") or "")
    inline, volume = source.get("inlineVolumeSpec"), source.get("persistentVolumeName")
    if inline is None and volume is None:
        yield required("spec.source", "must specify exactly one of inlineVolumeSpec and persistentVolumeName")
    elif inline is not None and volume is not None:
        yield forbidden("spec.source", "must specify exactly one of inlineVolumeSpec and persistentVolumeName")
    elif volume == "":
        yield required("spec.source.persistentVolumeName", "must specify non empty persistentVolumeName")
    if not spec.get("nodeName"):
        yield required("spec.nodeName")
    else:
        yield from all_invalid("spec.nodeName", spec["nodeName"], fields.subdomain(spec["nodeName"]))


def attachment_update(obj: Object, before: Object) -> Causes:
    if obj.get("spec") != before.get("spec"):
        yield invalid("spec", "", "field is immutable")


def attributes_class(obj: Object) -> Causes:
    yield from _driver("driverName", obj.get("driverName") or "")
    parameters = obj.get("parameters") or {}
    if not parameters:
        yield required("parameters", "must contain at least one key/value pair")
    if "" in parameters:
        yield invalid("parameters", "", "field can not be empty.")


def attributes_class_update(obj: Object, before: Object) -> Causes:
    if obj.get("driverName") != before.get("driverName"):
        yield meta.immutable("driverName", obj.get("driverName"))
    if (obj.get("parameters") or {}) != (before.get("parameters") or {}):
        yield forbidden("parameters", "updates to parameters are forbidden.")


# ---- aggregated APIs


def api_service(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    group, version, service = spec.get("group") or "", spec.get("version") or "", spec.get("service")
    if name(obj) != f"{version}.{group}":
        yield invalid("metadata.name", name(obj), 'must be `spec.version+"."+spec.group`')
    if group:
        yield from all_invalid("spec.group", group, fields.subdomain(group))
    yield from all_invalid("spec.version", version, fields.label_1035(version))
    for field, most in (("groupPriorityMinimum", 20000), ("versionPriority", 1000)):
        value = spec.get(field) or 0
        if not 0 < value <= most:
            yield invalid(f"spec.{field}", value, f"must be positive and less than {most}")
    if service is None:
        for field in ("caBundle", "insecureSkipTLSVerify"):
            if spec.get(field):
                yield invalid(f"spec.{field}", "", "local APIServices may not have it")
        return
    for field in ("namespace", "name"):
        if not service.get(field):
            yield required(f"spec.service.{field}")
    port = service.get("port")
    if port is not None and not 1 <= port <= 65535:
        yield invalid("spec.service.port", port, "port is not valid: must be between 1 and 65535, inclusive")
    if spec.get("insecureSkipTLSVerify") and spec.get("caBundle"):
        yield invalid("spec.insecureSkipTLSVerify", True, "may not be true if caBundle is present")


# ---- flow control


def flow_schema(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    level = (spec.get("priorityLevelConfiguration") or {}).get("name") or ""
    precedence = spec.get("matchingPrecedence") or 0
    if not 1 <= precedence <= 10000:
        yield invalid("spec.matchingPrecedence", precedence, "must be between 1 and 10000")
    elif precedence == 1 and name(obj) != "exempt":
        yield invalid("spec.matchingPrecedence", 1, "only the schema named 'exempt' may have matchingPrecedence 1")
    if not level:
        yield required("spec.priorityLevelConfiguration.name", "must reference a priority level")
    else:
        yield from all_invalid("spec.priorityLevelConfiguration.name", level, fields.subdomain(level))
    method = spec.get("distinguisherMethod")
    if method is not None:
        yield from one_of("spec.distinguisherMethod.type", method.get("type") or "", ("ByNamespace", "ByUser"))
    for n, rule in enumerate(spec.get("rules") or []):
        path = f"spec.rules[{n}]"
        if not rule.get("subjects"):
            yield required(f"{path}.subjects", "subjects must contain at least one value")
        for m, subject in enumerate(rule.get("subjects") or []):
            yield from one_of(f"{path}.subjects[{m}].kind", subject.get("kind") or "", _SUBJECTS)
        if not rule.get("resourceRules") and not rule.get("nonResourceRules"):
            yield required(path, "at least one of resourceRules and nonResourceRules has to be non-empty")


def priority_level(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    kind, limited, exempt = spec.get("type") or "", spec.get("limited"), spec.get("exempt")
    if kind == "Exempt":
        if limited is not None:
            yield forbidden("spec.limited", "must be nil if the type is not Limited")
    elif kind == "Limited":
        if exempt is not None:
            yield forbidden("spec.exempt", "must be nil if the type is Limited")
        if limited is None:
            yield required("spec.limited", "must not be empty when type is Limited")
        else:
            yield from _limited("spec.limited", limited)
    else:
        yield fields.not_supported("spec.type", kind, ("Exempt", "Limited"))


def _limited(path: str, limited: Object) -> Causes:
    yield from not_negative(f"{path}.nominalConcurrencyShares", limited.get("nominalConcurrencyShares"))
    response = limited.get("limitResponse") or {}
    kind: str = response.get("type") or ""
    queuing: Any = response.get("queuing")
    if kind == "Reject":
        if queuing is not None:
            yield forbidden(f"{path}.limitResponse.queuing", "must be nil if limited.limitResponse.type is not Limited")
    elif kind == "Queue":
        if queuing is None:
            yield required(
                f"{path}.limitResponse.queuing", "must not be empty if limited.limitResponse.type is Limited"
            )
        for field in ("queueLengthLimit", "queues", "handSize") if queuing is not None else ():
            if (queuing.get(field) or 0) <= 0:
                yield invalid(f"{path}.limitResponse.queuing.{field}", queuing.get(field) or 0, "must be positive")
    else:
        yield fields.not_supported(f"{path}.limitResponse.type", kind, ("Queue", "Reject"))


# ---- admission policies


def _constraints(path: str, found: Object | None) -> Causes:
    if found is None:
        yield required(path)
        return
    for field in ("namespaceSelector", "objectSelector"):
        yield from meta.label_selector(f"{path}.{field}", found.get(field))
    if not found.get("resourceRules"):
        yield required(f"{path}.resourceRules")


def _policy(obj: Object, what: str) -> Causes:
    spec = obj.get("spec") or {}
    yield from _constraints("spec.matchConstraints", spec.get("matchConstraints"))
    if spec.get("failurePolicy") is not None:
        yield from one_of("spec.failurePolicy", spec["failurePolicy"], ("Fail", "Ignore"))
    if (kind := spec.get("paramKind")) is not None:
        for field in ("apiVersion", "kind"):
            if not kind.get(field):
                yield required(f"spec.paramKind.{field}")
    if not spec.get(what) and not (what == "validations" and spec.get("auditAnnotations")):
        yield required(f"spec.{what}", "must contain at least one item")
    for n, one in enumerate(spec.get("validations") or []):
        if not (one.get("expression") or "").strip():
            yield required(f"spec.validations[{n}].expression", "expression is not specified")


def validating_policy(obj: Object) -> Causes:
    yield from _policy(obj, "validations")


def mutating_policy(obj: Object) -> Causes:
    yield from _policy(obj, "mutations")


def _policy_binding(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    if not spec.get("policyName"):
        yield required("spec.policyName")
    else:
        yield from all_invalid("spec.policyName", spec["policyName"], fields.subdomain(spec["policyName"]))
    ref: Any = spec.get("paramRef")
    if ref is not None and bool(ref.get("name")) == (ref.get("selector") is not None):
        yield forbidden("spec.paramRef.name", "exactly one of name or selector must be specified")


def validating_binding(obj: Object) -> Causes:
    yield from _policy_binding(obj)
    actions, path = (obj.get("spec") or {}).get("validationActions") or [], "spec.validationActions"
    if not actions:
        yield required(path)
    seen: set[str] = set()
    for n, action in enumerate(actions):
        if action not in ("Audit", "Deny", "Warn"):
            yield fields.not_supported(f"{path}[{n}]", action, ("Audit", "Deny", "Warn"))
        if action in seen:
            yield duplicate(f"{path}[{n}]", action)
        seen.add(action)
    if {"Deny", "Warn"} <= seen:
        yield invalid(path, actions, "must not contain both Deny and Warn (repeating the same failure is confusing)")


def mutating_binding(obj: Object) -> Causes:
    yield from _policy_binding(obj)


# ---- devices


def resource_slice(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    yield from _driver("spec.driver", spec.get("driver") or "")
    pool = spec.get("pool") or {}
    if not pool.get("name"):
        yield required("spec.pool.name")
    if (pool.get("resourceSliceCount") or 0) <= 0:
        yield invalid("spec.pool.resourceSliceCount", pool.get("resourceSliceCount") or 0, "must be greater than zero")
    where = [f for f in ("nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection") if spec.get(f)]
    text = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"
    if len(where) > 1:
        yield invalid("spec", where, text)
    elif not where:
        yield required("spec", text)
    elif where == ["nodeSelector"]:
        yield from scheduling.node_selector("spec.nodeSelector", spec["nodeSelector"])
    seen: set[str] = set()
    for n, one in enumerate(spec.get("devices") or []):
        own = one.get("name") or ""
        if not own:
            yield required(f"spec.devices[{n}].name")
        else:
            yield from all_invalid(f"spec.devices[{n}].name", own, fields.label(own))
        if own and own in seen:
            yield duplicate(f"spec.devices[{n}].name", own)
        seen.add(own)


def resource_slice_update(obj: Object, before: Object) -> Causes:
    new, old = obj.get("spec") or {}, before.get("spec") or {}
    for field in ("nodeName", "driver"):
        if new.get(field) != old.get(field):
            yield meta.immutable(f"spec.{field}", new.get(field))
    if (new.get("pool") or {}).get("name") != (old.get("pool") or {}).get("name"):
        yield meta.immutable("spec.pool.name", (new.get("pool") or {}).get("name"))
