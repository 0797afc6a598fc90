"""What the certificate of a node may do (Node authorization) and write (admission plugin NodeRestriction). Pure.

Source: the documentation "Using Node Authorization" and "NodeRestriction", and KEP-279. podwire is stricter in two
points: a node changes neither its podCIDRs, nor takes an address that another Node has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Protocol

from podwire_base.kube.conditions import condition
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object, annotations_of, labels, name
from podwire_base.kube.registry import Resource

from ..certificates import requests
from . import defaults
from .references import audiences, of_pod
from .rules import Attributes, Rule, authorize, rules_of

LEASES = "kube-node-lease"
MIRROR = "kubernetes.io/config.mirror"
_READ = ("get", "list", "watch")
_KINDS = {
    ("", "secrets"): "Secret",
    ("", "configmaps"): "ConfigMap",
    ("", "persistentvolumeclaims"): "PersistentVolumeClaim",
    ("", "persistentvolumes"): "PersistentVolume",
    ("", "serviceaccounts"): "ServiceAccount",
    ("resource.k8s.io", "resourceclaims"): "ResourceClaim",
}
_OWN = {("", "nodes"), ("", "pods"), ("coordination.k8s.io", "leases"), ("storage.k8s.io", "csinodes")}
# verbs on the objects that pods refer to, by resource and subresource
_REFERRED: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("secrets", ""): _READ,
    ("configmaps", ""): _READ,
    ("persistentvolumeclaims", ""): ("get",),
    ("persistentvolumeclaims", "status"): ("get", "update", "patch"),
    ("persistentvolumes", ""): ("get",),
    ("serviceaccounts", ""): ("get",),
    ("serviceaccounts", "token"): ("create",),
    ("resourceclaims", ""): ("get",),
}
# labels of Kubernetes that a node sets on itself
_KUBELET_LABELS = {
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
}
_KUBELET_SPACES = ("kubelet.kubernetes.io", "node.kubernetes.io")
_RESTRICTED = "node-restriction.kubernetes.io"


class Facts(Protocol):
    """What is known of the cluster."""

    def refers(self, node: str, kind: str, namespace: str, own: str) -> bool:
        """Whether a pod on the node refers to an object."""
        ...

    def node_of(self, namespace: str, pod: str) -> str:
        """Return the node of a pod, "" if it has none or does not exist."""
        ...

    def holder(self, address: str) -> str:
        """Return the Node that has an address and is not lost, "" if none does."""
        ...


# ---- authorization


@cache
def _general() -> tuple[Rule, ...]:
    """Return the rules of the role system:node for what needs no look at the cluster."""
    role = next(o for o in defaults.objects() if o["kind"] == "ClusterRole" and o["metadata"]["name"] == "system:node")
    special = {resource for _, resource in (*_KINDS, *_OWN)} | {"volumeattachments", "resourceslices"}
    return tuple(r for r in rules_of(role) if not special & {name_.partition("/")[0] for name_ in r.resources})


def refusal(node: str, request: Attributes, facts: Facts) -> str | None:
    """Return None if a node may make a request, else why not: "" where the request is none of a node's."""
    what = (request.group, request.resource)
    if request.path is not None:
        return ""
    if kind := _KINDS.get(what):
        if request.verb not in _REFERRED.get((request.resource, request.sub), ()):
            return ""
        if request.name and facts.refers(node, kind, request.namespace, request.name):
            return None
        return f"no relationship found between node '{node}' and this object"
    if what in _OWN:
        return _own(node, request, facts)
    return None if authorize(_general(), request) else ""


def _own(node: str, request: Attributes, facts: Facts) -> str | None:
    """Judge a request on nodes, pods, Leases and CSINodes: a node's own ones."""
    verb, sub, own = request.verb, request.sub, request.name
    if request.resource == "pods":
        if (sub, verb) == ("", "create"):
            return None
        if (sub, verb) not in _POD_VERBS:
            return ""
        if facts.node_of(request.namespace, own) == node:
            return None
        return f"node '{node}' can only act on pods with spec.nodeName set to itself"
    if request.resource == "nodes":
        known = verb in (*_READ, "create", "update", "patch") if not sub else (sub, verb) in _STATUS_VERBS
    else:
        known = verb in ("get", "create", "update", "patch", "delete") and not sub
    if not known:
        return ""
    if request.resource == "leases" and request.namespace != LEASES:
        return f'can only access leases in the "{LEASES}" system namespace'
    if own == node or (verb == "create" and not own):
        return None
    return f"node '{node}' can only access the object of its own name"


_STATUS_VERBS = {("status", "get"), ("status", "update"), ("status", "patch")}
_POD_VERBS = {("", "get"), ("", "delete"), ("eviction", "create"), *_STATUS_VERBS}


# ---- restriction


def written(
    node: str, resource: Resource, sub: str, after: Object, before: Object | None, facts: Facts
) -> StatusError | None:
    """Return why a node may not create an object (before: None) or change it so, None if it may."""
    check = _WRITES.get((resource.group, resource.kind))
    why = check(node, sub, after, before, facts) if check else ""
    return refused(resource, name(after), why) if why else None


def deleted(node: str, resource: Resource, obj: Object) -> StatusError | None:
    """Return why a node may not delete an object, None if it may."""
    why = ""
    if resource.kind == "Pod" and obj["spec"].get("nodeName") != node:
        why = f'node "{node}" can only delete pods with spec.nodeName set to itself'
    elif resource.kind in ("Lease", "CSINode") and name(obj) != node:
        why = f'node "{node}" can only delete the object of its own name'
    return refused(resource, name(obj), why) if why else None


def refused(resource: Resource, own: str, why: str) -> StatusError:
    text = f'{resource.qualified} "{own}" is forbidden: {why}'
    return StatusError(403, "Forbidden", text, resource=resource, name=own)


def _pod(node: str, sub: str, after: Object, before: Object | None, _facts: Facts) -> str:
    if before is None:
        return _mirror(node, after)
    if sub != "status":
        return f'unexpected operation, node "{node}" can only create and delete mirror pods'
    if before["spec"].get("nodeName") != node:
        return f'node "{node}" can only update pod status for pods with spec.nodeName set to itself'
    if labels(after) != labels(before):
        return f'node "{node}" cannot update labels through pod status'
    claims = [(obj.get("status") or {}).get("resourceClaimStatuses") or [] for obj in (after, before)]
    if claims[0] != claims[1]:
        return f'node "{node}" cannot update resource claim statuses'
    return ""


def _mirror(node: str, pod: Object) -> str:
    """Judge a pod that a node creates: the copy of a static pod."""
    if MIRROR not in annotations_of(pod):
        return f'pod does not have "{MIRROR}" annotation, node "{node}" can only create mirror pods'
    if pod["spec"].get("nodeName") != node:
        return f'node "{node}" can only create pods with spec.nodeName set to itself'
    owners = pod["metadata"].get("ownerReferences") or []
    if len(owners) > 1 or any(
        (o.get("apiVersion"), o.get("kind"), o.get("name"), o.get("controller"), bool(o.get("blockOwnerDeletion")))
        != ("v1", "Node", node, True, False)
        for o in owners
    ):
        return f'node "{node}" can only create pods with an owner reference set to itself'
    refers = {kind for kind, _ in of_pod(pod)}
    if pod["spec"].get("serviceAccountName") or "ServiceAccount" in refers:
        return f'node "{node}" can not create pods that reference a service account'
    if refers:
        return f'node "{node}" can not create pods that reference {", ".join(sorted(refers))}'
    if pod["spec"].get("ephemeralContainers"):
        return f'node "{node}" can not create pods with ephemeral containers'
    return ""


def _node(node: str, _sub: str, after: Object, before: Object | None, facts: Facts) -> str:
    if name(after) != node:
        return f'node "{node}" is not allowed to modify node "{name(after)}"'
    old: Object = before or {"metadata": {}}
    new, gone = labels(after), labels(old)
    changed = [key for key in new.keys() | gone.keys() if new.get(key) != gone.get(key)]
    if bad := sorted(key for key in changed if _forbidden_label(key)):
        what = "set the following labels" if before is None else "modify labels"
        return f'node "{node}" is not allowed to {what}: {", ".join(bad)}'
    if (after["metadata"].get("ownerReferences") or []) != (old["metadata"].get("ownerReferences") or []):
        return f'node "{node}" is not allowed to modify ownerReferences'
    spec, spec_before = after.get("spec") or {}, old.get("spec") or {}
    fixed = ("podCIDR", "podCIDRs") if before is None else ("podCIDR", "podCIDRs", "taints", "configSource")
    for field in fixed:
        if (spec.get(field) or None) != (spec_before.get(field) or None):
            return f'node "{node}" is not allowed to modify {field}'
    return _addresses(node, after, old, facts)


def _addresses(node: str, after: Object, before: Object, facts: Facts) -> str:
    known = set(addresses(before))
    for address in addresses(after):
        if address not in known and facts.holder(address) not in ("", node):
            other = facts.holder(address)
            text = (
                f'node "{node}" is not allowed to take the address {address} of node "{other}"; if "{other}" is gone, '
            )
            return text + "delete its Node"
    return ""


def held(node: Object) -> list[str]:
    """Return the addresses that no other node may take: those of a Node that is not lost. A machine that joins again by
    another name has the address of a Node that is not Ready any more.
    """
    return list(addresses(node)) if condition(node, "Ready").get("status") in (None, "True") else []


def addresses(node: Object) -> Iterable[str]:
    """Return the IP addresses that a Node has."""
    rows = (node.get("status") or {}).get("addresses") or ()
    return [str(row.get("address")) for row in rows if row.get("type") in ("InternalIP", "ExternalIP")]


def _forbidden_label(key: str) -> bool:
    """Whether a label is the administrator's: one of Kubernetes' own that no kubelet sets."""
    space = key.partition("/")[0] if "/" in key else ""

    def within(*domains: str) -> bool:
        return any(space == domain or space.endswith("." + domain) for domain in domains)

    if within(_RESTRICTED):
        return True
    return within("kubernetes.io", "k8s.io") and key not in _KUBELET_LABELS and not within(*_KUBELET_SPACES)


def token_refusal(node: str, spec: Object, bound: Sequence[Object], issuer: str) -> str:
    """Return why a node does not get a token, "" if it does: it gets those of its pods. spec: of the TokenRequest.
    bound: the object that the token is bound to.
    """
    ref = spec.get("boundObjectRef") or {}
    if not bound or ref.get("kind") != "Pod":
        return f'node "{node}" requested token not bound to a pod'
    if not ref.get("uid"):
        return f'node "{node}" requested token with a pod binding without a uid'
    pod = bound[0]
    if pod["spec"].get("nodeName") != node:
        return f'node "{node}" requested token bound to a pod scheduled on a different node'
    asked = audiences(pod)
    for audience in spec["audiences"]:
        if audience not in asked and audience != issuer:
            return f'audience "{audience}" not found in pod spec volume, node "{node}" is not authorized to request it'
    return ""


def _named(node: str, _sub: str, after: Object, _before: Object | None, _facts: Facts) -> str:
    if name(after) == node:
        return ""
    return f'node "{node}" can only access the object of its own name'


def _lease(node: str, _sub: str, after: Object, _before: Object | None, _facts: Facts) -> str:
    if after["metadata"].get("namespace") != LEASES:
        return f'can only access leases in the "{LEASES}" system namespace'
    return "" if name(after) == node else "can only access node lease with the same name as the requesting node"


def _claim(node: str, sub: str, after: Object, before: Object | None, _facts: Facts) -> str:
    if sub != "status" or before is None:
        return f'node "{node}" can only update the status of claims'
    metadata = [{k: v for k, v in o["metadata"].items() if k != "resourceVersion"} for o in (after, before)]
    if (after.get("spec"), metadata[0]) != (before.get("spec"), metadata[1]):
        return f'node "{node}" is not allowed to update fields other than status'
    return ""


def _request(node: str, _sub: str, after: Object, before: Object | None, _facts: Facts) -> str:
    """Judge a CertificateSigningRequest of a node: it asks for certificates of its own name."""
    spec = after.get("spec") or {}
    if before is not None or spec.get("signerName") not in (requests.KUBELET_CLIENT, requests.KUBELET_SERVING):
        return ""
    try:
        asked = requests.parse(spec.get("request"))
    except ValueError as err:
        return f"unable to parse csr: {err}"
    own = requests.NODE_USER + node
    return "" if asked.common_name == own else f"can only create a node CSR with CN={own}"


_WRITES: Mapping[tuple[str, str], Callable[[str, str, Object, Object | None, Facts], str]] = {
    ("", "Pod"): _pod,
    ("", "Node"): _node,
    ("", "PersistentVolumeClaim"): _claim,
    ("certificates.k8s.io", "CertificateSigningRequest"): _request,
    ("coordination.k8s.io", "Lease"): _lease,
    ("storage.k8s.io", "CSINode"): _named,
}
