"""The CustomResourceDefinition of ClusterNetworkPolicy, which the API server has from its start. Pure.

The fields are those of policy.networking.k8s.io/v1alpha2 that podwire's policies understand: the standard channel, and
`nodes` and `destinationNamedPort` of the experimental one. Any other field is refused, or dropped where kubectl's
validation is off.
"""

from __future__ import annotations

import copy
import hashlib
import json

from podwire_base.kube.meta import Object, annotations_of

from .cel import engine

GROUP, VERSION, PLURAL, KIND = "policy.networking.k8s.io", "v1alpha2", "clusternetworkpolicies", "ClusterNetworkPolicy"
NAME = f"{PLURAL}.{GROUP}"
BUILT_IN = "podwire.io/built-in"  # annotation: a digest of the spec that the server wrote
APPROVED = "api-approved.kubernetes.io"  # Kubernetes' groups need it: the request in which this API was agreed on
_REQUEST = "https://github.com/kubernetes-sigs/network-policy-api/pull/300"
_MOST = 25  # rules, peers and protocols


def _thing(required: tuple[str, ...] = (), /, **fields: Object) -> Object:
    made: Object = {"type": "object", "properties": fields}
    return {**made, "required": list(required)} if required else made


def _one(**fields: Object) -> Object:
    """Returns an object of which exactly one field is set."""
    return {**_thing(**fields), "minProperties": 1, "maxProperties": 1}


def _list(items: Object, least: int = 1, most: int = _MOST) -> Object:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most, "x-kubernetes-list-type": "atomic"}


def _text(**more: object) -> Object:
    return {"type": "string", **more}


def _word(*known: str) -> Object:
    return _text(enum=list(known))


def _number(least: int, most: int) -> Object:
    return {"type": "integer", "format": "int32", "minimum": least, "maximum": most}


def _selector() -> Object:
    values: Object = {"type": "array", "items": _text(), "x-kubernetes-list-type": "atomic"}
    operator = _word("In", "NotIn", "Exists", "DoesNotExist")
    term = _thing(("key", "operator"), key=_text(), operator=operator, values=values)
    terms: Object = {"type": "array", "items": term, "x-kubernetes-list-type": "atomic"}
    labels: Object = {"type": "object", "additionalProperties": _text()}
    return {**_thing(matchLabels=labels, matchExpressions=terms), "x-kubernetes-map-type": "atomic"}


def _pods() -> dict[str, Object]:
    both = _thing(("namespaceSelector", "podSelector"), namespaceSelector=_selector(), podSelector=_selector())
    return {"namespaces": _selector(), "pods": both}


def _protocol() -> Object:
    port = _number(1, 65535)
    ends = _thing(("start", "end"), start=port, end=port)
    if engine.available():  # without it the role tells of such a rule
        ends["x-kubernetes-validations"] = [{"rule": "self.start < self.end", "message": "start must be below end"}]
    known = {name: _thing(destinationPort=_one(number=port, range=ends)) for name in ("tcp", "udp", "sctp")}
    return _one(**known, destinationNamedPort=_text(minLength=1, maxLength=15))


def _rules(end: str, peer: Object) -> Object:
    action = _word("Accept", "Deny", "Pass")
    fields = {"name": _text(maxLength=100), "action": action, end: _list(peer), "protocols": _list(_protocol())}
    return _list(_thing(("action", end), **fields), least=0)


def _spec() -> Object:
    cidr = _text(format="cidr", maxLength=43)
    outgoing = _one(**_pods(), nodes=_selector(), networks=_list(cidr))
    return _thing(
        ("tier", "priority", "subject"),
        tier=_word("Admin", "Baseline"),
        priority=_number(0, 1000),
        subject=_one(**_pods()),
        ingress=_rules("from", _one(**_pods())),
        egress=_rules("to", outgoing),
    )


def _status() -> Object:
    fields = {field: _text() for field in ("type", "status", "reason", "message")}
    condition = _thing(
        ("type", "status"),
        **fields,
        lastTransitionTime=_text(format="date-time"),
        observedGeneration={"type": "integer", "format": "int64"},
    )
    keyed = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    return _thing(conditions={"type": "array", "items": condition, **keyed})


def definition() -> Object:
    """Returns the definition as it is stored, with the defaults of its kind."""
    columns = [
        {"name": "Tier", "type": "string", "jsonPath": ".spec.tier"},
        {"name": "Priority", "type": "integer", "jsonPath": ".spec.priority"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]
    version = {
        "name": VERSION, "served": True, "storage": True, "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": _thing(("metadata", "spec"), metadata={"type": "object"}, spec=_spec(),
                                             status=_status(), apiVersion=_text(), kind=_text())},
    }  # fmt: skip
    names = {"plural": PLURAL, "singular": KIND.lower(), "kind": KIND, "listKind": f"{KIND}List", "shortNames": ["cnp"]}
    spec = copy.deepcopy(
        {
            "group": GROUP,
            "scope": "Cluster",
            "names": names,
            "conversion": {"strategy": "None"},
            "versions": [version],
        }
    )
    metadata = {"name": NAME, "generation": 1, "annotations": {APPROVED: _REQUEST, BUILT_IN: digest(spec)}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": spec,
        "status": {"storedVersions": [VERSION], "conditions": []},
    }


def digest(spec: Object) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]


def wanted(found: Object | None) -> Object | None:
    """Returns the definition to store; None if `found` stays. One that somebody else wrote or changed stays."""
    made = definition()
    if found is None:
        return made
    mine = annotations_of(found).get(BUILT_IN)
    if mine != digest(found["spec"]) or found["spec"] == made["spec"]:
        return None
    own = {**found["metadata"], "annotations": {**annotations_of(found), BUILT_IN: digest(made["spec"])}}
    own["generation"] = int(own.get("generation") or 1) + 1
    return {**found, "metadata": own, "spec": made["spec"]}
