"""Whether a node is one that a pod's spec asks for: nodeSelector and required node affinity (core/v1 NodeSelector)."""

from __future__ import annotations

from podwire_base.kube.meta import Object, labels, name
from podwire_base.numerals import decimal

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_LIMIT = 2**63 - 1


def _matches(requirement: Object, held: dict[str, str]) -> bool:
    own, operator = held.get(requirement.get("key") or ""), requirement.get("operator")
    values = requirement.get("values") or []
    if operator == "In":
        return own in values
    if operator == "NotIn":
        return own not in values
    if operator == "Exists":
        return own is not None
    if operator == "DoesNotExist":
        return own is None
    if operator in ("Gt", "Lt") and own is not None and values:
        mine, other = decimal(own, _LIMIT), decimal(str(values[0]), _LIMIT)
        return mine is not None and other is not None and (mine > other if operator == "Gt" else mine < other)
    return False


def term(wanted: Object, node: Object) -> bool:
    """Whether a NodeSelectorTerm matches a node. A term without requirements matches no node."""
    expressions, fields = wanted.get("matchExpressions") or [], wanted.get("matchFields") or []
    return (
        bool(expressions or fields)
        and all(_matches(one, labels(node)) for one in expressions)
        and all(_matches(one, {"metadata.name": name(node)}) for one in fields)
    )


def wants(spec: Object, node: Object) -> bool:
    """Whether nodeSelector and the required node affinity of a pod's spec match the node."""
    if any(labels(node).get(k) != v for k, v in (spec.get("nodeSelector") or {}).items()):
        return False
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(_REQUIRED)
    return required is None or any(term(one, node) for one in required.get("nodeSelectorTerms") or [])


def only(spec: Object, node: str) -> None:
    """Restrict a pod's spec to the node of this name, beside what it asks for already."""
    kept = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {}).setdefault(_REQUIRED, {})
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    terms = kept.get("nodeSelectorTerms") or [{}]
    kept["nodeSelectorTerms"] = [{**term, "matchFields": [field]} for term in terms]


def target(pod: Object) -> str:
    """Return the node of a pod: the one that it is bound to, or the only one that `only` left to it."""
    if pod["spec"].get("nodeName"):
        return str(pod["spec"]["nodeName"])
    required = ((pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}).get(_REQUIRED) or {}
    for term in required.get("nodeSelectorTerms") or []:
        for one in term.get("matchFields") or []:
            if one.get("key") == "metadata.name" and one.get("operator") == "In" and len(one.get("values") or []) == 1:
                return str(one["values"][0])
    return ""
