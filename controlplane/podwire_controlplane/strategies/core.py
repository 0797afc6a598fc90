"""Strategies of the core group's kinds: what the server decides at creation, and what an update may not change."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import ClassVar

from podwire_base.kube.meta import Object

from ..rules import ephemeral
from ..rules.fields import label
from . import podparts
from .base import Part, Strategy, dig, forbidden
from .podcreate import prepare_pod

IMMORTAL = ("default", "kube-system", "kube-public")
_NAMED = ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy")


class Counted(Strategy):
    """A kind whose generation counts the changes of its spec."""

    generation: ClassVar[bool] = True


class Created(Strategy):
    """A kind that a PUT creates if it is absent."""

    create_on_update: ClassVar[bool] = True


class Fixed(Counted):
    """A kind that has a generation, which never rises."""

    def changed(self, obj: Object, before: Object) -> bool:
        return False


class SliceStrategy(Counted):
    """EndpointSlice. The topology of endpoints is of an older version: it is kept as it was. Labels say what the slice
    is of, so a change of them counts, too.
    """

    def changed(self, obj: Object, before: Object) -> bool:
        labels = (one["metadata"].get("labels") or {} for one in (obj, before))
        return next(labels) != next(labels) or super().changed(obj, before)

    def prepare_create(self, obj: Object) -> None:
        for one in obj.get("endpoints") or []:
            one.pop("deprecatedTopology", None)

    def prepare_update(self, obj: Object, before: Object) -> None:
        super().prepare_update(obj, before)
        kept = [one.get("deprecatedTopology") for one in before.get("endpoints") or []]
        for one in obj.get("endpoints") or []:
            if one.get("deprecatedTopology") not in kept:
                one.pop("deprecatedTopology", None)


class CountedCreated(Counted):
    create_on_update: ClassVar[bool] = True


class NamespaceStrategy(Strategy):
    """Its spec has only finalizers, which the subresource finalize removes. Those also hold a deleted Namespace."""

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"phase": "Active"}
        spec = obj.setdefault("spec", {})
        held = spec.get("finalizers") or []
        spec["finalizers"] = held if "kubernetes" in held else [*held, "kubernetes"]

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
    def prepare_create(self, obj: Object) -> None:
        """A Node is created with its status: kubelets do."""


class PodStrategy(Strategy):
    """A pod on a node stays until its node confirms the deletion."""

    generation: ClassVar[bool] = True
    parts: ClassVar[Mapping[str, Part]] = {
        "ephemeralcontainers": Part(podparts.only_ephemeral, ephemeral.added),
        "resize": Part(podparts.only_resources, ephemeral.resized),
    }

    def prepare_create(self, obj: Object) -> None:
        prepare_pod(obj)

    def warnings(self, obj: Object, before: Object | None) -> list[str]:
        own = obj["metadata"].get("name") or ""
        if before is not None or not (wrong := label(own)):
            return super().warnings(obj, before)
        text = "this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended"
        return [f"metadata.name: {text}: {wrong}", *super().warnings(obj, before)]

    def prepare_status(self, obj: Object, before: Object) -> None:
        super().prepare_status(obj, before)
        podparts.keep(obj["metadata"], before["metadata"], ("ownerReferences",))
        podparts.status_kept(obj, before)

    def grace(self, obj: Object, wanted: int | None) -> int:
        spec, status = obj["spec"], obj.get("status") or {}
        if not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
            return 0
        seconds = int(spec.get("terminationGracePeriodSeconds", 30) if wanted is None else wanted)
        return seconds if seconds >= 0 else 1  # as upstream: a negative time is a short one


def bound(pod: Object, binding: Object, now: str) -> Object:
    """Return the pod as assigned to the node of a Binding, with the Binding's annotations. now: a metav1.Time."""
    scheduled = {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": now}
    status = pod.get("status") or {}
    kept = [c for c in status.get("conditions") or [] if c.get("type") != "PodScheduled"]
    notes = {**(pod["metadata"].get("annotations") or {}), **(binding["metadata"].get("annotations") or {})}
    return {
        **pod,
        "metadata": {**pod["metadata"], **({"annotations": notes} if notes else {})},
        "spec": {**pod["spec"], "nodeName": binding["target"]["name"]},
        "status": {**status, "conditions": [*kept, scheduled]},
    }


class SecretStrategy(Strategy):
    """stringData is only written: it goes into data."""

    def defaults(self, obj: Object) -> None:
        texts = obj.pop("stringData", None) or {}
        if texts:
            encoded = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
            obj["data"] = {**(obj.get("data") or {}), **encoded}
        super().defaults(obj)


class ClaimStrategy(Strategy):
    """PersistentVolumeClaim. The two fields that name a source of data are kept equal (KEP-1495)."""

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"phase": "Pending"}
        self._sources(obj)

    @staticmethod
    def _sources(obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        old, new = spec.get("dataSource"), spec.get("dataSourceRef")
        if old is not None and new is None:
            spec["dataSourceRef"] = {"apiGroup": None, **old}
        elif new is not None and old is None and not new.get("namespace"):
            spec["dataSource"] = {field: new.get(field) for field in ("apiGroup", "kind", "name")}


class VolumeStrategy(Strategy):
    """PersistentVolume. now: set by the write path, because the status tells when its phase changed."""

    def prepare_create(self, obj: Object) -> None:
        created = obj["metadata"].get("creationTimestamp")
        obj["status"] = {"phase": "Pending", "lastPhaseTransitionTime": created}


class ServiceStrategy(Strategy):
    def prepare_update(self, obj: Object, before: Object) -> None:
        super().prepare_update(obj, before)
        keep_allocations(before, obj)


def keep_allocations(before: Object, after: Object) -> None:
    """Copy addresses and ports from `before` if the client leaves them out (patchAllocatedValues, upstream)."""
    old, new = before["spec"], after.get("spec") or {}
    if new.get("type") == "ExternalName":
        for field in _NAMED:
            if old.get("type") != "ExternalName" and new.get(field) == old.get(field):
                new.pop(field, None)
    elif old.get("type") == "ExternalName":
        if new.get("externalName") == old.get("externalName"):
            new.pop("externalName", None)
    else:
        if not new.get("clusterIP") and old.get("clusterIP"):
            new["clusterIP"] = old["clusterIP"]
        if not new.get("clusterIPs") and old.get("clusterIPs") and new.get("clusterIP") == old.get("clusterIP"):
            new["clusterIPs"] = list(old["clusterIPs"])
    _drop_unneeded(old, new)
    if new.get("type", "ClusterIP") in ("NodePort", "LoadBalancer"):
        _keep_ports(old, new)


def _keep_ports(old: Object, new: Object) -> None:
    """A port without nodePort gets the one that the former port of its name had, unless another port asks for it."""
    rows = new.get("ports") or []
    held = {p.get("name") or "": p["nodePort"] for p in old.get("ports") or [] if p.get("nodePort")}
    used = set(held.values()) & {p.get("nodePort") for p in rows}
    for port in rows:
        kept = held.get(port.get("name") or "")
        if kept and not port.get("nodePort") and kept not in used:
            port["nodePort"] = kept
            used.add(kept)
    health = new.get("healthCheckNodePort") or old.get("healthCheckNodePort")
    if health and new.get("externalTrafficPolicy") == "Local" and new["type"] == "LoadBalancer":
        new["healthCheckNodePort"] = health


def _drop_unneeded(old: Object, new: Object) -> None:
    """Remove what the former type needed and the new one does not, where the client did not change it."""
    kind, former = new.get("type", "ClusterIP"), old.get("type", "ClusterIP")
    outside = kind in ("NodePort", "LoadBalancer") or (kind == "ClusterIP" and new.get("externalIPs"))
    if not outside and new.get("externalTrafficPolicy") == old.get("externalTrafficPolicy"):
        new.pop("externalTrafficPolicy", None)
    if kind not in ("NodePort", "LoadBalancer") and former in ("NodePort", "LoadBalancer"):
        ports = [p.get("nodePort") for p in old.get("ports") or []]
        for port in new.get("ports") or []:
            if port.get("nodePort") in ports:
                port.pop("nodePort", None)
    if kind != "LoadBalancer" and former == "LoadBalancer":
        for field in ("allocateLoadBalancerNodePorts", "loadBalancerClass"):
            if new.get(field) == old.get(field):
                new.pop(field, None)
    local = kind == "LoadBalancer" and new.get("externalTrafficPolicy") == "Local"
    if not local and new.get("healthCheckNodePort") == old.get("healthCheckNodePort"):
        new.pop("healthCheckNodePort", None)


def storage_version(obj: Object) -> list[str]:
    """Return the names of the versions in which a CustomResourceDefinition stores objects."""
    return [v["name"] for v in dig(obj, "spec", "versions") or [] if v.get("storage")]
