"""The first count of a ResourceQuota: its status gets the limits and what is used by then. After that the API server
counts each object as it comes and goes, by compare-and-swap, so that two writers never share one remaining place.

A server that dies between its charge and its write leaves a charge for nothing. So each quota is counted again every
RECOUNT seconds. The caches of quotas and of objects are not of one moment: a difference counts once it has stood for
SETTLED seconds, while nobody charged the quota.
"""

from __future__ import annotations

from fractions import Fraction

from podwire_base.kube.meta import Object, name, namespace
from podwire_base.kube.registry import BUILTIN

from .. import quota
from . import customkinds
from .base import Controller, Keys, Snapshot, Write, again, itself

RECOUNT, SETTLED = 300.0, 20.0
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


class Recount:
    """Remembers when each quota was counted, and the difference that was found: (version, used, since)."""

    def __init__(self) -> None:
        self._counted: dict[str, float] = {}
        self._odd: dict[str, tuple[str, dict[str, str], float]] = {}

    def __call__(self, wanted: str, snapshot: Snapshot, now: float) -> list[Write]:
        found = snapshot.get("ResourceQuota", wanted)
        status = (found or {}).get("status") or {}
        if found is None or status.get("hard") != found["spec"].get("hard"):
            self._counted.pop(wanted, None)
            self._odd.pop(wanted, None)
            return []
        if wanted not in self._odd and now - self._counted.get(wanted, float("-inf")) < RECOUNT:
            return []
        self._counted[wanted] = now
        told, counted = status.get("used") or {}, used(found, snapshot)
        if told.keys() == counted.keys() and all(quota.amount(told[k]) == quota.amount(counted[k]) for k in told):
            self._odd.pop(wanted, None)
            return []
        version = str(found["metadata"].get("resourceVersion"))
        known = self._odd.get(wanted)
        if known is None or known[:2] != (version, counted):
            self._odd[wanted] = version, counted, now
            return [again("ResourceQuota", SETTLED)]
        if (left := known[2] + SETTLED - now) > 0:
            return [again("ResourceQuota", left)]
        del self._odd[wanted]
        body: Object = {"metadata": {"resourceVersion": version}, "status": {"used": counted}}
        return [Write("status", "ResourceQuota", namespace(found), name(found), body, "its usage was counted again")]


def _counted_later(_obj: Object, _snapshot: Snapshot) -> Keys:
    return ()  # the API server counts what comes and goes


_WATCHES = {**dict.fromkeys((*KINDS, customkinds.DEFINITIONS), _counted_later), "ResourceQuota": itself}
CONTROLLERS = (
    Controller("resourcequota", _WATCHES, reconcile, custom=_counted_later),
    Controller("quotarecount", _WATCHES, Recount(), resync=RECOUNT, custom=_counted_later),
)
