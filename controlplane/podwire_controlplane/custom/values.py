"""What the server does to a custom object that it reads: numbers, unknown fields, nulls and defaults, by the structural
schema of its version (apiextensions-apiserver, pkg/apiserver/schema: pruning, defaulting, objectmeta).

A schema here is the JSON of a JSONSchemaProps. All functions change the object that they are given.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from podwire_base.kube.meta import Object

from .. import gotypes

Schema = Mapping[str, Any]
TYPE_META = ("apiVersion", "kind", "metadata")
PRESERVE, EMBEDDED, INT_OR_STRING = (
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
)
_MAX_FLOAT = 1e21  # Go writes larger numbers with an exponent


def field_schema(schema: Schema | None, name: str) -> Schema | None:
    """Return the schema of a field or of a map's value; None if the schema says nothing about it."""
    if schema is None:
        return None
    found = (schema.get("properties") or {}).get(name)
    return found if found is not None else values_schema(schema)


def values_schema(schema: Schema) -> Schema | None:
    """Return the schema of a map's values, None for none and for additionalProperties: true."""
    more = schema.get("additionalProperties")
    return more if isinstance(more, Mapping) else None


def numbers(value: Any) -> Any:
    """Return the value as Go's encoder writes it: a float without a fraction is written as an integer."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < _MAX_FLOAT else value
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, dict | list | float):
                value[key] = numbers(inner)
    elif isinstance(value, list):
        value[:] = [numbers(inner) for inner in value]
    return value


def prune(value: Any, schema: Schema | None, path: str, unknown: list[str], root: bool = False) -> None:
    """Remove the fields that the schema does not have, and add their paths to `unknown`. root: the value is a whole
    object, whose type and metadata are implicit.
    """
    keep = schema is not None and bool(schema.get(PRESERVE))
    if isinstance(value, dict):
        _prune_fields(value, schema, path, unknown, keep=keep, root=root)
    elif isinstance(value, list):
        items = schema.get("items") if schema is not None else None
        for n, inner in enumerate(value):
            if keep:  # what is kept is looked through for parts that have a schema of their own
                prune(inner, {PRESERVE: True, **(items or {})}, f"{path}[{n}]", unknown)
            else:
                prune(inner, items, f"{path}[{n}]", unknown)


def _prune_fields(
    value: Object, schema: Schema | None, path: str, unknown: list[str], *, keep: bool, root: bool
) -> None:
    meta = root or (schema is not None and bool(schema.get(EMBEDDED)))
    properties = (schema.get("properties") or {}) if schema is not None else {}
    more = schema.get("additionalProperties") if schema is not None else None
    for name in list(value):
        if meta and name in TYPE_META:
            continue
        inner = f"{path}.{name}" if path else name
        if name in properties:
            prune(value[name], properties[name], inner, unknown)
        elif more is not None:  # also false: then validation refuses the field
            prune(value[name], more if isinstance(more, Mapping) else None, inner, unknown)
        elif not keep:
            unknown.append(inner)
            del value[name]


def drop_nulls(value: Any, schema: Schema | None) -> None:
    """Remove nulls where the schema allows none and has no default."""
    if isinstance(value, dict):
        for name in list(value):
            inner = field_schema(schema, name)
            if value[name] is None:
                if inner is not None and not inner.get("nullable") and inner.get("default") is None:
                    del value[name]
            else:
                drop_nulls(value[name], inner)
    elif isinstance(value, list):
        for one in value:
            drop_nulls(one, schema.get("items") if schema is not None else None)


def _absent(value: Any, schema: Schema | None) -> bool:
    return value is None and schema is not None and not schema.get("nullable")


def default(value: Any, schema: Schema | None) -> None:
    """Set the schema's defaults, in values that are there."""
    if schema is None:
        return
    if isinstance(value, dict):
        properties, values = schema.get("properties") or {}, values_schema(schema)
        for name, inner in properties.items():
            if inner.get("default") is not None and (name not in value or _absent(value[name], inner)):
                value[name] = copy.deepcopy(inner["default"])
        for name in value:
            if name in properties:
                default(value[name], properties[name])
            elif values is not None:
                if _absent(value[name], values):
                    value[name] = copy.deepcopy(values.get("default"))
                default(value[name], values)
    elif isinstance(value, list):
        items = schema.get("items")
        for n, one in enumerate(value):
            if _absent(one, items):
                value[n] = copy.deepcopy((items or {}).get("default"))
            default(value[n], items)


def fill(obj: Object, schema: Schema) -> None:
    """Do to a whole object what defaulting does."""
    body = {key: inner for key, inner in obj.items() if key != "metadata"}
    drop_nulls(body, schema)
    default(body, schema)
    metadata = obj["metadata"]
    obj.clear()
    obj |= body
    obj["metadata"] = metadata


def coerce_embedded(value: Any, schema: Schema | None, path: str, unknown: list[str]) -> None:
    """Give the metadata of embedded objects the form of metav1.ObjectMeta. Raises gotypes.BadType."""
    if schema is None:
        return
    if isinstance(value, dict):
        if schema.get(EMBEDDED) and "metadata" in value:
            value["metadata"] = object_meta(value["metadata"], f"{path}.metadata" if path else "metadata", unknown)
        for name, inner in value.items():
            if isinstance(inner, dict | list):
                coerce_embedded(inner, field_schema(schema, name), f"{path}.{name}" if path else name, unknown)
    elif isinstance(value, list):
        for n, one in enumerate(value):
            coerce_embedded(one, schema.get("items"), f"{path}[{n}]", unknown)


def object_meta(value: Any, path: str, unknown: list[str]) -> Object:
    """Return metadata as metav1.ObjectMeta has it. Raises gotypes.BadType."""
    made: Object = gotypes.decode_message(gotypes.OBJECT_META, value, path, unknown)
    if made.get("creationTimestamp") is None:
        made.pop("creationTimestamp", None)
    return made
