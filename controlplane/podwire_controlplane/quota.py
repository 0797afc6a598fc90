"""ResourceQuota: what an object uses, which quotas count it, and what a quota refuses (k8s.io/apiserver,
pkg/admission/plugin/resourcequota; k8s.io/kubernetes, pkg/quota/v1/evaluator/core). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from podwire_base.kube import quantity
from podwire_base.kube.meta import Object, name

from .limitranges import pod_amounts
from .strategies.podcreate import qos_class

Usage = Mapping[str, Fraction]
_COUNTED = ("configmaps", "persistentvolumeclaims", "replicationcontrollers", "resourcequotas", "secrets", "services")
_COMPUTE = ("cpu", "memory", "ephemeral-storage")
_REQUIRED = ("cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory")
_CLASS = "storageclass.storage.k8s.io"


def amount(value: Any) -> Fraction:
    return Fraction(quantity.parse(str(value)))


def text(value: Fraction, key: str = "") -> str:
    """Return an amount as a quantity: whole, or in thousandths. Bytes that are whole mebibytes are written so."""
    if key.endswith(("memory", "storage")) and value and value % 2**20 == 0:
        return quantity.canonical(f"{value.numerator >> 20}Mi")
    return str(value.numerator) if value.denominator == 1 else quantity.canonical(f"{-((-value * 1000) // 1)}m")


def usage(group: str, plural: str, obj: Object) -> dict[str, Fraction]:
    """Return what an object counts for: resource -> amount."""
    found = {f"count/{plural}.{group}" if group else f"count/{plural}": Fraction(1)}
    if group:
        return found
    if plural in _COUNTED:
        found[plural] = Fraction(1)
    spec = obj.get("spec") or {}
    if plural == "pods" and (obj.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
        found |= {"pods": Fraction(1), **_pod(spec)}
    elif plural == "services":
        found |= _service(spec)
    elif plural == "persistentvolumeclaims":
        found |= _claim(spec)
    return found


def _pod(spec: Object) -> dict[str, Fraction]:
    found: dict[str, Fraction] = {}
    for which in ("requests", "limits"):
        for resource, value in pod_amounts(spec, which).items():
            found[f"{which}.{resource}"] = value
            if which == "requests" and (resource in _COMPUTE or resource.startswith("hugepages-")):
                found[resource] = value
    return found


def _service(spec: Object) -> dict[str, Fraction]:
    kind, ports = spec.get("type"), spec.get("ports") or []
    found: dict[str, Fraction] = {}
    if kind == "LoadBalancer":
        found["services.loadbalancers"] = Fraction(1)
    if kind == "NodePort" or (kind == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is not False):
        found["services.nodeports"] = Fraction(len(ports))
    return found


def _claim(spec: Object) -> dict[str, Fraction]:
    asked = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    found = {"requests.storage": amount(asked)} if asked else {}
    if own := spec.get("storageClassName"):
        found |= {f"{own}.{_CLASS}/{key}": value for key, value in found.items()}
        found[f"{own}.{_CLASS}/persistentvolumeclaims"] = Fraction(1)
    return found


# ---- which quotas count an object


def _in_scope(scope: str, spec: Object) -> bool:
    best_effort = qos_class(spec) == "BestEffort"
    ends = spec.get("activeDeadlineSeconds") is not None
    if scope == "CrossNamespacePodAffinity":
        return _crosses(spec)
    return {
        "Terminating": ends,
        "NotTerminating": not ends,
        "BestEffort": best_effort,
        "NotBestEffort": not best_effort,
        "PriorityClass": bool(spec.get("priorityClassName")),
    }.get(scope, False)


def _crosses(spec: Object) -> bool:
    for kind in ("podAffinity", "podAntiAffinity"):
        part = (spec.get("affinity") or {}).get(kind) or {}
        terms = list(part.get("requiredDuringSchedulingIgnoredDuringExecution") or [])
        weighted = part.get("preferredDuringSchedulingIgnoredDuringExecution") or []
        terms += [one.get("podAffinityTerm") or {} for one in weighted]
        if any(t.get("namespaces") or t.get("namespaceSelector") is not None for t in terms):
            return True
    return False


def _selects(term: Object, spec: Object) -> bool:
    scope, operator, values = term.get("scopeName") or "", term.get("operator"), term.get("values") or []
    if scope != "PriorityClass" or operator in ("Exists", "DoesNotExist"):
        return _in_scope(scope, spec) is (operator != "DoesNotExist")
    return (spec.get("priorityClassName") in values) is (operator == "In")


def counts(quota: Object, group: str, plural: str, obj: Object) -> bool:
    """Whether a quota counts an object: one with scopes counts only pods, those in all of its scopes."""
    own = quota.get("spec") or {}
    terms = (own.get("scopeSelector") or {}).get("matchExpressions") or []
    if not own.get("scopes") and not terms:
        return True
    if (group, plural) != ("", "pods"):
        return False
    spec = obj.get("spec") or {}
    return all(_in_scope(s, spec) for s in own.get("scopes") or []) and all(_selects(t, spec) for t in terms)


# ---- what a quota refuses


def change(new: Usage, old: Usage) -> dict[str, Fraction]:
    found = {key: new.get(key, Fraction(0)) - old.get(key, Fraction(0)) for key in new.keys() | old.keys()}
    return {key: value for key, value in found.items() if value}


def missing(quota: Object, spec: Object) -> str:
    """Return why the quota refuses a pod that does not say what it needs, "" if it says so."""
    hard = (quota.get("status") or {}).get("hard") or {}
    wanted = [key for key in _REQUIRED if key in hard]
    lacking: dict[str, list[str]] = {}
    for one in (*(spec.get("containers") or []), *(spec.get("initContainers") or [])):
        parts = one.get("resources") or {}
        for key in wanted:
            which, _, resource = key.rpartition(".")
            if resource not in (parts.get(which or "requests") or {}):
                lacking.setdefault(key, []).append(str(one.get("name")))
    if not lacking:
        return ""
    told = "; ".join(f"{key} for: {','.join(names)}" for key, names in sorted(lacking.items()))
    return f"failed quota: {name(quota)}: must specify {told}"


def refusal(quota: Object, delta: Usage) -> str:
    """Return why a quota refuses more usage, "" if it does not. What its status does not limit yet is not judged."""
    status = quota.get("status") or {}
    hard, used = status.get("hard") or {}, status.get("used") or {}
    asked = {key: value for key, value in delta.items() if value > 0 and key in hard}
    if unknown := sorted(key for key in asked if key not in used):
        return f"status unknown for quota: {name(quota)}, resources: {','.join(unknown)}"
    over = sorted(key for key, value in asked.items() if amount(used[key]) + value > amount(hard[key]))
    if not over:
        return ""

    def told(values: Mapping[str, Any]) -> str:
        return ",".join(f"{key}={values[key]}" for key in over)

    requested = {key: text(asked[key], key) for key in over}
    return f"exceeded quota: {name(quota)}, requested: {told(requested)}, used: {told(used)}, limited: {told(hard)}"


def charged(quota: Object, delta: Usage) -> Object | None:
    """Return the quota with its new usage, None if nothing changes. Less than nothing is never used."""
    used = (quota.get("status") or {}).get("used") or {}
    more = {key: text(max(Fraction(0), amount(used[key]) + value), key) for key, value in delta.items() if key in used}
    if not more or all(used[key] == value for key, value in more.items()):
        return None
    return {**quota, "status": {**quota["status"], "used": {**used, **more}}}
