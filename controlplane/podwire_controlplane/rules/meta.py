"""Validation of metadata, and of label selectors (k8s.io/apimachinery: pkg/api/validation, pkg/apis/meta/v1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from podwire_base.kube.errors import Cause
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import Resource

from . import fields
from .fields import Causes, Form, all_invalid, forbidden, invalid, required, too_long

ANNOTATIONS_MAX = 256 * 1024  # bytes, names and values together
STANDARD_FINALIZERS = ("kubernetes", "orphan", "foregroundDeletion")
_LABEL_NAMED = {("", "Namespace"), ("", "Service"), ("apps", "StatefulSet")}
_SEGMENT_GROUPS = ("apiregistration.k8s.io", "events.k8s.io", "rbac.authorization.k8s.io")
_IMMUTABLE = ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds")


def name_form(resource: Resource) -> Form:
    """Return the rule for names of a kind."""
    pair = (resource.group, resource.kind)
    if pair in _LABEL_NAMED:
        return fields.label
    if resource.group in _SEGMENT_GROUPS or resource.kind in (
        "Event",
        "CertificateSigningRequest",
    ):  # upstream asks no more of these names
        return fields.path_segment
    if pair == ("networking.k8s.io", "IPAddress"):
        return _canonical_ip
    return fields.subdomain


def _canonical_ip(text: str) -> list[str]:
    address = fields.parsed_ip(text)
    return [] if address is not None and str(address) == text else ["must be an IP address in canonical form"]


def check_labels(path: str, found: Mapping[str, str] | None) -> Causes:
    for key, value in (found or {}).items():
        yield from all_invalid(path, key, fields.qualified(key))
        yield from all_invalid(path, value, fields.label_value(value))


def check_annotations(path: str, found: Mapping[str, str] | None) -> Causes:
    total = 0
    for key, value in (found or {}).items():
        yield from all_invalid(path, key, fields.qualified(key.lower()))
        total += len(key.encode()) + len(value.encode())
    if total > ANNOTATIONS_MAX:
        yield too_long(path, ANNOTATIONS_MAX)


def _owners(path: str, refs: list[Object]) -> Causes:
    controllers = 0
    for ref in refs:
        for field in ("apiVersion", "kind", "name", "uid"):
            if not ref.get(field):
                yield invalid(f"{path}.{field}", ref.get(field) or "", "must not be empty")
        if ref.get("apiVersion") == "v1" and ref.get("kind") == "Event":
            yield invalid(path, ref.get("name"), "v1, Kind=Event is disallowed from being an owner")
        controllers += bool(ref.get("controller"))
    if controllers > 1:
        yield invalid(path, controllers, "only one reference can have controller set to true")


def _finalizers(path: str, held: list[str]) -> Causes:
    for one in held:
        yield from all_invalid(path, one, fields.qualified(one))
    if "orphan" in held and "foregroundDeletion" in held:
        yield invalid(path, held, "finalizers orphan and foregroundDeletion cannot be set together")


def qualified_finalizers(metadata: Object) -> Causes:
    for n, one in enumerate(metadata.get("finalizers") or []):
        if "/" not in one and one not in STANDARD_FINALIZERS and not fields.qualified(one):
            why = "name is neither a standard finalizer name nor is it fully qualified"
            yield invalid(f"metadata.finalizers[{n}]", one, why)


def check(resource: Resource, obj: Object, form: Form | None = None) -> Causes:
    """Yield what is wrong with the metadata of an object. form: the rule for its name."""
    metadata, form = obj["metadata"], form or name_form(resource)
    if prefix := metadata.get("generateName"):
        yield from all_invalid("metadata.generateName", prefix, form(fields.masked(prefix)))
    own = metadata.get("name")
    if not own:
        yield required("metadata.name", "name or generateName is required")
    else:
        yield from all_invalid("metadata.name", own, form(own))
    yield from _common(metadata)
    yield from qualified_finalizers(metadata)


def _common(metadata: Object) -> Causes:
    yield from check_labels("metadata.labels", metadata.get("labels"))
    yield from check_annotations("metadata.annotations", metadata.get("annotations"))
    yield from _owners("metadata.ownerReferences", metadata.get("ownerReferences") or [])
    yield from _finalizers("metadata.finalizers", metadata.get("finalizers") or [])


def check_embedded(path: str, metadata: Object) -> Causes:
    """Yield what is wrong with the metadata of an object inside a custom resource."""
    for field in ("name", "generateName"):
        if metadata.get(field):
            yield from all_invalid(f"{path}.{field}", metadata[field], fields.path_segment(metadata[field]))
    for cause in (*_common(metadata), *qualified_finalizers(metadata)):
        yield Cause(path + cause.field.removeprefix("metadata"), cause.message, cause.reason)


def check_update(obj: Object, before: Object) -> Causes:
    """Yield what an update of the metadata may not do."""
    new, old = obj["metadata"], before["metadata"]
    if old.get("deletionTimestamp"):
        added = [f for f in new.get("finalizers") or [] if f not in (old.get("finalizers") or [])]
        if added:
            why = f"no new finalizers can be added if the object is being deleted, found new finalizers {added}"
            yield forbidden("metadata.finalizers", why)
    for field in _IMMUTABLE:
        if new.get(field) != old.get(field):
            yield immutable(f"metadata.{field}", new.get(field))
    yield from _common(new)


def immutable(path: str, value: Any) -> Cause:
    return invalid(path, value, "field is immutable")


# ---- selectors


def operator_fits(path: str, term: Object, *, numbers: bool = False) -> Causes:
    """Check the operator of a selector's requirement, and the number of its values. numbers: Gt and Lt are allowed."""
    operator, values = term.get("operator"), term.get("values") or []
    if operator in ("In", "NotIn"):
        if not values:
            yield required(f"{path}.values", "must be specified when `operator` is 'In' or 'NotIn'")
    elif operator in ("Exists", "DoesNotExist"):
        if values:
            yield forbidden(f"{path}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
    elif numbers and operator in ("Gt", "Lt"):
        if len(values) != 1:
            yield required(f"{path}.values", "must be specified single value when `operator` is 'Lt' or 'Gt'")
    else:
        yield invalid(f"{path}.operator", operator, "not a valid selector operator")


def _requirement(path: str, term: Object) -> Causes:
    yield from operator_fits(path, term)
    yield from all_invalid(f"{path}.key", term.get("key") or "", fields.qualified(term.get("key") or ""))
    for n, value in enumerate(term.get("values") or []):
        yield from all_invalid(f"{path}.values[{n}]", value, fields.label_value(value))


def label_selector(path: str, selector: Object | None) -> Causes:
    if selector is None:
        return
    yield from check_labels(f"{path}.matchLabels", selector.get("matchLabels"))
    for n, term in enumerate(selector.get("matchExpressions") or []):
        yield from _requirement(f"{path}.matchExpressions[{n}]", term)
