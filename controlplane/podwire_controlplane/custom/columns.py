"""The columns of custom kinds: additionalPrinterColumns (apiextensions-apiserver, tableconvertor)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from podwire_base.kube.cells import NAME, Column, since
from podwire_base.kube.meta import Object

from . import jsonpath

_AGE = Column(
    "Age",
    type="date",
    timed=lambda obj, now: since(obj["metadata"].get("creationTimestamp") or "", now),
    description="The time since the object was created.",
)


def of(rows: Sequence[Object]) -> tuple[Column, ...]:
    """Return the columns of a version; of one that tells none, its age."""
    return (NAME, *map(_column, rows)) if rows else (NAME, _AGE)


def _column(row: Object) -> Column:
    path, kind = row["jsonPath"], row["type"]
    try:
        find = jsonpath.parse(path)
    except jsonpath.BadPath:
        find = jsonpath.parse("[-1]")  # an object has no items: the cells are empty

    def timed(obj: Object, now: datetime) -> Any:
        value = next(iter(find(obj)), None)
        return None if value is None else _CELLS[kind](value, now)

    text = row.get("description") or f"Custom resource definition column (in JSONPath format): {path}"
    priority = row.get("priority") or 0
    return Column(
        row["name"], type=kind, format=row.get("format") or "", priority=priority, timed=timed, description=text
    )


def _text(value: Any, _now: datetime) -> Any:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True)


def _number(convert: Callable[[float], Any]) -> Callable[[Any, datetime], Any]:
    return lambda value, _: convert(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _date(value: Any, now: datetime) -> Any:
    if not isinstance(value, str):
        return None
    try:
        return since(value, now)
    except ValueError:
        return "<invalid>"


_CELLS: dict[str, Callable[[Any, datetime], Any]] = {
    "string": _text,
    "integer": _number(int),
    "number": _number(float),
    "boolean": lambda value, _: value if isinstance(value, bool) else None,
    "date": _date,
}
