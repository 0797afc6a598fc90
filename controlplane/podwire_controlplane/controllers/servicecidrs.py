"""ServiceCIDR objects: a finalizer and the condition Ready, and no end while a Service has an address of the range
(kube-controller-manager, servicecidrs-controller; KEP-1880). Pure. The API server itself keeps the object `kubernetes`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import suppress

from podwire_base.kube.conditions import condition
from podwire_base.kube.meta import Object, deleting, name, uid
from podwire_base.kube.times import timestamp

from ..allocators import Network
from .base import Controller, Keys, Snapshot, Write, itself

FINALIZER = "networking.k8s.io/service-cidr-finalizer"
_OWN = "kubernetes"
_IN_USE = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR"


def _ranges(obj: Object) -> Iterator[Network]:
    for text in (obj.get("spec") or {}).get("cidrs") or []:
        with suppress(ValueError):
            yield ipaddress.ip_network(text)


def _in_use(obj: Object, snapshot: Snapshot) -> bool:
    """Whether an address lies in the ranges of `obj`, and in those of no other object that stays."""
    mine = list(_ranges(obj))
    others = [
        network
        for other in snapshot.list("ServiceCIDR")
        if uid(other) != uid(obj) and not deleting(other)
        for network in _ranges(other)
    ]
    for found in snapshot.list("IPAddress"):
        address = ipaddress.ip_address(name(found))
        if any(address in network for network in mine) and not any(address in network for network in others):
            return True
    return False


def _finalizers(obj: Object, held: list[str], why: str) -> Write:
    metadata = {"uid": uid(obj), "resourceVersion": obj["metadata"].get("resourceVersion"), "finalizers": held}
    return Write("patch", "ServiceCIDR", "", name(obj), {"metadata": metadata}, why)


def _ready(obj: Object, ready: bool, reason: str, message: str, now: float) -> list[Write]:
    before = condition(obj, "Ready")
    status = "True" if ready else "False"
    if (before.get("status"), before.get("reason") or "") == (status, reason):
        return []
    made = {"type": "Ready", "status": status, "reason": reason, "message": message}
    body = {"metadata": {"uid": uid(obj)}, "status": {"conditions": [{**made, "lastTransitionTime": timestamp(now)}]}}
    return [Write("status", "ServiceCIDR", "", name(obj), body, message)]


def reconcile(wanted: str, snapshot: Snapshot, now: float) -> list[Write]:
    obj = snapshot.get("ServiceCIDR", wanted)
    if obj is None or wanted == _OWN:
        return []
    held = obj["metadata"].get("finalizers") or []
    if not deleting(obj):
        if FINALIZER not in held:
            return [_finalizers(obj, [*held, FINALIZER], "it stays while addresses are in use")]
        return _ready(obj, True, "", "Kubernetes Service CIDR is ready", now)
    if FINALIZER not in held:
        return []
    if _in_use(obj, snapshot):
        return _ready(obj, False, "Terminating", _IN_USE, now)
    return [_finalizers(obj, [one for one in held if one != FINALIZER], "no address is in use")]


def _waiting(_address: Object, snapshot: Snapshot) -> Keys:
    return [name(obj) for obj in snapshot.list("ServiceCIDR") if deleting(obj)]


def _all_waiting(obj: Object, snapshot: Snapshot) -> Keys:
    return {*itself(obj, snapshot), *_waiting(obj, snapshot)}


CONTROLLERS = (Controller("servicecidrs", {"ServiceCIDR": _all_waiting, "IPAddress": _waiting}, reconcile),)
