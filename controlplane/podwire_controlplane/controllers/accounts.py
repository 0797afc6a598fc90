"""What every namespace has for its pods: the ServiceAccount `default`, and the ConfigMap `kube-root-ca.crt` with the
authority of the API server (serviceaccount-controller and root-ca-cert-publisher). Pure.

A ConfigMap that somebody changes or deletes is mended at once.
"""

from __future__ import annotations

from podwire_base.kube.meta import Object, deleting, name, namespace, uid

from .base import Controller, Keys, Snapshot, Write, itself

DEFAULT, ROOT = "default", "kube-root-ca.crt"
_KEY = "ca.crt"


def _space(account: Object, _snapshot: Snapshot) -> Keys:
    return (namespace(account),) if name(account) == DEFAULT else ()


def _root_space(found: Object, _snapshot: Snapshot) -> Keys:
    return (namespace(found),) if name(found) == ROOT else ()


def controllers(authority: str) -> tuple[Controller, ...]:
    """authority: the certificates by which clients know the API server, as PEM; "" where there are none."""

    def reconcile_account(wanted: str, snapshot: Snapshot, _now: float) -> list[Write]:
        space = snapshot.get("Namespace", wanted)
        if space is None or deleting(space) or snapshot.get("ServiceAccount", f"{wanted}/{DEFAULT}"):
            return []
        return [Write("create", "ServiceAccount", wanted, DEFAULT, {"metadata": {"name": DEFAULT}})]

    def reconcile_root(wanted: str, snapshot: Snapshot, _now: float) -> list[Write]:
        space = snapshot.get("Namespace", wanted)
        if space is None or deleting(space) or not authority:
            return []
        data, found = {_KEY: authority}, snapshot.get("ConfigMap", f"{wanted}/{ROOT}")
        if found is None:
            return [Write("create", "ConfigMap", wanted, ROOT, {"metadata": {"name": ROOT}, "data": data})]
        if found.get("data") == data and not found.get("binaryData"):
            return []
        gone = dict.fromkeys(found.get("data") or {})
        body = {"metadata": {"uid": uid(found)}, "data": {**gone, **data}, "binaryData": None}
        return [Write("patch", "ConfigMap", wanted, ROOT, body, "it was changed")]

    return (
        Controller("serviceaccounts", {"Namespace": itself, "ServiceAccount": _space}, reconcile_account),
        Controller("rootca", {"Namespace": itself, "ConfigMap": _root_space}, reconcile_root),
    )
