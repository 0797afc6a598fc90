"""Lists that are sets or maps, and the metadata of embedded objects (apiextensions-apiserver, pkg/apiserver/schema:
listtype, objectmeta).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from podwire_base.kube.errors import Cause
from podwire_base.kube.meta import Object

from ..rules import fields, meta
from ..rules.fields import duplicate, invalid, required
from .values import EMBEDDED, Schema, field_schema

Causes = Iterator[Cause]


def below(path: str, name: str, schema: Schema) -> str:
    """Return the path of a field: a map's key stands in brackets."""
    if name in (schema.get("properties") or {}):
        return f"{path}.{name}" if path else name
    return f"{path}[{name}]"


def key_text(value: Any) -> str:
    """Return a text that is equal for equal JSON values only."""
    return json.dumps(value, sort_keys=True)


def check_lists(value: Any, schema: Schema | None, path: str = "") -> Causes:
    """Yield every item of a set that stands there twice, and every item of a map list whose keys another one has."""
    if schema is None:
        return
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, dict | list):
                yield from check_lists(inner, field_schema(schema, name), below(path, name, schema))
    elif isinstance(value, list):
        kind = schema.get("x-kubernetes-list-type")
        if kind == "set":
            yield from _twice(path, value)
        elif kind == "map":
            yield from _map_list(path, value, schema.get("x-kubernetes-list-map-keys") or [])
        for n, one in enumerate(value):
            yield from check_lists(one, schema.get("items"), f"{path}[{n}]")


def _twice(path: str, values: list[Any]) -> Causes:
    """Yield the second of equal values; upstream does not report the third."""
    seen: dict[str, int] = {}
    for n, one in enumerate(values):
        text = key_text(one)
        seen[text] = seen.get(text, 0) + 1
        if seen[text] == 2:
            yield duplicate(f"{path}[{n}]", key_text(one))


def _map_list(path: str, values: list[Any], keys: list[str]) -> Causes:
    for n, one in enumerate(values):
        if one is not None and not isinstance(one, dict):
            yield invalid(f"{path}[{n}]", one, "must be an object for an array of list-type map")
            return
    yield from _twice(path, [{k: one[k] for k in keys if k in one} for one in (v or {} for v in values)])


# ---- embedded objects


def check_embedded(value: Any, schema: Schema | None, path: str = "") -> Causes:
    """Yield what is wrong with apiVersion, kind and metadata of embedded objects."""
    if schema is None:
        return
    if isinstance(value, dict):
        if schema.get(EMBEDDED):
            yield from _embedded(value, path)
        for name, inner in value.items():
            if isinstance(inner, dict | list):
                yield from check_embedded(inner, field_schema(schema, name), below(path, name, schema))
    elif isinstance(value, list):
        for n, one in enumerate(value):
            yield from check_embedded(one, schema.get("items"), f"{path}[{n}]")


def _embedded(value: Object, path: str) -> Causes:
    dot = f"{path}." if path else ""
    for name in ("apiVersion", "kind"):
        found = value.get(name)
        if name not in value:
            yield required(f"{dot}{name}")
        elif not isinstance(found, str):
            yield invalid(f"{dot}{name}", found, "must be a string")
        elif not found:
            yield invalid(f"{dot}{name}", found, "must not be empty")
        elif name == "apiVersion" and not re.fullmatch(r"[^/]+(/[^/]+)?", found):
            yield invalid(f"{dot}{name}", found, f"unexpected GroupVersion string: {found}")
        elif name == "kind" and fields.label_1035(found.lower()):
            yield invalid(f"{dot}{name}", found, "may have mixed case, but is a DNS-1035 label otherwise")
    metadata = value.get("metadata")
    if isinstance(metadata, dict):
        yield from meta.check_embedded(f"{dot}metadata", metadata)
