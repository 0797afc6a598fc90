"""Aggregated ClusterRoles: the rules of a ClusterRole with an aggregationRule are those of the roles that it selects
(clusterrole-aggregation-controller).
"""

from __future__ import annotations

from podwire_base.kube.meta import Object

from ..rbac.defaults import aggregated
from .base import Controller, Keys, Snapshot, Write


def _aggregating(_role: Object, snapshot: Snapshot) -> Keys:
    """Return the roles that may select a role: every role that selects any."""
    return [key for key, role in snapshot.kinds["ClusterRole"].items() if role.get("aggregationRule")]


def reconcile_aggregation(wanted: str, snapshot: Snapshot, _now: float) -> list[Write]:
    role = snapshot.get("ClusterRole", wanted)
    if role is None or not role.get("aggregationRule"):
        return []
    rules = aggregated(role, snapshot.list("ClusterRole"))
    if rules == (role.get("rules") or []):
        return []
    return [Write("patch", "ClusterRole", "", wanted, {"rules": rules}, why=f"{len(rules)} rules")]


CONTROLLERS = (Controller("clusterroleaggregation", {"ClusterRole": _aggregating}, reconcile_aggregation),)
