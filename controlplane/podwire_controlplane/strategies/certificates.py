"""CertificateSigningRequest: who asked is written by the server, and each subresource writes its part of the status
(pkg/registry/certificates/certificates/strategy.go).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from podwire_base.kube.meta import Object

from ..rules import certificates as rules
from .base import Part, Strategy
from .podparts import keep

_VERDICTS = ("Approved", "Denied")
_REQUESTER = ("username", "uid", "groups", "extra")
_METADATA = ("labels", "annotations", "finalizers", "ownerReferences")


def requested_by(request: Object, user: Object) -> None:
    """Write who asks into a new request. user: an authentication.k8s.io/v1 UserInfo."""
    spec = request.get("spec")
    if isinstance(spec, dict):
        for field in _REQUESTER:
            spec.pop(field, None)
        spec |= {field: user[field] for field in _REQUESTER if user.get(field)}


def _conditions(request: Object) -> list[Object]:
    return list((request.get("status") or {}).get("conditions") or [])


def _set(request: Object, conditions: list[Object]) -> None:
    status = request.setdefault("status", {})
    status.pop("conditions", None)
    if conditions:
        status["conditions"] = conditions


def _timed(obj: Object, before: Object, now: str) -> None:
    """Give each condition its times, where the client left them out: now, or the last change of its status."""
    old = _conditions(before)
    for one in _conditions(obj):
        if not one.get("lastUpdateTime"):
            one["lastUpdateTime"] = now
        if not one.get("lastTransitionTime"):
            alike = (o for o in old if (o.get("type"), o.get("status")) == (one.get("type"), one.get("status")))
            one["lastTransitionTime"] = next((o.get("lastTransitionTime") for o in alike), None) or now


def _only_conditions(obj: Object, before: Object) -> None:
    """A write of /approval changes the conditions and nothing else of the status."""
    conditions = _conditions(obj)
    keep(obj, before, ("spec",))
    keep(obj["metadata"], before["metadata"], _METADATA)
    obj["status"] = {**(before.get("status") or {})}
    _set(obj, conditions)


class RequestStrategy(Strategy):
    parts: ClassVar[Mapping[str, Part]] = {"approval": Part(_only_conditions, rules.update_approval)}

    def prepare_update(self, obj: Object, before: Object) -> None:
        super().prepare_update(obj, before)
        keep(obj, before, ("spec",))

    def prepare_status(self, obj: Object, before: Object) -> None:
        """Whoever signs writes the certificate. A verdict that it leaves out stays as it was."""
        super().prepare_status(obj, before)
        keep(obj["metadata"], before["metadata"], _METADATA)
        now = _conditions(obj)
        left = {one.get("type") for one in now}
        kept = [one for one in _conditions(before) if one.get("type") in _VERDICTS and one.get("type") not in left]
        _set(obj, [*kept, *now])

    def stamp(self, obj: Object, before: Object, now: str) -> None:
        _timed(obj, before, now)
