"""Validation of ResourceClaims, ResourceClaimTemplates and DeviceClasses (pkg/apis/resource/validation; KEP-4381).

CEL expressions are checked for their length only: nothing here allocates devices, and the devices' variables are known
to what does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from podwire_base.kube.errors import Cause
from podwire_base.kube.meta import Object

from . import fields, meta, scheduling
from .fields import Causes, all_invalid, duplicate, forbidden, invalid, not_supported, required, too_long, too_many

_MOST = 32  # requests, constraints, configurations, selectors, results
_FIRST_MOST, _RESERVED_MOST, _EXPRESSION_MOST, _PARAMETERS_MOST = 8, 256, 10 * 1024, 10 * 1024
_DRIVER_MOST, _DOMAIN_MOST, _ID_MOST, _POOL_MOST = 63, 63, 32, 253
_NOT_A_REQUEST = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'"
_ONE_OF = "exactly one of `exactly` or `firstAvailable` is required"
Check = Callable[[str, Any], Causes]


def _slice(path: str, found: Sequence[Any] | None, most: int, check: Check) -> Causes:
    rows = found or ()
    if len(rows) > most:
        yield too_many(path, len(rows), most)
    for at, one in enumerate(rows):
        yield from check(f"{path}[{at}]", one)


def _set(path: str, found: Sequence[Any] | None, most: int, check: Check, key: Callable[[Any], Any]) -> Causes:
    yield from _slice(path, found, most, check)
    seen = list[Any]()
    for at, one in enumerate(found or ()):
        if (own := key(one)) in seen:
            yield duplicate(f"{path}[{at}]", own)
        seen.append(own)


def _itself(one: Any) -> Any:
    return one


def driver(path: str, text: str) -> Causes:
    if not text:
        yield required(path)
        return
    if len(text) > _DRIVER_MOST:
        yield too_long(path, _DRIVER_MOST)
    yield from all_invalid(path, text, fields.subdomain(text.lower()))


def _label(path: str, text: str) -> Causes:
    yield from all_invalid(path, text, fields.label(text))


def _subdomain(path: str, text: str) -> Causes:
    if not text:
        yield required(path)
    else:
        yield from all_invalid(path, text, fields.subdomain(text))


def _full_name(path: str, text: str) -> Causes:
    """Check the name of an attribute: a domain and an identifier."""
    domain, slash, own = text.partition("/")
    if not slash:
        yield invalid(path, text, "must include a domain" if text else "must not be empty")
        return
    if not domain:
        yield required(path, "the domain must not be empty")
    elif len(domain) > _DOMAIN_MOST:
        yield too_long(path, _DOMAIN_MOST)
    else:
        yield from all_invalid(path, domain, fields.subdomain(domain))
    if not own:
        yield required(path, "the name must not be empty")
    elif len(own) > _ID_MOST:
        yield too_long(path, _ID_MOST)
    elif not own.isidentifier() or not own.isascii():
        yield invalid(path, own, "must be a C identifier")


# ---- requests


def _selector(path: str, one: Any) -> Causes:
    cel = one.get("cel")
    if cel is None:
        yield required(f"{path}.cel")
    elif len(str(cel.get("expression") or "").encode()) > _EXPRESSION_MOST:
        yield too_long(f"{path}.cel.expression", _EXPRESSION_MOST)
    elif not cel.get("expression"):
        yield required(f"{path}.cel.expression")


def _toleration(path: str, one: Any) -> Causes:
    key, value, operator, effect = (one.get(f) or "" for f in ("key", "value", "operator", "effect"))
    if key:
        yield from all_invalid(f"{path}.key", key, fields.qualified(key))
    if operator == "Exists":
        if value:
            yield invalid(f"{path}.value", value, "must be empty for operator `Exists`")
    elif operator == "Equal":
        yield from all_invalid(f"{path}.value", value, fields.label_value(value))
        if not key:
            yield required(f"{path}.key", "must be set for operator `Equal`")
    elif not operator:
        yield required(f"{path}.operator")
    else:
        yield not_supported(f"{path}.operator", operator, ("Equal", "Exists"))
    if effect not in ("", "None", "NoSchedule", "NoExecute"):
        yield not_supported(f"{path}.effect", effect, ("NoExecute", "NoSchedule", "None"))


def _wanted(path: str, one: Any) -> Causes:
    """Check what an exact request and one of several alternatives have in common."""
    yield from _subdomain(f"{path}.deviceClassName", one.get("deviceClassName") or "")
    yield from _slice(f"{path}.selectors", one.get("selectors"), _MOST, _selector)
    mode, count = one.get("allocationMode") or "", one.get("count") or 0
    if mode == "All":
        if count:
            yield invalid(f"{path}.count", count, "must not be specified when allocationMode is 'All'")
    elif mode == "ExactCount":
        if count <= 0:
            yield invalid(f"{path}.count", count, "must be greater than zero")
    else:
        yield not_supported(f"{path}.allocationMode", mode, ("All", "ExactCount"))
    for at, toleration in enumerate(one.get("tolerations") or ()):
        yield from _toleration(f"{path}.tolerations[{at}]", toleration)


def _alternative(path: str, one: Any) -> Causes:
    yield from _label(f"{path}.name", one.get("name") or "")
    yield from _wanted(path, one)


def _request(path: str, one: Any) -> Causes:
    yield from _label(f"{path}.name", one.get("name") or "")
    exactly, first = one.get("exactly"), one.get("firstAvailable")
    if first and exactly is not None:
        yield invalid(path, "null", f"{_ONE_OF}, but multiple fields are set")
    elif first:
        yield from _set(f"{path}.firstAvailable", first, _FIRST_MOST, _alternative, lambda sub: sub.get("name"))
    elif exactly is not None:
        yield from _wanted(f"{path}.exactly", exactly)
    else:
        yield required(path, _ONE_OF)


def _names(devices: Any) -> set[str]:
    """Return what may refer to the requests of a claim: their names, and those of alternatives after a '/'."""
    found = set[str]()
    for one in devices.get("requests") or ():
        own = str(one.get("name") or "")
        found |= {own, *(f"{own}/{sub.get('name')}" for sub in one.get("firstAvailable") or ())}
    return found


def _refers(names: set[str]) -> Check:
    def check(path: str, text: Any) -> Causes:
        parts = str(text).split("/")
        if len(parts) <= 2:
            for part in parts:
                yield from _label(path, part)
        if text not in names:
            yield invalid(path, text, _NOT_A_REQUEST)

    return check


def _configured(path: str, one: Any) -> Causes:
    opaque = one.get("opaque")
    if opaque is None:
        yield required(f"{path}.opaque")
        return
    yield from driver(f"{path}.opaque.driver", opaque.get("driver") or "")
    parameters, where = opaque.get("parameters"), f"{path}.opaque.parameters"
    if parameters is None:
        yield required(where)
    elif not isinstance(parameters, dict):
        yield invalid(where, "<value omitted>", "must be a valid JSON object")
    elif len(str(parameters)) > _PARAMETERS_MOST:
        yield too_long(where, _PARAMETERS_MOST)


def _claimed(path: str, devices: Any) -> Causes:
    refers = _refers(_names(devices))

    def constraint(where: str, one: Any) -> Causes:
        yield from _set(f"{where}.requests", one.get("requests"), _MOST, refers, _itself)
        both = [field for field in ("matchAttribute", "distinctAttribute") if one.get(field) is not None]
        for field in both[:1]:
            yield from _full_name(f"{where}.{field}", one[field])
        if not both:
            yield required(where, 'exactly one of "matchAttribute" or "distinctAttribute" is required')

    def config(where: str, one: Any) -> Causes:
        yield from _set(f"{where}.requests", one.get("requests"), _MOST, refers, _itself)
        yield from _configured(where, one)

    yield from _set(f"{path}.requests", devices.get("requests"), _MOST, _request, lambda one: one.get("name"))
    yield from _slice(f"{path}.constraints", devices.get("constraints"), _MOST, constraint)
    yield from _slice(f"{path}.config", devices.get("config"), _MOST, config)


# ---- the kinds


def claim(obj: Object) -> Causes:
    yield from _claimed("spec.devices", (obj.get("spec") or {}).get("devices") or {})


def claim_update(obj: Object, before: Object) -> Causes:
    if (obj.get("spec") or {}) != (before.get("spec") or {}):
        yield meta.immutable("spec", "<the new spec>")


def claim_status(obj: Object, before: Object) -> Causes:
    """Check who uses a claim, and that an allocation stays what it is."""
    status, old = obj.get("status") or {}, before.get("status") or {}
    reserved, where = status.get("reservedFor") or (), "status.reservedFor"
    yield from _set(where, reserved, _RESERVED_MOST, _consumer, lambda one: one.get("uid"))
    allocation, former = status.get("allocation"), old.get("allocation")
    if reserved and allocation is None:
        yield forbidden(where, "may not be specified when `allocated` is not set")
    elif obj["metadata"].get("deletionTimestamp") and any(
        one not in (old.get("reservedFor") or ()) for one in reserved
    ):
        why = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set"
        yield forbidden(where, why)
    if allocation is not None and former is not None and allocation != former:
        yield meta.immutable("status.allocation", "<the new allocation>")
    elif allocation is not None and former is None:
        yield from _allocated(allocation, _names((obj.get("spec") or {}).get("devices") or {}))


def _consumer(path: str, one: Any) -> Causes:
    for field in ("resource", "name", "uid"):
        if not one.get(field):
            yield required(f"{path}.{field}")


def _allocated(allocation: Any, names: set[str]) -> Iterator[Cause]:
    refers, path = _refers(names), "status.allocation"

    def result(where: str, one: Any) -> Causes:
        yield from refers(f"{where}.request", one.get("request") or "")
        yield from driver(f"{where}.driver", one.get("driver") or "")
        pool = one.get("pool") or ""
        if not pool:
            yield required(f"{where}.pool")
        elif len(pool) > _POOL_MOST:
            yield too_long(f"{where}.pool", _POOL_MOST)
        for part in pool.split("/") if pool else ():
            yield from _subdomain(f"{where}.pool", part)
        yield from _label(f"{where}.device", one.get("device") or "")

    devices = allocation.get("devices") or {}
    yield from _slice(f"{path}.devices.results", devices.get("results"), _MOST, result)
    if allocation.get("nodeSelector") is not None:
        yield from scheduling.node_selector(f"{path}.nodeSelector", allocation["nodeSelector"])


def template(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    metadata = spec.get("metadata") or {}
    yield from meta.check_labels("spec.metadata.labels", metadata.get("labels"))
    yield from meta.check_annotations("spec.metadata.annotations", metadata.get("annotations"))
    yield from _claimed("spec.spec.devices", (spec.get("spec") or {}).get("devices") or {})


def device_class(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    yield from _slice("spec.selectors", spec.get("selectors"), _MOST, _selector)
    yield from _slice("spec.config", spec.get("config"), _MOST, _configured)
    extended = spec.get("extendedResourceName")
    if extended is not None:
        native = "/" not in extended or "kubernetes.io/" in extended or extended.startswith("requests.")
        if native or fields.qualified(f"requests.{extended}"):
            yield invalid("spec.extendedResourceName", extended, "must be a valid extended resource name")
