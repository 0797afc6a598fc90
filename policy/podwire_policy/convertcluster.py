"""Converts ClusterNetworkPolicies and Nodes of the API to the facts of model.py. Pure.

Source of the meanings: the API of policy.networking.k8s.io/v1alpha2 (its standard channel, and `nodes` and
`destinationNamedPort` of the experimental one). What is not known fails closed, as the API says: a rule that accepts
matches nothing, and one that denies or passes on denies everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from podwire_base.kube import meta
from podwire_base.kube.meta import Object
from podwire_base.kube.shape import ANY, misshapen

from .convert import labels_of, selector, staged
from .model import (
    LAST_PORT,
    NODES,
    PROTOCOLS,
    Action,
    Block,
    Direction,
    Named,
    Peer,
    Pod,
    Pods,
    Policy,
    Ports,
    Rule,
    Tier,
)

SHAPE = {
    "metadata": {"name": str, "annotations": dict},
    "spec": {"tier": str, "priority": ANY, "subject": dict, "ingress": [dict], "egress": [dict]},
}
NODE_SHAPE = {"metadata": {"name": str, "labels": dict}, "status": {"addresses": [{"type": str, "address": str}]}}
TIERS: dict[str, Tier] = {"Admin": "admin", "Baseline": "baseline"}
ACTIONS: dict[str, Action] = {"Accept": "allow", "Deny": "deny", "Pass": "pass"}
HIGHEST = 1000  # priority


class _Unknown(ValueError):
    """A field that is not known here, or cannot be used. The text names it."""


def policy(obj: Object) -> Policy:
    """Returns a ClusterNetworkPolicy. Raises ValueError if the object is malformed."""
    if problem := misshapen(obj, SHAPE):
        raise ValueError(problem)
    spec = obj.get("spec") or {}
    tier, priority = TIERS.get(str(spec.get("tier"))), spec.get("priority")
    if tier is None:
        raise ValueError(f"spec.tier: {spec.get('tier')!r} is neither Admin nor Baseline")
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= HIGHEST:
        raise ValueError(f"spec.priority: {priority!r} is no number from 0 to {HIGHEST}")
    subject = _pods(_only(spec.get("subject"), "spec.subject"), "spec.subject")
    problems = list[str]()

    def rules(kind: Direction, end: str) -> tuple[Rule, ...] | None:
        given = spec.get(kind) or ()
        made = (_rule(rule, end, f"spec.{kind}[{at}]", problems) for at, rule in enumerate(given))
        return tuple(made) if given else None

    name = str(obj["metadata"].get("name"))
    ingress, egress, waits = rules("ingress", "from"), rules("egress", "to"), staged(obj, problems.append)
    return Policy(name, subject, ingress, egress, tuple(problems), tier, priority, waits)


def node(obj: Object) -> Pod:
    """Returns a Node as a peer: its InternalIPs and the others that its status has."""
    if problem := misshapen(obj, NODE_SHAPE):
        raise ValueError(problem)
    found = list[str]()
    for one in (obj.get("status") or {}).get("addresses") or ():
        try:
            found.append(str(ip_address(one.get("address") or "")))
        except ValueError:
            continue  # a host name
    name = str(obj["metadata"].get("name"))
    return Pod(f"{NODES}/{name}", NODES, labels_of(meta.labels(obj)), "", tuple(dict.fromkeys(found)))


def trimmed_node(obj: Object) -> Object:
    """Returns a Node with the fields that `node` reads and no others."""
    own = obj.get("metadata") or {}
    kept = ("name", "labels", "resourceVersion")
    addresses = (obj.get("status") or {}).get("addresses") or []
    return {
        "metadata": {field: own[field] for field in kept if field in own},
        "spec": {"podCIDRs": pod_cidrs(obj)},
        "status": {"addresses": addresses},
    }


def pod_cidrs(obj: Object) -> tuple[str, ...]:
    """Returns the podCIDRs of a Node in canonical form, without those that are none."""
    spec, found = obj.get("spec") or {}, list[str]()
    for text in spec.get("podCIDRs") or [spec.get("podCIDR")]:
        try:
            found.append(str(ip_network(text or "", strict=False)))
        except ValueError:
            continue
    return tuple(found)


def _only(given: Any, where: str) -> tuple[str, Any]:
    """Returns the one field that an object has, with its value."""
    if not isinstance(given, Mapping) or len(given) != 1:
        raise _Unknown(f"{where}: has not exactly one field")
    ((field, value),) = given.items()
    return str(field), value


def _rule(rule: Mapping[str, Any], end: str, where: str, problems: list[str]) -> Rule:
    action = ACTIONS.get(str(rule.get("action")))
    try:
        if action is None:
            raise _Unknown(f"{where}.action: {rule.get('action')!r} is none of {', '.join(ACTIONS)}")
        given = rule.get(end)
        if not isinstance(given, list) or not given:
            raise _Unknown(f"{where}.{end}: has no peers")
        peers = tuple(
            one for at, peer in enumerate(given) for one in _peers(_only(peer, f"{where}.{end}[{at}]"), end, where)
        )
        protocols = rule.get("protocols")
        if protocols is not None and (not isinstance(protocols, list) or not protocols):
            raise _Unknown(f"{where}.protocols: is empty")
        ports = [_ports(_only(one, f"{where}.protocols[{at}]"), where) for at, one in enumerate(protocols or ())]
        return Rule(peers, tuple(one for some in ports for one in some) if protocols else None, action)
    except (ValueError, TypeError, AttributeError) as err:
        closed = action == "allow"
        problems.append(f"{err}; {'the rule matches nothing' if closed else 'the rule denies everything'}")
        return Rule((), None, "allow") if closed else Rule(None, None, "deny")


def _peers(given: tuple[str, Any], end: str, where: str) -> tuple[Peer, ...]:
    field, value = given
    if field in ("namespaces", "pods"):
        return (_pods(given, where),)
    if field == "nodes" and end == "to":
        return (Pods(NODES, (), selector(value, f"{where}.nodes")),)
    if field == "networks" and end == "to" and isinstance(value, list) and value:
        return tuple(Block(str(ip_network(one, strict=False))) for one in value)
    raise _Unknown(f"{where}.{end}: {field} is not supported")


def _pods(given: tuple[str, Any], where: str) -> Pods:
    field, value = given
    if field == "namespaces" and isinstance(value, Mapping):
        return Pods(None, selector(value, f"{where}.namespaces"), ())
    if field == "pods" and isinstance(value, Mapping):
        spaces, pods = value.get("namespaceSelector"), value.get("podSelector")
        return Pods(None, selector(spaces, f"{where}.pods"), selector(pods, f"{where}.pods"))
    raise _Unknown(f"{where}: {field} is not supported")


def _ports(given: tuple[str, Any], where: str) -> tuple[Named | Ports, ...]:
    field, value = given
    if field == "destinationNamedPort" and isinstance(value, str) and value:
        return tuple(Named(protocol, value) for protocol in PROTOCOLS.values())
    protocol = PROTOCOLS.get(field.upper()) if field.islower() else None
    if protocol is None or not isinstance(value, Mapping) or not value.keys() <= {"destinationPort"}:
        raise _Unknown(f"{where}.protocols: {field} is not supported")
    port = value.get("destinationPort")
    if port is None:
        return (Ports(protocol, 0, LAST_PORT),)
    kind, number = _only(port, f"{where}.protocols.{field}.destinationPort")
    first: Any = number.get("start") if isinstance(number, Mapping) else number
    last: Any = number.get("end") if isinstance(number, Mapping) else number
    ends = (isinstance(one, int) and not isinstance(one, bool) for one in (first, last))
    if kind not in ("number", "range") or not all(ends) or not 1 <= first <= last <= LAST_PORT:
        raise _Unknown(f"{where}.protocols.{field}: {number!r} is no port")
    return (Ports(protocol, first, last),)
