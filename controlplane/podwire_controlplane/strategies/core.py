"""Strategies of the kinds of the core group that need more than rules and defaults."""

from __future__ import annotations

from typing import ClassVar

from podwire_base.kube.meta import Object

from .base import Strategy, forbidden

IMMORTAL = ("default", "kube-system", "kube-public")
_NAMED = ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy")


class Counted(Strategy):
    """A kind whose generation counts the changes of its spec."""

    generation: ClassVar[bool] = True


class DeploymentStrategy(Counted):
    status_labels: ClassVar[bool] = False


class Created(Strategy):
    """A kind that a PUT creates if it is absent."""

    create_on_update: ClassVar[bool] = True


class NamespaceStrategy(Strategy):
    """Its spec has only finalizers, which the subresource finalize removes. Those also hold a deleted Namespace."""

    def prepare_update(self, obj: Object, before: Object) -> None:
        super().prepare_update(obj, before)
        obj["spec"] = before.get("spec") or {}

    def check_delete(self, name: str) -> None:
        if name in IMMORTAL:
            raise forbidden(self.resource, name, "this namespace may not be deleted")

    def mark_deleted(self, obj: Object) -> None:
        obj.setdefault("status", {})["phase"] = "Terminating"

    def held(self, obj: Object) -> bool:
        return bool((obj.get("spec") or {}).get("finalizers"))


class NodeStrategy(Strategy):
    pass


class PodStrategy(Strategy):
    """A pod on a node stays until its node confirms the deletion."""

    generation: ClassVar[bool] = True

    def grace(self, obj: Object, wanted: int | None) -> int:
        spec, status = obj["spec"], obj.get("status") or {}
        if not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
            return 0
        return int(spec.get("terminationGracePeriodSeconds", 30) if wanted is None else wanted)


class ServiceStrategy(Strategy):
    def prepare_update(self, obj: Object, before: Object) -> None:
        super().prepare_update(obj, before)
        keep_allocations(before, obj)


def keep_allocations(before: Object, after: Object) -> None:
    """Copy clusterIP and nodePort from `before` if the client leaves them out (Service update semantics)."""
    old, new = before["spec"], after.get("spec") or {}
    if new.get("type") == "ExternalName":
        for field in _NAMED:
            new.pop(field, None)
    elif old.get("type") == "ExternalName":
        if new.get("externalName") == old.get("externalName"):
            new.pop("externalName", None)
    elif not new.get("clusterIP"):
        new |= {field: old[field] for field in ("clusterIP", "clusterIPs") if old.get(field)}
    elif new.get("clusterIPs") == old.get("clusterIPs") or not new.get("clusterIPs"):
        new["clusterIPs"] = [new["clusterIP"]]
    if new.get("type", "ClusterIP") not in ("NodePort", "LoadBalancer"):
        for field in ("externalTrafficPolicy", "allocateLoadBalancerNodePorts", "healthCheckNodePort"):
            new.pop(field, None)
        for port in new.get("ports") or []:
            port.pop("nodePort", None)
        return
    held = {(p.get("protocol", "TCP"), p["port"]): p["nodePort"] for p in old.get("ports") or [] if p.get("nodePort")}
    for port in new.get("ports") or []:
        kept = held.get((port.get("protocol", "TCP"), port.get("port")))
        if kept and not port.get("nodePort"):
            port["nodePort"] = kept
