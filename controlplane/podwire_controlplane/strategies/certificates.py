"""CertificateSigningRequest: who asked is written by the server, and each subresource writes its part of the status
(pkg/registry/certificates/certificates/strategy.go).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from podwire_base.kube.meta import Object

from ..rules.fields import Causes, forbidden, invalid
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


def _only_conditions(obj: Object, before: Object) -> None:
    """A write of /approval changes the conditions and nothing else of the status."""
    conditions = _conditions(obj)
    keep(obj, before, ("spec",))
    keep(obj["metadata"], before["metadata"], _METADATA)
    obj["status"] = {**(before.get("status") or {})}
    obj["status"].pop("conditions", None)
    if conditions:
        obj["status"]["conditions"] = conditions


def _verdict(obj: Object, before: Object) -> Causes:
    now, then = ({c.get("type") for c in _conditions(o)} for o in (obj, before))
    for kind in _VERDICTS:
        if kind in then and kind not in now:
            yield forbidden("status.conditions", f"updates may not remove a condition of type {kind!r}")
    if all(kind in now for kind in _VERDICTS):
        yield invalid("status.conditions", "Denied", "Approved and Denied conditions are mutually exclusive")


class RequestStrategy(Strategy):
    parts: ClassVar[Mapping[str, Part]] = {"approval": Part(_only_conditions, _verdict)}

    def prepare_update(self, obj: Object, before: Object) -> None:
        super().prepare_update(obj, before)
        keep(obj, before, ("spec",))

    def prepare_status(self, obj: Object, before: Object) -> None:
        """Whoever signs writes the certificate. The verdict is not its own: it stays as it was."""
        super().prepare_status(obj, before)
        rest = [c for c in _conditions(obj) if c.get("type") not in _VERDICTS]
        verdict = [c for c in _conditions(before) if c.get("type") in _VERDICTS]
        status = obj.setdefault("status", {})
        status.pop("conditions", None)
        if verdict or rest:
            status["conditions"] = [*verdict, *rest]
