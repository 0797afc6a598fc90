"""The nodes as the scheduler sees them: what each has, what its pods ask for, and which ports they hold. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from podwire_base.kube import quantity
from podwire_base.kube.conditions import condition
from podwire_base.kube.meta import Object, labels, name, uid

from ...limitranges import pod_amounts

CORDON = "node.kubernetes.io/unschedulable"
_ANY = ("", "0.0.0.0", "::")  # every address of the node
Amounts = Mapping[str, Fraction]
Port = tuple[str, str, int]  # protocol, address, port


def priority(pod: Object) -> int:
    return int(pod["spec"].get("priority") or 0)


def asks(pod: Object) -> Amounts:
    """Return what a pod requests, with its overhead; "pods" is the pod itself."""
    found: dict[str, Fraction] = {"pods": Fraction(1)}
    spec = pod["spec"]
    if _asking(spec):
        found |= pod_amounts(spec, "requests")
    for resource, value in (spec.get("overhead") or {}).items():
        found[resource] = found.get(resource, Fraction(0)) + quantity.parse(str(value))
    return found


def _asking(spec: Object) -> bool:
    return bool(
        any(row.get("resources") for row in spec.get("containers") or ())
        or any(row.get("resources") for row in spec.get("initContainers") or ())
        or spec.get("resources")
        or spec.get("overhead")
    )


def ports(pod: Object) -> frozenset[Port]:
    """Return the ports of its node that a pod takes."""
    spec, found = pod["spec"], set[Port]()
    for container in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
        for port in container.get("ports") or ():
            number = port.get("hostPort") or (port.get("containerPort") if spec.get("hostNetwork") else 0)
            if number:
                found.add((str(port.get("protocol") or "TCP"), str(port.get("hostIP") or ""), int(number)))
    return frozenset(found)


def clash(one: Iterable[Port], other: Iterable[Port]) -> bool:
    rows = list(other)
    return any(
        mine[0] == theirs[0] and mine[2] == theirs[2] and (mine[1] == theirs[1] or mine[1] in _ANY or theirs[1] in _ANY)
        for mine in one
        for theirs in rows
    )


def taints(node: Object) -> list[Object]:
    """Return a node's taints, and those that its conditions will bring: the node controller writes these later."""
    spec = node.get("spec") or {}
    held = list(spec.get("taints") or [])
    ready = condition(node, "Ready").get("status")
    soon = ["node.kubernetes.io/unreachable" if ready == "Unknown" else "node.kubernetes.io/not-ready"]
    missing = (soon if ready != "True" else []) + ([CORDON] if spec.get("unschedulable") else [])
    return held + [
        {"key": own, "effect": "NoSchedule"} for own in missing if not any(row.get("key") == own for row in held)
    ]


@dataclass(frozen=True, slots=True)
class Place:
    """One node with its pods that have not ended, and those that are nominated to it. room: allocatable."""

    node: Object
    room: Amounts
    pods: tuple[Object, ...] = ()
    used: Amounts = field(default_factory=dict)

    @property
    def name(self) -> str:
        return name(self.node)

    @property
    def labels(self) -> dict[str, str]:
        return labels(self.node)

    def holding(self, pods: Iterable[Object]) -> Place:
        """Return this node with these pods and no others."""
        rows = tuple(pods)
        return replace(self, pods=rows, used=_total(rows))

    def without(self, gone: Iterable[Object]) -> Place:
        ids = {uid(pod) for pod in gone}
        return self.holding(pod for pod in self.pods if uid(pod) not in ids)


def _total(pods: Sequence[Object]) -> dict[str, Fraction]:
    total = {"pods": Fraction(len(pods))}
    for pod in pods:
        if not _asking(pod["spec"]):
            continue  # nearly all of them: they cost nothing
        for resource, value in asks(pod).items():
            if resource == "pods":
                continue
            total[resource] = total.get(resource, Fraction(0)) + value
    return total


def places(pod: Object, nodes: Iterable[Object], pods: Iterable[Object]) -> list[Place]:
    """Return the nodes, as they are for a pod that looks for one. pods: those that have not ended. A pod of no less
    priority that waits for its victims to leave counts where it is nominated.
    """
    by_node: dict[str, list[Object]] = {}
    least = priority(pod)
    for other in pods:
        where = other["spec"].get("nodeName")
        if not where and uid(other) != uid(pod):
            nominated = (other.get("status") or {}).get("nominatedNodeName")
            where = nominated if nominated and priority(other) >= least else ""
        if where:
            by_node.setdefault(where, []).append(other)
    return [
        Place(node, _room(node)).holding(by_node.get(name(node), ()))
        for node in sorted(nodes, key=name)
        if not node["metadata"].get("deletionTimestamp")
    ]


def _room(node: Object) -> Amounts:
    status: dict[str, Any] = node.get("status") or {}
    given = status.get("allocatable") or status.get("capacity") or {}
    return {resource: quantity.parse(str(value)) for resource, value in given.items()}
