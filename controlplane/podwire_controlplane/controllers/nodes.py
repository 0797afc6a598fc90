"""Nodes: podCIDR allocation, and node lifecycle by Lease."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from podwire_base.kube.conditions import condition, is_true, with_condition
from podwire_base.kube.events import reference
from podwire_base.kube.meta import Object, name, namespace
from podwire_base.kube.times import parse_time, timestamp

from ..allocators import Exhausted, Network, free_pod_cidr
from .base import Controller, Keys, Snapshot, Told, Write, itself

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
                            "conditions": with_condition(
                                node, "NetworkUnavailable", "True", "NoPodCIDR", str(err), _now
                            )
                        }
                    },
                )
            ]
        return [Write("patch", "Node", "", wanted, {"spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs}}, ",".join(cidrs))]

    # Two nodes cannot get the same subnet: the driver applies the changes of a key before it reconciles the next key.
    return Controller("nodeipam", {"Node": itself}, reconcile)


# ---- lifecycle


_TAINT = "node.kubernetes.io/"
# (condition, status) -> the taint that keeps new pods away meanwhile. A node that is not ready has it twice: pods
# leave it when their tolerations are over, 300 s unless they say otherwise.
_CONDITION_TAINTS = {
    ("Ready", "False"): "not-ready",
    ("Ready", "Unknown"): "unreachable",
    ("MemoryPressure", "True"): "memory-pressure",
    ("DiskPressure", "True"): "disk-pressure",
    ("PIDPressure", "True"): "pid-pressure",
    ("NetworkUnavailable", "True"): "network-unavailable",
}
_LEAVE = (("Ready", "False"), ("Ready", "Unknown"))
_LEAVING = frozenset(_TAINT + _CONDITION_TAINTS[pair] for pair in _LEAVE)
_OURS = frozenset(_TAINT + name for name in (*_CONDITION_TAINTS.values(), "unschedulable"))


def _tainted(node: Object, now: float, *, calm: bool) -> list[Write]:
    """Give a node the taints of its conditions, and take away those of conditions that are over. The API server gives a
    new node the taint not-ready, so a node without a condition Ready keeps it. calm: some node is ready. Where none is,
    no pod leaves its node: the fault may be this controller's own.
    """
    spec, status = node.get("spec") or {}, node.get("status") or {}
    held = spec.get("taints") or []
    pairs = [(c.get("type"), c.get("status")) for c in status.get("conditions") or []]
    wanted = [(_TAINT + row, "NoSchedule") for pair, row in _CONDITION_TAINTS.items() if pair in pairs]
    leaving = [(_TAINT + _CONDITION_TAINTS[pair], "NoExecute") for pair in _LEAVE if pair in pairs and calm]
    if not any(kind == "Ready" for kind, _ in pairs):
        wanted.append((_TAINT + "not-ready", "NoSchedule"))
    if spec.get("unschedulable"):
        wanted.append((_TAINT + "unschedulable", "NoSchedule"))
    wanted += leaving
    kept = [t for t in held if not _ours(t) or (t["key"], t["effect"]) in wanted]
    have = [(t.get("key"), t.get("effect")) for t in kept]
    taints = [_timed(t, now) for t in kept]
    taints += [_timed({"key": own, "effect": effect}, now) for own, effect in wanted if (own, effect) not in have]
    if taints == held:
        return []
    change = {"metadata": {"resourceVersion": node["metadata"].get("resourceVersion")}, "spec": {"taints": taints}}
    return [Write("patch", "Node", "", name(node), change, ", ".join(own for own, _ in wanted) or "no taints")]


def _ours(taint: Object) -> bool:
    return (taint.get("effect") == "NoSchedule" and taint.get("key") in _OURS) or (
        taint.get("effect") == "NoExecute" and taint.get("key") in _LEAVING
    )


def _timed(taint: Object, now: float) -> Object:
    """Return a taint that makes pods leave with the time since which it does."""
    if taint.get("effect") != "NoExecute" or taint.get("timeAdded"):
        return taint
    return {**taint, "timeAdded": timestamp(now)}


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
    calm = any(is_true(other, "Ready") for other in snapshot.list("Node"))
    changes = _tainted(node, now, calm=calm)
    if now - parse_time(renewed).timestamp() < GRACE:
        return changes
    if condition(node, "Ready").get("status") not in (None, "Unknown"):
        changes.append(
            Write(
                "status",
                "Node",
                "",
                wanted,
                {
                    "status": {
                        "conditions": with_condition(
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
                            "conditions": with_condition(
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


def controllers(cluster_cidr: str, node_prefix: int, node_prefix6: int = 64) -> tuple[Controller, ...]:
    nets = [ipaddress.ip_network(text.strip()) for text in cluster_cidr.split(",")]
    return (
        node_ipam([(net, node_prefix if net.version == 4 else node_prefix6) for net in nets]),
        Controller("nodelifecycle", {"Node": itself, "Pod": _node_of_pod}, reconcile_lifecycle, resync=10.0),
    )
