"""Which nodes a pod can run on, and the words for those where it cannot: the ones of kube-scheduler's plugins, because
people and programs read them in Events. Pure.

Source: Kubernetes' documentation "Scheduling Framework" and "Assigning Pods to Nodes"; core/v1 PodSpec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from podwire_base.kube.meta import Object

from .. import affinity
from ..taints import untolerated
from . import topology
from .places import CORDON, Place, asks, clash, ports, taints


@dataclass(frozen=True, slots=True)
class No:
    """A reason against a node. mends: it may go if pods leave the node."""

    why: str
    mends: bool = False


def alone(pod: Object, place: Place) -> No | None:
    """Return what speaks against a node, other nodes' pods left aside."""
    spec = pod["spec"]
    bad = untolerated(taints(place.node), spec.get("tolerations") or [])
    if bad.get("key") == CORDON:
        return No("node(s) were unschedulable")
    if bad:
        return No(f"node(s) had untolerated taint {{{bad['key']}: {bad.get('value') or ''}}}")
    if not affinity.wants(spec, place.node):
        return No("node(s) didn't match Pod's node affinity/selector")
    if clash(ports(pod), [port for other in place.pods for port in ports(other)]):
        return No("node(s) didn't have free ports for the requested pod ports", mends=True)
    return None


def full(pod: Object, place: Place) -> list[No]:
    """Return what a node has too little of. What a node does not tell of is not limited, but for named resources of
    devices: a node without them has none.
    """
    found = []
    for resource, value in asks(pod).items():
        room = place.room.get(resource)
        if room is None:
            if "/" in resource and value > 0:
                found.append(No(f"Insufficient {resource}"))
            continue
        if value and place.used.get(resource, 0) + value > room:
            words = "Too many pods" if resource == "pods" else f"Insufficient {resource}"
            found.append(No(words, mends=value <= room))
    return found


def reasons(pod: Object, places: Sequence[Place], facts: topology.Facts) -> dict[str, list[No]]:
    """Return for each node what speaks against it; an empty list: the pod can run there."""
    spread = topology.spread(pod, places)
    together = topology.together(pod, places, facts)
    found: dict[str, list[No]] = {}
    for place in places:
        if (first := alone(pod, place)) is not None:
            found[place.name] = [first]
        elif short := full(pod, place):
            found[place.name] = short
        else:
            why = spread(place) or together(place)
            found[place.name] = [] if not why else [No(why, mends=why not in topology.FINAL)]
    return found


def told(refused: dict[str, list[No]]) -> str:
    """Return kube-scheduler's sentence: how many nodes there are, and how many each reason holds for."""
    if not refused:
        return "no nodes available to schedule pods"
    counts: dict[str, int] = {}
    for rows in refused.values():
        for row in rows:
            counts[row.why] = counts.get(row.why, 0) + 1
    words = sorted(f"{count} {why}" for why, count in counts.items())
    return f"0/{len(refused)} nodes are available: {', '.join(words)}."
