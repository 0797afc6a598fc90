"""Conditions in an object's status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .meta import Object


def condition(obj: Mapping[str, Any], kind: str) -> Object:
    """Returns the condition of type `kind` in status.conditions; {} if there is none."""
    for found in obj.get("status", {}).get("conditions") or []:
        if found.get("type") == kind:
            return dict(found)
    return {}


def is_true(obj: Mapping[str, Any], kind: str) -> bool:
    return condition(obj, kind).get("status") == "True"
