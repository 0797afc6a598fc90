"""Validates the schemas of a CustomResourceDefinition: their OpenAPI keywords, lists, maps and defaults
(apiextensions-apiserver, pkg/apis/apiextensions/validation; pkg/apiserver/schema/defaulting).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from podwire_base.kube.errors import Cause

from .. import gotypes
from ..rules.fields import forbidden, invalid, not_supported, required
from . import values
from .cel import rules
from .check import check, equal
from .lists import check_embedded
from .structural import check_structural, unsupported
from .values import EMBEDDED, PRESERVE, Schema

Causes = Iterator[Cause]
TYPES = ("array", "boolean", "integer", "number", "object", "string")
_NOT_SUPPORTED = ("id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref")
_LIST, _MAP, _KEYS = "x-kubernetes-list-type", "x-kubernetes-map-type", "x-kubernetes-list-map-keys"
_JUNCTORS = ("allOf", "anyOf", "oneOf")
_ROOT_KEYWORDS = (
    "description type format title maximum exclusiveMaximum minimum exclusiveMinimum maxLength minLength pattern "
    "maxItems minItems uniqueItems multipleOf required items properties externalDocs example "
    "x-kubernetes-preserve-unknown-fields x-kubernetes-validations"
)
_AT_ROOT_WITH_STATUS = frozenset(_ROOT_KEYWORDS.split())


@dataclass(frozen=True, slots=True)
class Position:
    """The position of a subschema. path: its field path. no_default: the reason, in the words of the error, that
    forbids a default; "" if a default is allowed. meta: the subschema is apiVersion, kind or metadata of an object, or
    in it.
    """

    path: str
    no_default: str = ""
    meta: bool = False

    def child(self, step: str) -> Position:
        return replace(self, path=f"{self.path}.{step}")


def check_schema(schema: Schema, path: str, *, status: bool) -> list[Cause]:
    """Return the errors in the schema of a version. status: the version has the subresource status."""
    found = list(_root(schema, path, status=status))
    odd = unsupported(schema)
    structural = [] if odd else list(check_structural(schema, path))
    if not odd and not structural:
        structural = list(_defaults(schema, schema, path, meta=False))
    found += structural
    found += _keywords(schema, Position(path), root=True)
    if odd and not found:
        found.append(invalid(path, "", "the schema has a field that is not supported"))
    if not found:
        found += rules.check_expressions(schema, path, dict(_uncorrelated(schema, path)))
    return found


def _uncorrelated(schema: Schema, path: str, above: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path of a subschema, path of the outermost list or object above it that is not correlatable). A value of
    such a subschema has no old value, so its rules cannot use oldSelf.
    """
    if above:
        yield path, above
    fixed = above or (path if schema.get(_MAP) == "atomic" else "")
    for name, inner in (schema.get("properties") or {}).items():
        yield from _uncorrelated(inner, f"{path}.properties[{name}]", fixed)
    if isinstance(schema.get("additionalProperties"), Mapping):
        yield from _uncorrelated(schema["additionalProperties"], f"{path}.additionalProperties", above)
    if isinstance(schema.get("items"), Mapping):
        lost = above or ("" if schema.get(_LIST) == "map" else path)
        yield from _uncorrelated(schema["items"], f"{path}.items", lost)


def _root(schema: Schema, path: str, *, status: bool) -> Causes:
    keywords = [word for word, value in schema.items() if value not in (None, "", False, [], {})]
    if status:
        if schema.get("type") not in ("object", None):
            why = 'only "object" is allowed as the type at the root of the schema if the status subresource is enabled'
            yield invalid(f"{path}.type", schema["type"], why)
        elif odd := sorted(set(keywords) - _AT_ROOT_WITH_STATUS):
            why = f"{', '.join(odd)}: not allowed at the root of the schema if the status subresource is enabled"
            yield invalid(path, "{...}", why)
    if schema.get("nullable"):
        yield forbidden(f"{path}.nullable", "nullable cannot be true at the root")


# ---- the keywords of a schema


def _keywords(schema: Any, place: Position, *, root: bool = False) -> Causes:
    if not isinstance(schema, Mapping):
        return
    yield from _plain_keywords(schema, place)
    more, properties = schema.get("additionalProperties"), schema.get("properties") or {}
    if more is not None and properties and more is not True:
        yield forbidden(
            f"{place.path}.additionalProperties", "additionalProperties and properties are mutual exclusive"
        )
    inside = place.child("additionalProperties")
    if place.meta:
        inside = replace(inside, no_default="inside additionalProperties applying to object metadata")
    yield from _keywords(more, inside)
    for name, inner in properties.items():
        yield from _keywords(inner, _property(schema, place, name, root=root))
    yield from _keywords(schema.get("not"), place.child("not"))
    for word in _JUNCTORS:
        for n, inner in enumerate(schema.get(word) or []):
            yield from _keywords(inner, place.child(f"{word}[{n}]"))
    items = schema.get("items")
    below = place.child("items")
    for n, inner in enumerate(items if isinstance(items, list) else []):
        yield from _keywords(inner, replace(below, path=f"{below.path}[{n}]"))
    yield from _keywords(items, below)
    yield from _lists_and_maps(schema, place.path)
    yield from rules.check_form(schema, place.path)


def _property(schema: Schema, place: Position, name: str, *, root: bool) -> Position:
    below = place.child(f"properties[{name}]")
    if name in values.TYPE_META and (root or schema.get(EMBEDDED)):
        below = replace(below, meta=True, no_default=f"in top-level {name}" if root else below.no_default)
    return below


def _plain_keywords(schema: Schema, place: Position) -> Causes:
    path, kind = place.path, schema.get("type")
    if kind and kind not in TYPES:
        yield not_supported(f"{path}.type", kind, TYPES)
    if schema.get("default") is not None and place.no_default:
        yield forbidden(f"{path}.default", f"must not be set {place.no_default}")
    for word in _NOT_SUPPORTED:
        if schema.get(word) not in (None, "", [], {}):
            yield forbidden(f"{path}.{word}", f"{word} is not supported")
    if kind == "null":
        yield forbidden(f"{path}.type", "type cannot be set to null, use nullable as an alternative")
    if isinstance(schema.get("items"), list):
        yield forbidden(f"{path}.items", "items must be a schema object and not an array")
    if place.meta and schema.get(EMBEDDED):
        yield forbidden(f"{path}.{EMBEDDED}", "must not be used inside of resource meta")
    if schema.get("uniqueItems"):
        why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        yield forbidden(f"{path}.uniqueItems", why)
    if schema.get(PRESERVE) is False:
        yield invalid(f"{path}.{PRESERVE}", False, "must be true or undefined")


def _typed(schema: Schema, path: str, word: str, want: str) -> Causes:
    kind = schema.get("type") or ""
    if schema.get(word) is not None and kind != want:
        why = f"must be {want} if {word} is specified"
        yield invalid(f"{path}.type", kind, why) if kind else required(f"{path}.type", why)


def _lists_and_maps(schema: Schema, path: str) -> Causes:
    list_type, map_type, items = schema.get(_LIST), schema.get(_MAP), schema.get("items")
    yield from _typed(schema, path, _MAP, "object")
    if map_type is not None and map_type not in ("atomic", "granular"):
        yield not_supported(f"{path}.{_MAP}", map_type, ("atomic", "granular"))
    yield from _typed(schema, path, _LIST, "array")
    if schema.get("type") == "array" and list_type == "set" and isinstance(items, Mapping):
        why = f"must be atomic as item of a list with {_LIST}=set"
        if items.get("type") == "array" and items.get(_LIST) not in (None, "atomic"):
            yield invalid(f"{path}.items.{_LIST}", items.get(_LIST), why)
        if items.get("type") == "object" and items.get(_MAP) != "atomic":
            yield invalid(f"{path}.items.{_MAP}", items.get(_MAP), why)
    if list_type is not None and list_type not in ("atomic", "set", "map"):
        yield not_supported(f"{path}.{_LIST}", list_type, ("atomic", "set", "map"))
    if schema.get(_KEYS) and list_type != "map":
        why = f"must be map if {_KEYS} is non-empty"
        yield required(f"{path}.{_LIST}", why) if list_type is None else invalid(f"{path}.{_LIST}", list_type, why)
    if list_type == "map":
        yield from _map_list(schema, path)
    if list_type in ("set", "map") and isinstance(items, Mapping):
        yield from _key_fields(schema, items, path, str(list_type))


def _map_list(schema: Schema, path: str) -> Causes:
    keys, items = schema.get(_KEYS) or [], schema.get("items")
    if not keys:
        yield required(f"{path}.{_KEYS}", f"must not be empty if {_LIST} is map")
    if items is None:
        yield required(f"{path}.items", f"must have a schema if {_LIST} is map")
    elif not isinstance(items, Mapping):
        yield invalid(f"{path}.items", "[...]", f"must only have a single schema if {_LIST} is map")
    elif items.get("type") != "object":
        why = f"must be object if parent array's {_LIST} is map"
        yield invalid(f"{path}.items.type", items.get("type") or "", why)
    else:
        properties = items.get("properties") or {}
        for n, key in enumerate(keys):
            if key not in properties:
                yield invalid(f"{path}.{_KEYS}", keys, "entries must all be names of item properties")
            elif properties[key].get("type") in ("array", "object"):
                why = f"must be a scalar type if parent array's {_LIST} is map"
                yield invalid(f"{path}.items.properties[{key}].type", properties[key]["type"], why)
            if key in keys[:n]:
                yield invalid(f"{path}.{_KEYS}", keys, "must not contain duplicate entries")


def _key_fields(schema: Schema, items: Schema, path: str, kind: str) -> Causes:
    """Yield an error if the list's items may be null, and for each map key that an item may lack or that may be null.
    kind: the list type, set or map.
    """
    if items.get("nullable"):
        yield forbidden(f"{path}.items.nullable", f"cannot be nullable when {_LIST} is {kind}")
    for key in (schema.get(_KEYS) or []) if kind == "map" else ():
        inner = (items.get("properties") or {}).get(key)
        if inner is None:
            continue
        where, why = f"{path}.items.properties[{key}]", f"this property is in {_KEYS}, so it "
        if key not in (items.get("required") or []) and inner.get("default") is None:
            yield required(f"{where}.default", why + "must have a default or be a required property")
        if inner.get("nullable"):
            yield forbidden(f"{where}.nullable", why + "cannot be nullable")


# ---- defaults


def _defaults(schema: Schema, root: Schema, path: str, *, meta: bool) -> Causes:
    """Yield an error for each default that the schema itself refuses or prunes. The function descends into `items` and
    `properties` only. root: the schema of the nearest whole object. meta: the part lies in its type or metadata.
    """
    if schema.get(EMBEDDED):
        meta, root = False, schema
    if schema.get("default") is not None:
        yield from _default(schema, f"{path}.default", meta=meta)
    if isinstance(schema.get("items"), Mapping):
        yield from _defaults(schema["items"], root, f"{path}.items", meta=meta)
    whole = schema is root
    for name, inner in (schema.get("properties") or {}).items():
        inside = meta or (whole and name in values.TYPE_META)
        yield from _defaults(inner, root, f"{path}.properties[{name}]", meta=inside)


def _default(schema: Schema, path: str, *, meta: bool) -> Causes:
    wanted = copy.deepcopy(schema["default"])
    if not meta:
        unknown: list[str] = []
        values.prune(wanted, schema, "", unknown)
        if not equal(wanted, schema["default"]):
            yield invalid(path, schema["default"], f"must not have unknown fields: {', '.join(unknown)}")
        try:
            values.coerce_embedded(wanted, schema, "", unknown)
        except gotypes.BadType as err:
            yield invalid(path, schema["default"], str(err))
            return
        if problems := list(check_embedded(wanted, schema, path)):
            yield from problems
            return
    yield from _placed(check(schema["default"], schema), path)


def _placed(causes: list[Cause], path: str) -> Causes:
    """Yield the causes of a value with `path`, the path of the value, before their fields."""
    for cause in causes:
        own = (
            path if cause.field == "<nil>" else f"{path}.{cause.field}" if cause.field[0] != "[" else path + cause.field
        )
        yield Cause(own, cause.message, cause.reason)
