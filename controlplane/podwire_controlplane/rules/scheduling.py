"""Validation of where a pod may run: affinity, tolerations, topology spread and scheduling gates
(pkg/apis/core/validation).
"""

from __future__ import annotations

from typing import Any

from podwire_base.kube.meta import Object

from . import fields, meta
from .fields import Causes, all_invalid, duplicate, invalid, not_supported, one_of, required

EFFECTS = ("NoExecute", "NoSchedule", "PreferNoSchedule")
_SPREAD = ("DoNotSchedule", "ScheduleAnyway")
_REQUIRED, _PREFERRED = (
    "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution",
)


def node_requirement(path: str, term: Object, form: Any = fields.qualified) -> Causes:
    yield from meta.operator_fits(path, term, numbers=True)
    yield from all_invalid(f"{path}.key", term.get("key") or "", form(term.get("key") or ""))


def _field_requirement(path: str, term: Object) -> Causes:
    operator, values = term.get("operator"), term.get("values") or []
    if operator in ("In", "NotIn"):
        if len(values) != 1:
            yield required(
                f"{path}.values", "must be only one value when `operator` is 'In' or 'NotIn' for node field selector"
            )
    else:
        yield invalid(f"{path}.operator", operator, "not a valid selector operator")
    if term.get("key") != "metadata.name":
        yield invalid(f"{path}.key", term.get("key"), "not a valid field selector key")
    else:
        for n, value in enumerate(values):
            yield from all_invalid(f"{path}.values[{n}]", value, fields.subdomain(value))


def node_term(path: str, term: Object) -> Causes:
    for n, one in enumerate(term.get("matchExpressions") or []):
        yield from node_requirement(f"{path}.matchExpressions[{n}]", one)
    for n, one in enumerate(term.get("matchFields") or []):
        yield from _field_requirement(f"{path}.matchFields[{n}]", one)


def node_selector(path: str, selector: Object) -> Causes:
    terms = selector.get("nodeSelectorTerms") or []
    if not terms:
        yield required(f"{path}.nodeSelectorTerms", "must have at least one node selector term")
    for n, term in enumerate(terms):
        yield from node_term(f"{path}.nodeSelectorTerms[{n}]", term)


def _weight(path: str, value: Any) -> Causes:
    if not 1 <= (value or 0) <= 100:
        yield invalid(f"{path}.weight", value, "must be in the range 1-100")


def _pod_term(path: str, term: Object) -> Causes:
    yield from meta.label_selector(f"{path}.labelSelector", term.get("labelSelector"))
    yield from meta.label_selector(f"{path}.namespaceSelector", term.get("namespaceSelector"))
    for name in term.get("namespaces") or []:
        yield from all_invalid(f"{path}.namespace", name, fields.label(name))
    key = term.get("topologyKey") or ""
    if not key:
        yield required(f"{path}.topologyKey", "can not be empty")
    yield from all_invalid(f"{path}.topologyKey", key, fields.qualified(key))


def affinity(path: str, found: Object | None) -> Causes:
    if found is None:
        return
    if (node := found.get("nodeAffinity")) is not None:
        if (selector := node.get(_REQUIRED)) is not None:
            yield from node_selector(f"{path}.nodeAffinity.{_REQUIRED}", selector)
        for n, term in enumerate(node.get(_PREFERRED) or []):
            yield from _weight(f"{path}.nodeAffinity.{_PREFERRED}[{n}]", term.get("weight"))
            yield from node_term(f"{path}.nodeAffinity.{_PREFERRED}[{n}].preference", term.get("preference") or {})
    for kind in ("podAffinity", "podAntiAffinity"):
        part = found.get(kind) or {}
        for n, term in enumerate(part.get(_REQUIRED) or []):
            yield from _pod_term(f"{path}.{kind}.{_REQUIRED}[{n}]", term)
        for n, term in enumerate(part.get(_PREFERRED) or []):
            yield from _weight(f"{path}.{kind}.{_PREFERRED}[{n}]", term.get("weight"))
            yield from _pod_term(f"{path}.{kind}.{_PREFERRED}[{n}].podAffinityTerm", term.get("podAffinityTerm") or {})


def tolerations(path: str, found: list[Object]) -> Causes:
    for n, one in enumerate(found):
        where, key, operator = f"{path}[{n}]", one.get("key") or "", one.get("operator") or ""
        if key:
            yield from all_invalid(f"{where}.key", key, fields.qualified(key))
        if not key and operator != "Exists":
            yield invalid(f"{where}.operator", operator, "operator must be Exists when `key` is empty")
        if one.get("tolerationSeconds") is not None and one.get("effect") != "NoExecute":
            yield invalid(
                f"{where}.effect", one.get("effect"), "effect must be 'NoExecute' when `tolerationSeconds` is set"
            )
        if operator in ("", "Equal"):
            yield from all_invalid(
                f"{where}.operator", one.get("value"), fields.label_value(one.get("value") or "")[:1]
            )
        elif operator == "Exists":
            if one.get("value"):
                yield invalid(f"{where}.operator", one["value"], "value must be empty when `operator` is 'Exists'")
        else:
            yield not_supported(f"{where}.operator", operator, ("Equal", "Exists"))
        if one.get("effect"):
            yield from one_of(f"{where}.effect", one["effect"], EFFECTS)


def spread(path: str, found: list[Object]) -> Causes:
    pairs = [(c.get("topologyKey"), c.get("whenUnsatisfiable")) for c in found]
    for n, one in enumerate(found):
        where, key, when = f"{path}[{n}]", one.get("topologyKey") or "", one.get("whenUnsatisfiable")
        if (one.get("maxSkew") or 0) <= 0:
            yield invalid(f"{where}.maxSkew", one.get("maxSkew"), "must be greater than zero")
        if not key:
            yield required(f"{where}.topologyKey", "can not be empty")
        else:
            yield from all_invalid(f"{where}.topologyKey", key, fields.qualified(key))
        yield from one_of(f"{where}.whenUnsatisfiable", when, _SPREAD)
        if pairs[n] in pairs[n + 1 :]:
            yield duplicate(f"{where}.{{topologyKey, whenUnsatisfiable}}", f"{{{key}, {when}}}")
        if (minimum := one.get("minDomains")) is not None:
            if minimum <= 0:
                yield invalid(f"{where}.minDomains", minimum, "must be greater than zero")
            if when != "DoNotSchedule":
                yield invalid(
                    f"{where}.minDomains", minimum, "can only use minDomains if whenUnsatisfiable=DoNotSchedule"
                )
        for name in ("nodeAffinityPolicy", "nodeTaintsPolicy"):
            if one.get(name) is not None:
                yield from one_of(f"{where}.{name}", one[name], ("Honor", "Ignore"))
        yield from meta.label_selector(f"{where}.labelSelector", one.get("labelSelector"))


def gates(path: str, spec: Object) -> Causes:
    seen: set[str] = set()
    for n, gate in enumerate(spec.get("schedulingGates") or []):
        own = gate.get("name") or ""
        yield from all_invalid(f"{path}.schedulingGates[{n}]", own, fields.qualified(own))
        if own in seen:
            yield duplicate(f"{path}.schedulingGates[{n}]", own)
        seen.add(own)
