"""What the cells of kubectl's tables have in common: columns, ages, labels, selectors. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .meta import Object, name
from .times import parse_time

NONE, UNSET, UNKNOWN = "<none>", "<unset>", "<unknown>"
Cell = Callable[[Object], Any]
Timed = Callable[[Object, datetime], Any]
_HOUR, _DAY, _YEAR = 3600, 86400, 365 * 86400


@dataclass(frozen=True, slots=True)
class Column:
    """One column. cell: its value, or timed: its value at a moment. type, format: of meta/v1 TableColumnDefinition.
    priority: 1 with `-o wide` only. hidden: a cell without a definition.
    """

    title: str
    cell: Cell | None = None
    type: str = "string"
    format: str = ""
    priority: int = 0
    timed: Timed | None = None
    hidden: bool = False
    description: str = ""

    def value(self, obj: Object, now: datetime) -> Any:
        if self.timed is not None:
            return self.timed(obj, now)
        return self.cell(obj) if self.cell is not None else None


def human(seconds: float) -> str:
    """Returns a duration as kubectl shows it (apimachinery, HumanDuration): two units while the first is small."""
    if seconds < -1:
        return "<invalid>"
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole}s"
    for limit, first, second, units in (
        (600, 60, 1, "ms"),
        (3 * _HOUR, 60, 0, "m"),
        (8 * _HOUR, _HOUR, 60, "hm"),
        (2 * _DAY, _HOUR, 0, "h"),
        (8 * _DAY, _DAY, _HOUR, "dh"),
        (2 * _YEAR, _DAY, 0, "d"),
        (8 * _YEAR, _YEAR, _DAY, "yd"),
    ):
        if whole < limit:
            rest = whole % first // second if second else 0
            return f"{whole // first}{units[0]}" + (f"{rest}{units[1]}" if rest else "")
    return f"{whole // _YEAR}y"


def since(start: str, now: datetime) -> str:
    """Returns the age of a moment, "<unknown>" for ""."""
    return human((now - parse_time(start)).total_seconds()) if start else UNKNOWN


def at(obj: Any, path: str) -> Any:
    """Returns the value at a dotted path, None if it is not there."""
    for part in path.split("."):
        obj = obj.get(part) if isinstance(obj, dict) else None
    return obj


def at_or(path: str, empty: str) -> Cell:
    def cell(obj: Object) -> Any:
        value = at(obj, path)
        return empty if value is None or value == "" else value

    return cell


def number(path: str) -> Cell:
    return lambda obj: int(at(obj, path) or 0)


def size(path: str) -> Cell:
    return lambda obj: len(at(obj, path) or ())


def joined(path: str) -> Cell:
    return lambda obj: ",".join(map(str, at(obj, path) or ()))


def format_labels(pairs: Mapping[str, str] | None) -> str:
    return ",".join(f"{k}={v}" for k, v in sorted((pairs or {}).items())) or NONE


def format_selector(selector: Any) -> str:
    """Returns a meta/v1 LabelSelector as text."""
    if not selector:
        return NONE
    rows = [(k, f"{k}={v}") for k, v in (selector.get("matchLabels") or {}).items()]
    for term in selector.get("matchExpressions") or []:
        key, values = term.get("key", ""), ",".join(sorted(term.get("values") or []))
        forms = {"In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})", "DoesNotExist": f"!{key}"}
        rows.append((key, forms.get(term.get("operator", ""), key)))
    return ",".join(text for _, text in sorted(rows)) or NONE


def load_balancer(obj: Object) -> str:
    rows = at(obj, "status.loadBalancer.ingress") or []
    return ",".join(str(row.get("ip") or row.get("hostname") or "") for row in rows)


def limited(found: list[str], most: int = 3) -> str:
    return ",".join(found[:most]) + (f" + {len(found) - most} more..." if len(found) > most else "")


NAME = Column("Name", name, format="name")
AGE = Column("Age", timed=lambda obj, now: since(obj["metadata"].get("creationTimestamp") or "", now))
CREATED = Column("Created At", lambda obj: obj["metadata"].get("creationTimestamp"), "date")
