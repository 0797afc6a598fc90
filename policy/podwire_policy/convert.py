"""Converts Pods and NetworkPolicies of the API to the facts of model.py. Pure.

Source of the defaults and meanings: the API reference of networking.k8s.io/v1. What cannot be used closes and never
opens: a bad peer or port matches nothing, and a bad podSelector selects every pod of the namespace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from podwire_base.kube import meta
from podwire_base.kube.meta import Object
from podwire_base.kube.shape import ANY, misshapen

from .model import LAST_PORT, PROTOCOLS, Block, Labels, Named, Peer, Pod, Pods, Policy, Ports, Rule, Selector, Term

_METADATA = {"name": str, "namespace": str, "labels": dict, "annotations": dict}
_CONTAINER = {"ports": [{"name": str, "protocol": str, "containerPort": ANY}], "restartPolicy": str}
POD_SHAPE = {
    "metadata": {**_METADATA, "creationTimestamp": str, "deletionTimestamp": str, "uid": str},
    "spec": {"nodeName": str, "containers": [_CONTAINER], "initContainers": [_CONTAINER]},
    "status": {"phase": str, "podIP": str, "podIPs": [{"ip": str}]},
}
_RULES = [dict]
POLICY_SHAPE = {"metadata": _METADATA, "spec": {"policyTypes": [str], "ingress": _RULES, "egress": _RULES}}
FINISHED = ("Succeeded", "Failed")
_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")
Told = Callable[[str], None]


class _Bad(ValueError):
    """A field that cannot be used. The text names it."""


def labels_of(given: Mapping[str, str]) -> Labels:
    return tuple(sorted((str(key), str(value)) for key, value in given.items()))


def trimmed(obj: Object) -> Object:
    """Returns a Pod with the fields that `pod` reads and no others. Pods with equal labels and ports share them, and
    common texts, so nobody may change the result.
    """
    own, spec, status = obj.get("metadata") or {}, obj.get("spec") or {}, obj.get("status") or {}
    kept = ("name", "namespace", "uid", "labels", "creationTimestamp", "deletionTimestamp", "resourceVersion")
    made: Object = {
        "metadata": {field: _once(own[field]) if field in _ALIKE else own[field] for field in kept if field in own},
        "spec": {field: _once(spec[field]) for field in ("nodeName", "hostNetwork") if field in spec},
        "status": {
            field: _once(status[field]) if field == "phase" else status[field]
            for field in (("phase", "podIPs") if status.get("podIPs") else ("phase", "podIP"))
            if field in status
        },
    }
    for kind in ("containers", "initContainers"):
        found = [
            {field: one[field] for field in ("ports", "restartPolicy") if field in one}
            for one in spec.get(kind) or ()
            if any(port.get("name") for port in one.get("ports") or ())
        ]
        if found:
            made["spec"][kind] = _once(found)
    return made


_ALIKE = ("namespace", "labels", "creationTimestamp")
_ONCE: dict[tuple[type, str], Any] = {}  # by kind and words
_MOST_ONCE = 1 << 14


def _once(value: Any) -> Any:
    """Returns an equal value that earlier pods have too, if it is still known."""
    if len(_ONCE) > _MOST_ONCE:
        _ONCE.clear()
    return _ONCE.setdefault((type(value), value if isinstance(value, str) else repr(value)), value)


def pod(obj: Object, given: tuple[str, ...] | None = None) -> Pod | None:
    """Returns the pod; None if no policy can be about it: it has no address, has ended, or is on the host's network.
    given: its addresses, where they are known before the object says so. Raises ValueError if the object is malformed.
    """
    if problem := misshapen(obj, POD_SHAPE):
        raise _Bad(problem)
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    ips = [status.get("podIP"), *(one.get("ip") for one in status.get("podIPs") or ())]
    found = tuple(dict.fromkeys(str(ip_address(ip)) for ip in (ips if given is None else given) if ip))
    if not found or spec.get("hostNetwork") or status.get("phase") in FINISHED:
        return None
    own = obj["metadata"]
    return Pod(
        meta.key(obj),
        meta.namespace(obj),
        labels_of(meta.labels(obj)),
        str(spec.get("nodeName") or ""),
        found,
        tuple(sorted(set(_named_ports(spec)))),
        (not meta.deleting(obj), str(own.get("creationTimestamp") or ""), meta.key(obj)),
    )


def _named_ports(spec: Mapping[str, Any]) -> Iterable[tuple[Named, int]]:
    """Yields the named ports of the containers that run for as long as the pod: an initContainer with restartPolicy
    Always is one (KEP-753).
    """
    sidecars = (c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always")
    for container in (*(spec.get("containers") or ()), *sidecars):
        for port in container.get("ports") or ():
            protocol = PROTOCOLS.get(port.get("protocol") or "TCP")
            if port.get("name") and protocol:
                yield Named(protocol, port["name"]), int(port["containerPort"])


def policy(obj: Object) -> Policy:
    """Returns a NetworkPolicy. Raises ValueError if the object is malformed."""
    if problem := misshapen(obj, POLICY_SHAPE):
        raise _Bad(problem)
    spec, namespace = obj.get("spec") or {}, meta.namespace(obj)
    problems = list[str]()
    try:
        selected = selector(spec.get("podSelector"), "spec.podSelector")
    except _Bad as err:
        problems.append(f"{err}; it isolates every pod of the namespace")
        selected = ()
    types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    problems += [f"spec.policyTypes: {kind!r} is neither Ingress nor Egress" for kind in types if kind not in _TYPES]

    def rules(kind: str, end: str) -> tuple[Rule, ...] | None:
        if kind.capitalize() not in types:
            return None
        return tuple(
            _rule(rule, end, namespace, f"spec.{kind}[{index}]", problems.append)
            for index, rule in enumerate(spec.get(kind) or ())
        )

    subject = Pods(namespace, (), selected)
    ingress, egress, waits = rules("ingress", "from"), rules("egress", "to"), staged(obj, problems.append)
    return Policy(meta.key(obj), subject, ingress, egress, tuple(problems), staged=waits)


_TYPES = ("Ingress", "Egress")
STAGED = "podwire.io/staged"  # the annotation of a policy that is not in force


def staged(obj: Object, tell: Told) -> bool:
    """Whether a policy is not in force, but logs what it would deny."""
    value = (obj["metadata"].get("annotations") or {}).get(STAGED, "false")
    if value not in ("true", "false"):
        tell(f'metadata.annotations[{STAGED}]: {value!r} is neither "true" nor "false"; the policy is in force')
    return bool(value == "true")


def _rule(rule: Mapping[str, Any], end: str, namespace: str, where: str, tell: Told) -> Rule:
    """end: "from" or "to". An absent or empty list of peers is everybody; so it is with ports."""

    def usable(field: str, make: Callable[[Any, str], Any]) -> tuple[Any, ...] | None:
        found = []
        for index, one in enumerate(rule.get(field) or ()):
            try:
                found.append(make(one, f"{where}.{field}[{index}]"))
            except (ValueError, TypeError, AttributeError) as err:
                tell(f"{err}; it matches nothing" if isinstance(err, _Bad) else f"{where}.{field}[{index}]: {err}")
        return tuple(found) if rule.get(field) else None

    return Rule(usable(end, lambda one, at: _peer(one, namespace, at)), usable("ports", _port))


def _peer(peer: Mapping[str, Any], namespace: str, where: str) -> Peer:
    block, pods, namespaces = (peer.get(field) for field in ("ipBlock", "podSelector", "namespaceSelector"))
    if block is not None:
        if pods is not None or namespaces is not None:
            raise _Bad(f"{where}: ipBlock stands alone, without selectors")
        return _block(block, where)
    if pods is None and namespaces is None:
        raise _Bad(f"{where}: has neither ipBlock nor podSelector nor namespaceSelector")
    chosen = selector(pods, f"{where}.podSelector")
    if namespaces is None:
        return Pods(namespace, (), chosen)
    return Pods(None, selector(namespaces, f"{where}.namespaceSelector"), chosen)


def _block(block: Mapping[str, Any], where: str) -> Block:
    try:
        cidr = str(ip_network(block["cidr"], strict=False))
        return Block(cidr, tuple(sorted(str(ip_network(one, strict=False)) for one in block.get("except") or ())))
    except (KeyError, ValueError) as err:
        raise _Bad(f"{where}.ipBlock: {err} is no CIDR") from None


def _port(port: Mapping[str, Any], where: str) -> Named | Ports:
    protocol = PROTOCOLS.get(port.get("protocol") or "TCP")
    if protocol is None:
        raise _Bad(f"{where}.protocol: {port.get('protocol')!r} is none of {', '.join(PROTOCOLS)}")
    first, last = port.get("port"), port.get("endPort")
    if isinstance(first, str):
        if last is not None:
            raise _Bad(f"{where}.endPort: a port with a name has no endPort")
        return Named(protocol, first)
    if first is None:
        if last is not None:
            raise _Bad(f"{where}.endPort: stands without port")
        return Ports(protocol, 0, LAST_PORT)
    last = first if last is None else last
    if isinstance(first, bool) or not (isinstance(first, int) and isinstance(last, int)):
        raise _Bad(f"{where}.port: {first!r} is neither a number nor a name")
    if not 1 <= first <= last <= LAST_PORT:
        raise _Bad(f"{where}: {first} to {last} is no range of ports")
    return Ports(protocol, first, last)


def selector(given: Any, where: str) -> Selector:
    """Returns a LabelSelector in canonical form. None and {} select everything."""
    try:
        terms = [Term(str(key), "In", (str(value),)) for key, value in ((given or {}).get("matchLabels") or {}).items()]
        for term in (given or {}).get("matchExpressions") or ():
            operator, values = term["operator"], tuple(sorted({str(value) for value in term.get("values") or ()}))
            if operator not in _OPERATORS or bool(values) is (operator in _OPERATORS[2:]):
                raise _Bad(f"{where}: {operator!r} with {len(values)} values is no requirement")
            terms.append(Term(str(term["key"]), operator, values))
    except (KeyError, TypeError, AttributeError) as err:
        raise _Bad(f"{where}: {err} is no label selector") from None
    return tuple(sorted(set(terms)))
