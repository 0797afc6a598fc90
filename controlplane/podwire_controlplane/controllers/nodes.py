"""Nodes: podCIDR allocation, node lifecycle by Lease, and the scheduler."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence

from podwire_base.kube.conditions import condition, is_true
from podwire_base.kube.events import event, reference
from podwire_base.kube.meta import Object, controller_of, deleting, key, labels, name, namespace, uid
from podwire_base.kube.times import parse_time, timestamp

from ..allocators import Exhausted, Network, free_pod_cidr
from . import affinity
from .base import Controller, Keys, Snapshot, Told, Write, itself, pod_ended

GRACE = 40.0  # seconds without a renewed Lease after which a node counts as lost (kube-controller-manager's default)
LEASES = "kube-node-lease"


# ---- podCIDR


def node_ipam(ranges: Sequence[tuple[Network, int]]) -> Controller:
    """ranges: (range of the pods, prefix length of a node's part of it), one for each family."""

    def reconcile(wanted: str, snapshot: Snapshot, _now: float) -> list[Write]:
        node = snapshot.get("Node", wanted)
        if node is None or node.get("spec", {}).get("podCIDR"):
            return []
        specs = [n.get("spec") or {} for n in snapshot.list("Node")]
        used = [cidr for s in specs for cidr in s.get("podCIDRs") or [s.get("podCIDR")] if cidr]
        try:
            cidrs = [free_pod_cidr(cluster, size, used) for cluster, size in ranges]
        except Exhausted as err:
            return [
                Write(
                    "status",
                    "Node",
                    "",
                    wanted,
                    {
                        "status": {
                            "conditions": _with_condition(
                                node, "NetworkUnavailable", "True", "NoPodCIDR", str(err), _now
                            )
                        }
                    },
                )
            ]
        return [Write("patch", "Node", "", wanted, {"spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs}}, ",".join(cidrs))]

    # Two nodes cannot get the same subnet: the driver applies the changes of a key before it reconciles the next key.
    return Controller("nodeipam", {"Node": itself}, reconcile)


def _with_condition(obj: Object, kind: str, status: str, reason: str, message: str, now: float) -> list[Object]:
    before = condition(obj, kind)
    since = before.get("lastTransitionTime") if before.get("status") == status else timestamp(now)
    fresh = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}
    return [c for c in obj.get("status", {}).get("conditions") or [] if c.get("type") != kind] + [fresh]


# ---- lifecycle


_TAINT = "node.kubernetes.io/"
# (condition, status) -> the taint that keeps new pods away meanwhile
_CONDITION_TAINTS = {
    ("Ready", "False"): "not-ready",
    ("Ready", "Unknown"): "unreachable",
    ("MemoryPressure", "True"): "memory-pressure",
    ("DiskPressure", "True"): "disk-pressure",
    ("PIDPressure", "True"): "pid-pressure",
    ("NetworkUnavailable", "True"): "network-unavailable",
}
_CORDON = {"key": _TAINT + "unschedulable", "effect": "NoSchedule"}
_OURS = frozenset(_TAINT + name for name in (*_CONDITION_TAINTS.values(), "unschedulable"))


def _tainted(node: Object) -> list[Write]:
    """Give a node the NoSchedule taints of its conditions, and take away those of conditions that are over. The API
    server gives a new node the taint not-ready, so a node without a condition Ready keeps it.
    """
    spec, status = node.get("spec") or {}, node.get("status") or {}
    held = spec.get("taints") or []
    pairs = [(c.get("type"), c.get("status")) for c in status.get("conditions") or []]
    wanted = [_TAINT + row for pair, row in _CONDITION_TAINTS.items() if pair in pairs]
    if not any(kind == "Ready" for kind, _ in pairs):
        wanted.append(_TAINT + "not-ready")
    if spec.get("unschedulable"):
        wanted.append(_TAINT + "unschedulable")
    mine = [t for t in held if t.get("effect") == "NoSchedule" and t.get("key") in _OURS]
    if sorted(t["key"] for t in mine) == sorted(wanted):
        return []
    taints = [t for t in held if t not in mine] + [{"key": one, "effect": "NoSchedule"} for one in wanted]
    change = {"metadata": {"resourceVersion": node["metadata"].get("resourceVersion")}, "spec": {"taints": taints}}
    return [Write("patch", "Node", "", name(node), change, ", ".join(wanted) or "no taints")]


def reconcile_lifecycle(wanted: str, snapshot: Snapshot, now: float) -> list[Write]:
    """Set the taints of a node's conditions, and Ready=Unknown on a node that does not renew its Lease. Set Ready=False
    on the pods of a lost node, so that Services do not send traffic to them.
    """
    node, lease = snapshot.get("Node", wanted), snapshot.get("Lease", f"{LEASES}/{wanted}")
    if node is None:
        return [
            Write("delete", "Pod", namespace(p), name(p), {"gracePeriodSeconds": 0}, why=f"node {wanted} is gone")
            for p in snapshot.list("Pod")
            if p["spec"].get("nodeName") == wanted
        ]
    renewed = (lease or {}).get("spec", {}).get("renewTime") or node["metadata"]["creationTimestamp"]
    if now - parse_time(renewed).timestamp() < GRACE:
        return _tainted(node)
    changes = _tainted(node)
    if condition(node, "Ready").get("status") not in (None, "Unknown"):
        changes.append(
            Write(
                "status",
                "Node",
                "",
                wanted,
                {
                    "status": {
                        "conditions": _with_condition(
                            node, "Ready", "Unknown", "NodeStatusUnknown", f"no heartbeat since {renewed}", now
                        )
                    }
                },
                "no heartbeat",
                told=Told(
                    reference("Node", node),
                    "NodeNotReady",
                    f"Node {wanted} status is now: NodeNotReady",
                    "node-controller",
                ),
            )
        )
    for pod in snapshot.list("Pod"):
        if pod["spec"].get("nodeName") == wanted and is_true(pod, "Ready"):
            changes.append(
                Write(
                    "status",
                    "Pod",
                    namespace(pod),
                    name(pod),
                    {
                        "status": {
                            "conditions": _with_condition(
                                pod, "Ready", "False", "NodeNotReady", f"node {wanted} sends no heartbeat", now
                            )
                        }
                    },
                )
            )
    return changes


def _node_of_pod(pod: Object, snapshot: Snapshot) -> Keys:
    node = pod["spec"].get("nodeName")
    return (node,) if node and snapshot.get("Node", node) is None else ()


# ---- scheduler


def tolerated(taints: list[Object], tolerations: list[Object]) -> bool:
    """Whether every NoSchedule or NoExecute taint has a toleration (core/v1 Toleration)."""

    def fits(taint: Object, toleration: Object) -> bool:
        if toleration.get("effect") not in (None, "", taint.get("effect")):
            return False
        if toleration.get("operator") == "Exists":
            return toleration.get("key") in (None, "", taint.get("key"))
        return toleration.get("key") == taint.get("key") and (toleration.get("value") or "") == (
            taint.get("value") or ""
        )

    hard = [t for t in taints if t.get("effect") in ("NoSchedule", "NoExecute")]
    return all(any(fits(taint, t) for t in tolerations) for taint in hard)


def why_not(pod: Object, node: Object) -> str:
    """Return the reason why the pod cannot run on the node, "" if it can."""
    tolerations = pod["spec"].get("tolerations") or []
    cordoned = node.get("spec", {}).get("unschedulable") and not tolerated([_CORDON], tolerations)
    if deleting(node) or cordoned:
        return "unschedulable"
    if not is_true(node, "Ready"):
        return "not ready"
    wanted = pod["spec"].get("nodeSelector") or {}
    if any(labels(node).get(k) != v for k, v in wanted.items()):
        return "does not match nodeSelector"
    if not affinity.wants(pod["spec"], node):
        return "does not match node affinity"
    if not tolerated(node.get("spec", {}).get("taints") or [], tolerations):
        return "has a taint that the pod does not tolerate"
    return ""


def choose(pod: Object, snapshot: Snapshot) -> tuple[str, str]:
    """Return (node, ""), or ("", the reason) if the pod can run on no node. The preferred node has the fewest pods of
    the same owner; among equal nodes, it has the fewest pods.
    """
    refused: dict[str, int] = {}
    best: tuple[int, int, str] | None = None
    owner = (controller_of(pod) or {}).get("uid") or uid(pod)
    for node in snapshot.list("Node"):
        if reason := why_not(pod, node):
            refused[reason] = refused.get(reason, 0) + 1
            continue
        here = [p for p in snapshot.list("Pod") if p["spec"].get("nodeName") == name(node) and not pod_ended(p)]
        siblings = sum((controller_of(p) or {}).get("uid") == owner for p in here)
        best = min(best or (1 << 30, 0, ""), (siblings, len(here), name(node)))
    if best:
        return best[2], ""
    reasons = ", ".join(f"{n} {why}" for why, n in sorted(refused.items())) or "there are no nodes"
    return "", f"no node fits: {reasons}"


def reconcile_schedule(wanted: str, snapshot: Snapshot, now: float) -> list[Write]:
    pod = snapshot.get("Pod", wanted)
    if (
        pod is None
        or pod["spec"].get("nodeName")
        or deleting(pod)
        or pod_ended(pod)
        or pod["spec"].get("schedulerName", "default-scheduler") != "default-scheduler"
    ):
        return []
    node, why = choose(pod, snapshot)
    if node:
        return [
            Write(
                "bind",
                "Pod",
                namespace(pod),
                name(pod),
                {"target": {"kind": "Node", "name": node}},
                f"on {node}",
                told=Told(
                    reference("Pod", pod),
                    "Scheduled",
                    f"Successfully assigned {key(pod)} to {node}",
                    "default-scheduler",
                ),
            )
        ]
    if condition(pod, "PodScheduled").get("message") == why:
        return []
    told = event(reference("Pod", pod), "FailedScheduling", why, now, component="default-scheduler")
    return [
        Write(
            "status",
            "Pod",
            namespace(pod),
            name(pod),
            {"status": {"conditions": _with_condition(pod, "PodScheduled", "False", "Unschedulable", why, now)}},
            why,
        ),
        Write("create", "Event", namespace(pod), "", told, why),
    ]


def _unscheduled(_node: Object, snapshot: Snapshot) -> Keys:
    return [key(p) for p in snapshot.list("Pod") if not p["spec"].get("nodeName")]


def controllers(cluster_cidr: str, node_prefix: int, node_prefix6: int = 64) -> tuple[Controller, ...]:
    nets = [ipaddress.ip_network(text.strip()) for text in cluster_cidr.split(",")]
    waits: dict[str, Callable[[Object, Snapshot], Keys]] = {"Pod": itself, "Node": _unscheduled}
    return (
        node_ipam([(net, node_prefix if net.version == 4 else node_prefix6) for net in nets]),
        Controller("nodelifecycle", {"Node": itself, "Pod": _node_of_pod}, reconcile_lifecycle, resync=10.0),
        Controller("scheduler", waits, reconcile_schedule),
    )
