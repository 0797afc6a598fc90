"""Makes the table that `kubectl get` prints (meta/v1 Table). columns.py has the columns of each kind."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from .cells import Column, since
from .columns import COLUMNS, DEFAULT
from .meta import Object
from .registry import Resource

age = since


def columns(resource: Resource) -> tuple[Column, ...]:
    """Returns the columns of a kind; of a kind without columns of its own NAME and AGE."""
    if resource.custom is not None:
        return resource.custom.columns
    return COLUMNS.get((resource.group, resource.kind), DEFAULT)


def _cell(column: Column, obj: Object, now: datetime) -> Any:
    try:
        return column.value(obj, now)
    except (KeyError, TypeError, AttributeError, ValueError):
        return "<invalid>"


def definitions(resource: Resource) -> list[Object]:
    """Returns the columnDefinitions of a kind."""
    return [
        {
            "name": column.title,
            "type": column.type,
            "format": column.format,
            "description": column.description or column.title,
            "priority": column.priority,
        }
        for column in columns(resource)
        if not column.hidden
    ]


def cells(resource: Resource, obj: Object, now: datetime) -> list[Any]:
    return [_cell(column, obj, now) for column in columns(resource)]


def table(
    resource: Resource,
    objects: Iterable[Object],
    now: datetime,
    *,
    revision: str = "",
    include: str = "Metadata",
    head: bool = True,
) -> Object:
    """Returns a meta/v1 Table. include: the request parameter `includeObject` (None, Metadata or Object)."""
    rows = []
    for obj in objects:
        row: Object = {"cells": cells(resource, obj, now)}
        if include == "Object":
            row["object"] = obj
        elif include != "None":
            row["object"] = {
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": obj["metadata"],
            }
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": revision} if revision else {},
        "columnDefinitions": definitions(resource) if head else None,
        "rows": rows,
    }
