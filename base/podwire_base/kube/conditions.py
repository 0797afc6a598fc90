"""Conditions in an object's status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .meta import Object
from .times import timestamp


def condition(obj: Mapping[str, Any], kind: str) -> Object:
    """Returns the condition of type `kind` in status.conditions; {} if there is none."""
    for found in obj.get("status", {}).get("conditions") or []:
        if found.get("type") == kind:
            return dict(found)
    return {}


def is_true(obj: Mapping[str, Any], kind: str) -> bool:
    return condition(obj, kind).get("status") == "True"


def with_condition(
    obj: Mapping[str, Any], kind: str, status: str, reason: str, message: str, now: float
) -> list[Object]:
    """Returns the object's conditions with the one of type `kind` replaced. Its transition time changes only with its
    status. now: seconds since the epoch.
    """
    before = condition(obj, kind)
    since = before.get("lastTransitionTime") if before.get("status") == status else timestamp(now)
    fresh = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}
    return [c for c in obj.get("status", {}).get("conditions") or [] if c.get("type") != kind] + [fresh]
