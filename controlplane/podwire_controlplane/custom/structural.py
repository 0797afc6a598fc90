"""Which schemas are structural: their fields are told outside of allOf, anyOf, oneOf and not, each with its type
(apiextensions-apiserver, pkg/apiserver/schema: validation.go, complete.go). Field paths are upstream's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from podwire_base.kube.errors import Cause

from ..rules.fields import forbidden, invalid, required
from . import patterns
from .values import EMBEDDED, INT_OR_STRING, PRESERVE, Schema

Causes = Iterator[Cause]
ROOT, ITEM, FIELD = "at the root", "for specified array items", "for specified object fields"
UNSUPPORTED = ("id", "$schema", "$ref", "patternProperties", "dependencies", "additionalItems", "definitions")
_INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]
_FORBIDDEN_INSIDE = {
    "type": "must be empty to be structural",
    "default": "must be undefined to be structural",
    "title": "must be empty to be structural",
    "description": "must be empty to be structural",
    "nullable": "must be false to be structural",
    PRESERVE: "must be false to be structural",
    EMBEDDED: "must be false to be structural",
    INT_OR_STRING: "must be false to be structural",
    "x-kubernetes-list-map-keys": "must be empty to be structural",
    "x-kubernetes-list-type": "must be undefined to be structural",
    "x-kubernetes-map-type": "must be undefined to be structural",
    "x-kubernetes-validations": "must be empty to be structural",
}


def unsupported(schema: Any) -> bool:
    """Whether the schema has, anywhere, a field that no structural schema may have."""
    if isinstance(schema, list):
        return any(map(unsupported, schema))
    if not isinstance(schema, Mapping):
        return False
    if any(schema.get(word) for word in UNSUPPORTED) or isinstance(schema.get("items"), list):
        return True
    inner = [schema.get(word) for word in ("items", "additionalProperties", "not", "allOf", "anyOf", "oneOf")]
    return any(map(unsupported, (*inner, *(schema.get("properties") or {}).values())))


def check_structural(schema: Schema, path: str) -> Causes:
    """Yield every reason why the schema of a whole object is not structural."""
    yield from _invariants(schema, ROOT, path)
    yield from _complete(schema, schema, path, path)


def _invariants(schema: Schema, level: str, path: str) -> Causes:
    kind, items, more = schema.get("type") or "", schema.get("items"), schema.get("additionalProperties")
    if kind == "array" and items is None:
        yield required(f"{path}.items", "must be specified")
    if isinstance(items, Mapping):
        yield from _invariants(items, ITEM, f"{path}.items")
    for name, inner in (schema.get("properties") or {}).items():
        yield from _invariants(inner, FIELD, f"{path}.properties[{name}]")
    if more is not None and level == ROOT:
        yield forbidden(f"{path}.additionalProperties", "must not be used at the root")
    if isinstance(more, Mapping):
        yield from _invariants(more, FIELD, f"{path}.additionalProperties")
    if schema.get(INT_OR_STRING):
        for word in (PRESERVE, EMBEDDED):
            if schema.get(word):
                yield invalid(f"{path}.{word}", True, f"must be false if {INT_OR_STRING} is true")
    any_of, all_of = schema.get("anyOf") or [], schema.get("allOf") or []
    yield from _values(
        schema,
        path,
        level,
        skip_any=any_of == _INT_OR_STRING,
        skip_first=bool(all_of) and all_of[0].get("anyOf") == _INT_OR_STRING,
    )
    yield from _type(schema, kind, level, path)
    yield from _meta_fields(schema, level, path)


def _type(schema: Schema, kind: str, level: str, path: str) -> Causes:
    embedded = schema.get(EMBEDDED)
    if embedded and kind != "object":
        why = f"must be object if {EMBEDDED} is true"
        yield invalid(f"{path}.type", kind, why) if kind else required(f"{path}.type", why)
    elif not kind and not schema.get(INT_OR_STRING) and not schema.get(PRESERVE):
        yield required(f"{path}.type", f"must not be empty {level}")
    if embedded and schema.get("additionalProperties") is not None:
        yield forbidden(f"{path}.additionalProperties", f"must not be used if {EMBEDDED} is set")
    if level == ROOT and kind not in ("", "object"):
        yield invalid(f"{path}.type", kind, "must be object at the root")
    if embedded and not schema.get(PRESERVE) and not schema.get("properties"):
        yield required(f"{path}.properties", f"must not be empty if {EMBEDDED} is true without {PRESERVE}")


def _meta_fields(schema: Schema, level: str, path: str) -> Causes:
    """The fields that every object has: only names may be restricted."""
    properties = schema.get("properties") or {}
    whole = level == ROOT or schema.get(EMBEDDED)
    for name in ("kind", "apiVersion"):
        if whole and name in properties and properties[name].get("type") != "string":
            yield invalid(f"{path}.properties[{name}].type", properties[name].get("type") or "", "must be string")
    metadata = properties.get("metadata")
    if metadata is None:
        return
    where = f"{path}.properties[metadata]"
    if whole and metadata.get("type") != "object":
        yield invalid(f"{where}.type", metadata.get("type") or "", "must be object")
    if level == ROOT:
        rest = {word for word, value in metadata.items() if value not in (None, [], {})}
        if set(metadata.get("properties") or {}) <= {"name", "generateName"}:
            rest.discard("properties")
        if rest - {"type", "default"}:
            why = "must not specify anything other than name and generateName, but metadata is implicitly specified"
            yield forbidden(where, why)


def _values(schema: Schema, path: str, level: str, *, skip_any: bool = False, skip_first: bool = False) -> Causes:
    """Check what is under junctors. skip_any, skip_first: the two forms of an int-or-string, which may have types."""
    if not skip_any:
        for n, one in enumerate(schema.get("anyOf") or []):
            yield from _nested(one, f"{path}.anyOf[{n}]", level)
    for n, one in enumerate(schema.get("allOf") or []):
        yield from _nested(one, f"{path}.allOf[{n}]", level, skip_any=skip_first and n == 0)
    for n, one in enumerate(schema.get("oneOf") or []):
        yield from _nested(one, f"{path}.oneOf[{n}]", level)
    if schema.get("not") is not None:
        yield from _nested(schema["not"], f"{path}.not", level)
    if schema.get("pattern") and (why := patterns.problem(schema["pattern"])):
        why = f"must be a valid regular expression, but isn't: {why}"
        yield invalid(f"{path}.pattern", schema["pattern"], why)


def _nested(schema: Schema, path: str, level: str, *, skip_any: bool = False) -> Causes:
    yield from _values(schema, path, level, skip_any=skip_any)
    if isinstance(schema.get("items"), Mapping):
        yield from _nested(schema["items"], f"{path}.items", level)
    for name, inner in (schema.get("properties") or {}).items():
        yield from _nested(inner, f"{path}.properties[{name}]", FIELD)
    for word, why in _FORBIDDEN_INSIDE.items():
        if schema.get(word) not in (None, "", False, [], {}) or (word == "default" and schema.get(word) is not None):
            yield forbidden(f"{path}.{word}", why)
    if schema.get("additionalProperties") not in (None, False):
        yield forbidden(f"{path}.additionalProperties", "must be undefined to be structural")
    if "metadata" in (schema.get("properties") or {}):
        yield forbidden(f"{path}.properties[metadata]", "must not be specified in a nested context")


def _complete(values: Schema, schema: Schema | None, where: str, path: str) -> Causes:
    """Yield every field that only a junctor knows. values: the schema with the junctors. schema: the structure."""
    if schema is None:
        yield required(where, f"because it is defined in {path}")
        return
    if values.get("not") is not None:
        yield from _complete_nested(values["not"], schema, where, f"{path}.not")
    for word in ("allOf", "anyOf", "oneOf"):
        for n, one in enumerate(values.get(word) or []):
            yield from _complete_nested(one, schema, where, f"{path}.{word}[{n}]")


def _complete_nested(values: Schema, schema: Schema | None, where: str, path: str) -> Causes:
    if schema is None:
        yield required(where, f"because it is defined in {path}")
        return
    yield from _complete(values, schema, where, path)
    if isinstance(values.get("items"), Mapping):
        yield from _complete_nested(values["items"], schema.get("items"), f"{where}.items", f"{path}.items")
    for name, inner in (values.get("properties") or {}).items():
        known = (schema.get("properties") or {}).get(name)
        yield from _complete_nested(inner, known, f"{where}.properties[{name}]", f"{path}.properties[{name}]")
