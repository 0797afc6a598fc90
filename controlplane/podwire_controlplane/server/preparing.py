"""What the server makes of an object between the request and the store: it decodes and checks the object, keeps the
fields that the client does not write, and marks a deleted object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from podwire_base.kube import errors
from podwire_base.kube.meta import Object, name
from podwire_base.kube.registry import Resource
from podwire_base.kube.times import timestamp

from .. import gotypes
from ..strategies.base import Strategy
from ..strategies.table import strategy_of
from .writes import Scope, WriteOptions

if TYPE_CHECKING:
    from .claims import Claims

LAST_MOMENT = 253_402_300_799.0  # 9999-12-31T23:59:59Z: RFC 3339 cannot express later times
_SYSTEM_METADATA = ("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink")
_IDENTITY = ("uid", "namespace", "name")  # many clients leave these out; the server refuses a different value


def shape(resource: Resource, obj: Any, options: WriteOptions) -> tuple[Object, tuple[str, ...]]:
    """Decode an object by the type of its kind. Return it with warnings about unknown and repeated fields, none
    with field_validation Ignore. Raises StatusError 400 for another kind or apiVersion and for a value of a wrong
    type, and with field_validation Strict for an unknown or repeated field.
    """
    obj = {} if obj is None else obj
    if not isinstance(obj, dict):
        raise errors.bad_request("the body is not an object")
    for field, want in (("kind", resource.kind), ("apiVersion", resource.api_version)):
        if (obj.get(field) or want) != want:
            raise errors.bad_request(
                f"the {field} in the data ({obj[field]}) does not match the expected {field} ({want})"
            )
    cannot = f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}'
    try:
        made, unknown = strategy_of(resource).decode(obj)
    except gotypes.BadType as err:
        raise errors.bad_request(f"{cannot}: {err}") from None
    if isinstance(given := obj.get("metadata"), dict) and given.get("managedFields") == []:
        made["metadata"]["managedFields"] = [{}]  # an empty list removes all managers; an absent field keeps them
    warnings = options.repeated + tuple(f'unknown field "{path}"' for path in unknown)
    if warnings and options.field_validation == "Strict":
        raise errors.bad_request(f"{cannot}: strict decoding error: {', '.join(warnings)}")
    return made, warnings if options.field_validation != "Ignore" else ()


def reshape(resource: Resource, obj: Object) -> Object:
    """Decode an object again after the server changed it. The function leaves managedFields as they are."""
    managed = obj["metadata"].pop("managedFields", None)
    made, _ = shape(resource, obj, WriteOptions())
    if managed:
        made["metadata"]["managedFields"] = managed
    return made


def check(scope: Scope, obj: Object, before: Object | None, claims: Claims | None) -> tuple[str, ...]:
    """Validate an object after its defaults and return warnings. Claims.prepare first sets its dependent fields.
    Raises StatusError 422.
    """
    strategy, resource = strategy_of(scope.resource), scope.resource
    if claims and (wrong := claims.prepare(obj, before)):
        raise errors.invalid(resource, name(obj), wrong)
    if before is None:
        causes = list(strategy.validate(obj))
    elif scope.sub == "binding":
        causes = []
    elif scope.sub == "status":
        causes = list(strategy.validate_status(obj, before))
    elif scope.sub in strategy.parts:
        causes = list(strategy.validate_part(scope.sub, obj, before))
    else:
        causes = list(strategy.validate_update(obj, before))
    if causes:
        raise errors.invalid(resource, name(obj), causes)
    return tuple(strategy.warnings(obj, before)) if scope.sub != "status" else ()


def carry_over(scope: Scope, before: Object, after: Object, now: float) -> None:
    """Copy from `before` the server's metadata, the identity that the client left out, and the fields that this URL
    does not write. Set the times that the server decides.
    """
    strategy, metadata, old = strategy_of(scope.resource), after["metadata"], before["metadata"]
    for field in _SYSTEM_METADATA:
        metadata.pop(field, None)
        if field in old:
            metadata[field] = old[field]
    for field in _IDENTITY:
        if field in old and not metadata.get(field):
            metadata[field] = old[field]
    if scope.sub == "status":
        strategy.prepare_status(after, before)
    elif scope.sub in strategy.parts:
        strategy.parts[scope.sub].prepare(after, before)
    elif scope.sub not in ("finalize", "binding"):
        strategy.prepare_update(after, before)
    strategy.stamp(after, before, timestamp(now))


def mark_deleted(strategy: Strategy, obj: Object, grace: int | None, now: float) -> Object:
    """Set deletionTimestamp and the grace period in `obj`. A second deletion can only shorten the grace period."""
    metadata = obj["metadata"]
    # as upstream: a negative grace period counts as 1 s
    seconds = strategy.grace(obj, 1 if grace is not None and grace < 0 else grace)
    if "deletionTimestamp" in metadata:
        seconds = min(seconds, int(metadata.get("deletionGracePeriodSeconds", 0)))
        if seconds == metadata.get("deletionGracePeriodSeconds"):
            return obj
    elif metadata.get("generation"):
        metadata["generation"] += 1  # a deletion request changes the desired state
    metadata["deletionTimestamp"] = timestamp(min(now + seconds, LAST_MOMENT))
    metadata["deletionGracePeriodSeconds"] = seconds
    strategy.mark_deleted(obj)
    return obj
