"""The first count of a ResourceQuota: its status gets the limits and what is used by then. After that the API server
counts each object as it comes and goes, by compare-and-swap, so that two writers never share one remaining place.
"""

from __future__ import annotations

from fractions import Fraction

from podwire_base.kube.meta import Object, name, namespace
from podwire_base.kube.registry import BUILTIN

from .. import quota
from . import customkinds
from .base import Controller, Keys, Snapshot, Write, itself

KINDS = {r.kind: r for r in BUILTIN.stored if r.namespaced}


def used(found: Object, snapshot: Snapshot) -> dict[str, str]:
    """Return what the objects of the quota's namespace use of each limit."""
    total: dict[str, Fraction] = {limit: Fraction(0) for limit in found["spec"].get("hard") or {}}
    for kind, row in KINDS.items():
        for obj in snapshot.list(kind, namespace(found)):
            if quota.counts(found, row.group, row.plural, obj):
                for limit, value in quota.usage(row.group, row.plural, obj).items():
                    if limit in total:
                        total[limit] += value
    for kind, row in customkinds.followed(snapshot):
        limit = f"count/{row.qualified}"
        if limit in total and row.namespaced and quota.counts(found, row.group, row.plural, {}):
            total[limit] = Fraction(sum(1 for _ in snapshot.list(kind, namespace(found))))
    return {limit: quota.text(value, limit) for limit, value in total.items()}


def reconcile(wanted: str, snapshot: Snapshot, _now: float) -> list[Write]:
    found = snapshot.get("ResourceQuota", wanted)
    if found is None or (found.get("status") or {}).get("hard") == found["spec"].get("hard"):
        return []
    status = {"hard": found["spec"].get("hard"), "used": used(found, snapshot)}
    body: Object = {"metadata": {"resourceVersion": found["metadata"].get("resourceVersion")}, "status": status}
    return [Write("status", "ResourceQuota", namespace(found), name(found), body, "its limits changed")]


def _counted_later(_obj: Object, _snapshot: Snapshot) -> Keys:
    return ()  # the API server counts what comes and goes


_WATCHES = {**dict.fromkeys((*KINDS, customkinds.DEFINITIONS), _counted_later), "ResourceQuota": itself}
CONTROLLERS = (Controller("resourcequota", _WATCHES, reconcile, custom=_counted_later),)
