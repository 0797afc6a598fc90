"""Validation of the other kinds of the core group: configuration, nodes, limits, events (pkg/apis/core/validation)."""

from __future__ import annotations

import base64
import json
from typing import Any

from podwire_base.kube import quantity
from podwire_base.kube.meta import Object

from . import fields, meta, resources
from .fields import (
    Causes,
    all_invalid,
    duplicate,
    forbidden,
    invalid,
    not_negative,
    not_supported,
    one_of,
    required,
    too_long,
)

DATA_MAX = 1024 * 1024  # bytes of all values of a ConfigMap or Secret
_SECRET_KEYS = {
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
}
_BASIC = ("username", "password")
_ACCOUNT = "kubernetes.io/service-account.name"
_SCOPES = ("BestEffort", "CrossNamespacePodAffinity", "NotBestEffort", "NotTerminating", "PriorityClass", "Terminating",
           "VolumeAttributesClass")  # fmt: skip
_LIMIT_TYPES = ("Container", "PersistentVolumeClaim", "Pod")


def _keys(path: str, found: Object) -> Causes:
    for key in found:
        yield from all_invalid(f"{path}[{key}]", key, fields.config_key(key))


def config_map(obj: Object) -> Causes:
    data, binary = obj.get("data") or {}, obj.get("binaryData") or {}
    yield from _keys("data", data)
    for key in data:
        if key in binary:
            yield invalid(f"data[{key}]", key, "duplicate of key present in binaryData")
    yield from _keys("binaryData", binary)
    size = sum(len(v.encode()) for v in data.values()) + sum(_decoded(v) for v in binary.values())
    if size > DATA_MAX:
        yield too_long("[]", DATA_MAX)


def _decoded(text: str) -> int:
    return len(text) * 3 // 4


def _frozen(obj: Object, before: Object, names: tuple[str, ...]) -> Causes:
    if not before.get("immutable"):
        return
    if not obj.get("immutable"):
        yield forbidden("immutable", "field is immutable when `immutable` is set")
    for name in names:
        if (obj.get(name) or {}) != (before.get(name) or {}):
            yield forbidden(name, "field is immutable when `immutable` is set")


def config_map_update(obj: Object, before: Object) -> Causes:
    yield from _frozen(obj, before, ("data", "binaryData"))


def secret(obj: Object) -> Causes:
    data, kind = obj.get("data") or {}, obj.get("type") or ""
    yield from _keys("data", data)
    if sum(_decoded(v) for v in data.values()) > DATA_MAX:
        yield too_long("data", DATA_MAX)
    if kind == "kubernetes.io/service-account-token":
        if not (obj["metadata"].get("annotations") or {}).get(_ACCOUNT):
            yield required(f"metadata.annotations[{_ACCOUNT}]")
    elif kind == "kubernetes.io/basic-auth" and not any(name in data for name in _BASIC):
        for name in _BASIC:
            yield required(f"data[{name}]")
    for name in _SECRET_KEYS.get(kind, ()):
        if name not in data or ((name.startswith(".docker") or name.startswith("ssh")) and not data[name]):
            yield required(f"data[{name}]")
        elif name.startswith(".docker"):
            try:
                json.loads(base64.b64decode(data[name]))
            except ValueError:
                yield invalid(f"data[{name}]", "<secret contents redacted>", "not a JSON object")


def secret_update(obj: Object, before: Object) -> Causes:
    yield from _frozen(obj, before, ("data",))
    if obj.get("type") != before.get("type"):
        yield meta.immutable("type", obj.get("type"))


def secret_warnings(obj: Object) -> list[str]:
    data = obj.get("data") or {}
    if obj.get("type") == "kubernetes.io/tls" and data.get("tls.crt"):
        try:
            text = base64.b64decode(data["tls.crt"])
        except ValueError:
            text = b""
        if b"-----BEGIN" not in text:
            return ["tls: failed to find any PEM data in certificate input"]
    return []


# ---- nodes, namespaces


def _taints(path: str, found: list[Object]) -> Causes:
    seen: set[Any] = set()
    for n, taint in enumerate(found):
        where, key = f"{path}[{n}]", taint.get("key") or ""
        yield from all_invalid(f"{where}.key", key, fields.qualified(key))
        yield from all_invalid(f"{where}.value", taint.get("value"), fields.label_value(taint.get("value") or ""))
        if not taint.get("effect"):
            yield required(f"{where}.effect")
        else:
            yield from one_of(f"{where}.effect", taint["effect"], ("NoExecute", "NoSchedule", "PreferNoSchedule"))
        pair = (key, taint.get("effect"))
        if pair in seen:
            yield duplicate(where, taint)
        seen.add(pair)


def node(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    yield from _taints("spec.taints", spec.get("taints") or [])
    cidrs = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    for n, text in enumerate(cidrs):
        yield from all_invalid(f"spec.podCIDRs[{n}]", text, fields.cidr(text))
    if len(cidrs) > 1:
        families = {":" in c for c in cidrs}
        if len(cidrs) > 2 or len(families) < 2:
            yield invalid("spec.podCIDRs", cidrs, "may specify no more than one CIDR for each IP family")


def node_update(obj: Object, before: Object) -> Causes:
    new, old = obj.get("spec") or {}, before.get("spec") or {}
    if old.get("podCIDR") and (new.get("podCIDRs") or [new.get("podCIDR")]) != (
        old.get("podCIDRs") or [old["podCIDR"]]
    ):
        yield forbidden("spec.podCIDRs", 'node updates may not change podCIDR except from "" to valid')
    if old.get("providerID") and new.get("providerID") != old["providerID"]:
        yield forbidden("spec.providerID", 'node updates may not change providerID except from "" to valid')


def namespace(obj: Object) -> Causes:
    for one in (obj.get("spec") or {}).get("finalizers") or []:
        yield from all_invalid("spec.finalizers", one, fields.qualified(one))
        if "/" not in one and one not in meta.STANDARD_FINALIZERS:
            yield invalid("spec.finalizers", one, "name is neither a standard finalizer name nor is it fully qualified")


# ---- limits


def quota(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    for name, text in (spec.get("hard") or {}).items():
        yield from resources.quota_name(f"spec.hard[{name}]", name)
        yield from resources.amount(f"spec.hard[{name}]", name, text)
    scopes = spec.get("scopes") or []
    for scope in scopes:
        if scope not in _SCOPES:
            yield invalid("spec.scopes", scopes, "unsupported scope")
    for pair in (("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")):
        if all(p in scopes for p in pair):
            yield invalid("spec.scopes", scopes, "conflicting scopes")


def quota_update(obj: Object, before: Object) -> Causes:
    ours, theirs = (sorted((o.get("spec") or {}).get("scopes") or []) for o in (obj, before))
    if ours != theirs:
        yield invalid("spec.scopes", ours, "field is immutable")


def limit_range(obj: Object) -> Causes:
    seen: set[str] = set()
    for n, item in enumerate((obj.get("spec") or {}).get("limits") or []):
        where, kind = f"spec.limits[{n}]", item.get("type") or ""
        if "/" not in kind and kind not in _LIMIT_TYPES:
            yield invalid(f"{where}.type", kind, "must be a standard limit type or fully qualified")
        if kind in seen:
            yield duplicate(f"{where}.type", kind)
        seen.add(kind)
        if kind == "Pod":
            for name in ("default", "defaultRequest"):
                if item.get(name):
                    yield forbidden(f"{where}.{name}", "may not be specified when `type` is 'Pod'")
        if kind == "PersistentVolumeClaim" and not any((item.get(k) or {}).get("storage") for k in ("min", "max")):
            yield required(f"{where}.limits", "either minimum or maximum storage value is required")
        yield from _limits(where, {k: v for k, v in item.items() if kind != "Pod" or not k.startswith("default")})


_ORDER = (("min", "max"), ("defaultRequest", "default"), ("min", "defaultRequest"), ("min", "default"),
          ("defaultRequest", "max"), ("default", "max"))  # fmt: skip


def _limits(path: str, item: Object) -> Causes:
    names = {
        name
        for kind in ("min", "max", "default", "defaultRequest", "maxLimitRequestRatio")
        for name in item.get(kind) or {}
    }
    for name in sorted(names):
        got = {
            k: quantity.parse(item[k][name])
            for k in ("min", "max", "default", "defaultRequest")
            if name in (item.get(k) or {})
        }
        for low, high in _ORDER:
            if low in got and high in got and got[low] > got[high]:
                bad = low if low in ("min", "defaultRequest") and high != "defaultRequest" else high
                bad = "default" if (low, high) == ("default", "max") else bad
                yield invalid(f"{path}.{bad}[{name}]", item[bad][name], f"{low} value is greater than {high} value")
        ratio = (item.get("maxLimitRequestRatio") or {}).get(name)
        if ratio is not None and quantity.parse(ratio) < 1:
            yield invalid(f"{path}.maxLimitRequestRatio[{name}]", ratio, "ratio is less than 1")


# ---- events, leases


def event(obj: Object) -> Causes:
    space, about = obj["metadata"].get("namespace") or "", obj.get("involvedObject") or {}
    wanted = about.get("namespace") or ""
    if (not wanted and space not in ("", "default", "kube-system")) or (wanted and wanted != space):
        yield invalid("involvedObject.namespace", wanted, "does not match event.namespace")


def new_event(obj: Object) -> Causes:
    space, about = obj["metadata"].get("namespace") or "", (obj.get("regarding") or {}).get("namespace") or ""
    if (about and about != space) or (not about and space not in ("default", "kube-system")):
        yield invalid("involvedObject.namespace", about, "does not match event.namespace")
    if not obj.get("eventTime"):
        yield required("eventTime")
    controller = obj.get("reportingController") or ""
    if not controller:
        yield required("reportingController")
    else:
        yield from all_invalid("reportingController", controller, fields.qualified(controller))
    for name, limit in (("reportingInstance", 128), ("action", 128), ("reason", 128)):
        if not obj.get(name):
            yield required(name)
        elif len(obj[name]) > limit:
            yield invalid(name, "", f"can have at most {limit} characters")
    if len(obj.get("note") or "") > 1024:
        yield invalid("message", "", "can have at most 1024 characters")
    if obj.get("type") not in ("Normal", "Warning"):
        yield invalid("type", obj.get("type"), "has invalid value")


def lease(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    seconds = spec.get("leaseDurationSeconds")
    if seconds is not None and seconds <= 0:
        yield invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0")
    yield from not_negative("spec.leaseTransitions", spec.get("leaseTransitions"))
    if spec.get("holderIdentity") is not None and not spec["holderIdentity"] and spec.get("strategy"):
        yield invalid("spec.holderIdentity", "", "must not be empty")
    if spec.get("preferredHolder") and not spec.get("strategy"):
        yield forbidden("spec.preferredHolder", "can only be specified if strategy is defined")


# ---- scheduling, node.k8s.io


def priority_class(obj: Object) -> Causes:
    own, value = obj["metadata"].get("name") or "", obj.get("value") or 0
    if own.startswith("system-"):
        if own not in ("system-cluster-critical", "system-node-critical"):
            yield forbidden(
                "metadata.name", "priority class names with 'system-' prefix are reserved for system use only"
            )
    elif value > 1000000000:
        yield forbidden("value", "maximum allowed value of a user defined priority is 1000000000")
    if obj.get("preemptionPolicy") not in ("Never", "PreemptLowerPriority"):
        yield not_supported("preemptionPolicy", obj.get("preemptionPolicy"), ("Never", "PreemptLowerPriority"))


def priority_class_update(obj: Object, before: Object) -> Causes:
    if (obj.get("value") or 0) != (before.get("value") or 0):
        yield forbidden("value", "may not be changed in an update.")
    if obj.get("preemptionPolicy") != before.get("preemptionPolicy"):
        yield meta.immutable("preemptionPolicy", obj.get("preemptionPolicy"))


def runtime_class(obj: Object) -> Causes:
    handler = obj.get("handler") or ""
    yield from all_invalid("handler", handler, fields.label(handler))


def runtime_class_update(obj: Object, before: Object) -> Causes:
    if obj.get("handler") != before.get("handler"):
        yield meta.immutable("handler", obj.get("handler"))
