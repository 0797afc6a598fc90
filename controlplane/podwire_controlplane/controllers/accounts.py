"""What every namespace has for its pods: the ServiceAccount `default`, and the ConfigMap `kube-root-ca.crt` with the
authority of the API server (serviceaccount-controller and root-ca-cert-publisher). Pure.

The ConfigMap is asked for by a creation that the API refuses where there is one: a cache of all ConfigMaps would cost
memory. So one that somebody deletes is back at the next resync.
"""

from __future__ import annotations

from podwire_base.kube.meta import Object, deleting, name, namespace

from .base import Controller, Keys, Snapshot, Write, itself

DEFAULT, ROOT = "default", "kube-root-ca.crt"
RESYNC = 300.0


def _space(account: Object, _snapshot: Snapshot) -> Keys:
    return (namespace(account),) if name(account) == DEFAULT else ()


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
        made = {"metadata": {"name": ROOT}, "data": {"ca.crt": authority}}
        return [Write("create", "ConfigMap", wanted, ROOT, made)]

    return (
        Controller("serviceaccounts", {"Namespace": itself, "ServiceAccount": _space}, reconcile_account),
        Controller("rootca", {"Namespace": itself}, reconcile_root, resync=RESYNC),
    )
