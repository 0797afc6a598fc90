"""What becomes of a CertificateSigningRequest: whether it is approved without a person, and when it is deleted. Pure.

Source: kube-controller-manager's csrapproving and csrcleaner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from podwire_base.kube.meta import Object
from podwire_base.kube.times import parse_time

from . import requests
from .requests import APPROVED, DENIED, FAILED, KUBELET_CLIENT, Asked

AUTO = "AutoApproved"
_SETTLED_SECONDS, _PENDING_SECONDS = 3600.0, 24 * 3600.0


@dataclass(frozen=True)
class Right:
    """A right by which a request is approved: to create this subresource of CertificateSigningRequests."""

    sub: str
    message: str


_SELF = Right("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.")
_NEW = Right("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.")


def rights(obj: Object, asked: Asked) -> tuple[Right, ...]:
    """Return the rights of which any approves a pending request, () if only a person can."""
    spec = obj["spec"]
    settled = requests.has(obj, APPROVED) or requests.has(obj, DENIED)
    if settled or spec.get("signerName") != KUBELET_CLIENT:
        return ()
    if requests.refusal(KUBELET_CLIENT, asked, spec.get("usages") or ()):
        return ()
    return (_SELF, _NEW) if spec.get("username") == asked.common_name else (_NEW,)


def waits(obj: Object) -> bool:
    """Whether an approved request waits for its certificate."""
    done = (obj.get("status") or {}).get("certificate") or requests.has(obj, FAILED)
    return requests.has(obj, APPROVED) and not requests.has(obj, DENIED) and not done


def automatic(obj: Object) -> bool:
    """Whether the request was approved by the rights of its sender, and by no person."""
    return any(c.get("type") == APPROVED and c.get("reason") == AUTO for c in requests.conditions(obj))


def over(obj: Object, now: float, end_of: Callable[[str], float]) -> str:
    """Return why a request is deleted, "" if it stays. end_of: the end of an encoded certificate's life."""

    def older(kind: str, seconds: float) -> bool:
        times = [c.get("lastUpdateTime") for c in requests.conditions(obj) if c.get("type") == kind]
        return any(_age(text, now) > seconds for text in times if text)

    certificate = (obj.get("status") or {}).get("certificate")
    if certificate and end_of(certificate) < now:
        return "its certificate has expired"
    if certificate and older(APPROVED, _SETTLED_SECONDS):
        return "it was issued long ago"
    for kind in (DENIED, FAILED):
        if older(kind, _SETTLED_SECONDS):
            return f"it was {kind.lower()} long ago"
    if not requests.conditions(obj) and _age(obj["metadata"].get("creationTimestamp"), now) > _PENDING_SECONDS:
        return "nobody approved it for a day"
    return ""


def _age(text: object, now: float) -> float:
    try:
        return now - parse_time(str(text)).timestamp()
    except (ValueError, OverflowError):
        return 0.0
