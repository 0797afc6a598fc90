"""Which fields a write cannot change, though its body may hold them: nobody owns them by it.

A write of the object itself leaves the status alone, and a write of /status everything else. Source: GetResetFields of
kube-apiserver's strategies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from .fieldsets import Fields, Path, only, union, without


@dataclass(frozen=True, slots=True)
class Reset:
    """drop: paths that do not count, with everything beneath. keep: if any, nothing else counts."""

    drop: tuple[Path, ...] = ()
    keep: tuple[Path, ...] = ()

    def __call__(self, fields: Fields) -> Fields:
        if not fields:
            return fields
        if self.keep:
            made: Fields = {}
            for path in self.keep:
                made = union(made, only(fields, path))
            return made
        for path in self.drop:
            fields = without(fields, path)
        return fields


def _path(text: str) -> Path:
    return tuple(part if part == "*" else "f:" + part for part in text.split("."))


NOTHING = Reset()
_STATUS, _SPEC = Reset((_path("status"),)), Reset((_path("spec"),))
_METADATA = Reset((_path("spec"), _path("metadata")))
# what a write of /status resets, where it is not the spec alone
_AT_STATUS = {
    ("", "Pod"): Reset((_path("spec"), _path("metadata.deletionTimestamp"), _path("metadata.ownerReferences"))),
    ("apps", "Deployment"): Reset((_path("spec"), _path("metadata.labels"))),
    ("storage.k8s.io", "VolumeAttachment"): _METADATA,
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"): _METADATA,
    ("resource.k8s.io", "ResourceClaim"): _METADATA,
    ("apiregistration.k8s.io", "APIService"): _METADATA,
}
# subresources that write one part of an object
_PARTS = {
    "ephemeralcontainers": Reset(keep=(_path("spec.ephemeralContainers"),)),
    "resize": Reset(
        keep=tuple(
            _path(f"spec.{kind}.*.{field}")
            for kind in ("containers", "initContainers")
            for field in ("resources", "resizePolicy")
        )
    ),
    "approval": Reset((_path("spec"), _path("status.certificate"))),
}


@cache
def reset_of(group: str, kind: str, sub: str, has_status: bool, custom: bool = False) -> Reset:
    """Return what a write of an object (sub: "") or of one of its subresources does not own. custom: the kind is a
    custom one, where a write of /status owns nothing but parts of the status.
    """
    if sub == "status":
        if custom:
            return Reset(keep=(_path("status"),))
        return _AT_STATUS.get((group, kind), _SPEC)
    if sub in ("", "finalize") and has_status:
        return _STATUS
    return _PARTS.get(sub, NOTHING)
