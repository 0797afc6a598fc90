"""Validates a custom object by the schema of its version, with kube-apiserver's causes and field paths (kube-openapi,
pkg/validation/validate; apiextensions-apiserver, pkg/apiserver/validation).

An error of a junctor (allOf, anyOf, oneOf, not) has no field: upstream writes "<nil>". On an update, what did not
change is not judged again (KEP-4008): a value that equals its old one is right, whatever the schema says by now.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from podwire_base.kube.errors import Cause

from ..rules.fields import invalid, not_supported, required
from . import formats, patterns
from .values import INT_OR_STRING, Schema, values_schema

NOWHERE = "<nil>"
_MISSING: Any = object()
UNKNOWN: Any = object()  # the old value of what has none to compare with
_INT64, _INT32 = 2**63, 2**31
_NUMERIC = ("integer", "number")


@dataclass(slots=True)
class Result:
    """count: how many checks the value went through. Of several alternatives, the one with most is reported."""

    causes: list[Cause] = field(default_factory=list)
    count: int = 0

    def merge(self, other: Result) -> None:
        self.causes += other.causes
        self.count += other.count


def check(obj: Any, schema: Schema, old: Any = UNKNOWN, path: str = "") -> list[Cause]:
    """Return what is wrong with a value. old: the value that an update replaces."""
    return _check(obj, schema, path, old).causes


def equal(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(v, other[k]) for k, v in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def kind_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer" if -_INT64 <= value < _INT64 else "number"
    if isinstance(value, float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def types_of(schema: Schema) -> tuple[str, ...]:
    if schema.get(INT_OR_STRING):
        return ("integer", "string")
    found = schema.get("type")
    return (found,) if found else ()


def _check(value: Any, schema: Schema, path: str, old: Any) -> Result:
    result = Result()
    types, kind = types_of(schema), kind_of(value)
    _check_type(value, kind, types, schema, path, result)
    if value is not None:
        _junctors(value, schema, path, old, result)
        if isinstance(value, str):
            _check_string(value, schema, types, path, result)
        elif kind in _NUMERIC:
            _check_number(value, schema, types, path, result)
        elif isinstance(value, list):
            _check_list(value, schema, path, old, result)
    if schema.get("enum") and not any(equal(value, one) for one in schema["enum"]):
        allowed = [one if isinstance(one, str) else json.dumps(one) for one in schema["enum"]]
        result.causes.append(not_supported(path or NOWHERE, value, allowed))
    result.count += 1
    if isinstance(value, dict):
        _check_object(value, schema, path, old, result)
    result.count += 1
    if result.causes and old is not UNKNOWN and equal(value, old):
        result.causes = []
    return result


def _wrong(path: str, value: Any, why: str) -> Cause:
    return invalid(path or NOWHERE, "" if value is None else value, f"{path} in body {why}".strip())


def _wrong_type(path: str, value: Any, want: str, got: str) -> Cause:
    text = f'Invalid value: "{got}": {path} in body must be of type {want}: "{got}"'
    return Cause(path or NOWHERE, text, "FieldValueTypeInvalid")


def _check_type(value: Any, kind: str, types: tuple[str, ...], schema: Schema, path: str, result: Result) -> None:
    if not types:
        return
    result.count += 1
    if value is None:
        if not schema.get("nullable"):
            result.causes.append(_wrong_type(path, value, ",".join(types), "null"))
        return
    whole = kind == "number" and "integer" in types and float(value).is_integer() and abs(value) < _INT64
    if kind not in types and not whole and not (kind == "integer" and "number" in types):
        result.causes.append(_wrong_type(path, value, ",".join(types), kind))


# ---- scalars


def _check_string(value: str, schema: Schema, types: tuple[str, ...], path: str, result: Result) -> None:
    length, most, least = len(value), schema.get("maxLength"), schema.get("minLength")
    if most is not None and length > most:
        cause = Cause(path or NOWHERE, f"Too long: may not be more than {most} bytes", "FieldValueTooLong")
        result.causes.append(cause)
    elif least is not None and length < least:
        result.causes.append(_wrong(path, value, f"should be at least {least} chars long"))
    elif schema.get("pattern") and not patterns.found(schema["pattern"], value):
        result.causes.append(_wrong(path, value, f"should match '{schema['pattern']}'"))
    result.count += 1
    test = formats.check_of(schema.get("format") or "") if types in ((), ("string",)) else None
    if test is not None and not test(value):
        result.causes.append(_wrong_type(path, value, schema["format"], value))
    result.count += 1


def _in_range(value: float, types: tuple[str, ...], form: str) -> bool:
    """Whether the number fits its type and format."""
    if "integer" in types:
        limit = _INT32 if form == "int32" else _INT64
        return float(value).is_integer() and -limit <= value < limit
    return not (form == "float" and math.isfinite(value) and abs(value) > 3.4028234663852886e38)


def _check_number(value: float, schema: Schema, types: tuple[str, ...], path: str, result: Result) -> None:
    form = str(schema.get("format") or "")
    if not _in_range(value, types, form):
        told = f"with format {form}" if form else "(default format)"
        why = f"Checked value must be of type {'integer' if 'integer' in types else 'number'} {told}"
        result.causes.append(Cause(NOWHERE, f'Invalid value: "": {why}'))
    factor, least, most = (schema.get(word) for word in ("multipleOf", "minimum", "maximum"))
    if factor is not None and not _multiple(value, factor):
        result.causes.append(_wrong(path, value, f"should be a multiple of {factor}"))
    if most is not None and (value >= most if schema.get("exclusiveMaximum") else value > most):
        than = "less than" if schema.get("exclusiveMaximum") else "less than or equal to"
        result.causes.append(_wrong(path, value, f"should be {than} {most}"))
    if least is not None and (value <= least if schema.get("exclusiveMinimum") else value < least):
        than = "greater than" if schema.get("exclusiveMinimum") else "greater than or equal to"
        result.causes.append(_wrong(path, value, f"should be {than} {least}"))
    result.count += 1


def _multiple(value: float, factor: float) -> bool:
    if isinstance(value, int) and isinstance(factor, int):
        return factor > 0 and value % factor == 0
    return factor > 0 and (value / factor).is_integer()


# ---- lists, objects


def old_item(schema: Schema, item: Any, old: Any) -> Any:
    """Return the item of the old list that an item replaces: the one with its keys. Other lists have no such items."""
    if schema.get("x-kubernetes-list-type") != "map" or not isinstance(old, list) or not isinstance(item, dict):
        return UNKNOWN
    keys = schema.get("x-kubernetes-list-map-keys") or []
    for one in old:
        if isinstance(one, dict) and all(equal(one.get(k), item.get(k)) for k in keys):
            return one
    return UNKNOWN


def _check_list(value: list[Any], schema: Schema, path: str, old: Any, result: Result) -> None:
    items = schema.get("items")
    if isinstance(items, Mapping):
        for n, one in enumerate(value):
            result.merge(_check(one, items, f"{path}[{n}]", old_item(schema, one, old)))
    least, most = schema.get("minItems"), schema.get("maxItems")
    if least is not None and len(value) < least:
        result.causes.append(_wrong(path, value, f"should have at least {least} items"))
    if most is not None and len(value) > most:
        result.causes.append(_too_many(path, len(value), most))
    result.count += 1


def _too_many(path: str, count: int, limit: int) -> Cause:
    return Cause(path or NOWHERE, f"Too many: {count}: must have at most {limit} items", "FieldValueTooMany")


def old_field(schema: Schema, name: str, old: Any) -> Any:
    """Return the old value of a field. The fields of an atomic map have none: the map is replaced as a whole."""
    if not isinstance(old, dict) or name not in old or schema.get("x-kubernetes-map-type") == "atomic":
        return UNKNOWN
    return old[name]


def _check_object(value: dict[str, Any], schema: Schema, path: str, old: Any, result: Result) -> None:
    least, most = schema.get("minProperties"), schema.get("maxProperties")
    if least is not None and len(value) < least:
        result.causes.append(_wrong(path, value, f"should have at least {least} properties"))
        return
    if most is not None and len(value) > most:
        result.causes.append(_too_many(path, len(value), most))
        return
    properties, values = schema.get("properties") or {}, values_schema(schema)
    for name, inner in value.items():
        if name in properties:
            continue
        if schema.get("additionalProperties") is False:
            result.causes.append(_wrong(path, name, f"{name} is a forbidden property"))
        elif values is not None:
            result.merge(_check(inner, values, f"{path}.{name}", old_field(schema, name, old)))
    for name, inner_schema in properties.items():
        inner = value.get(name, _MISSING)
        if inner is not _MISSING:
            below = f"{path}.{name}" if path else name
            result.merge(_check(inner, inner_schema, below, old_field(schema, name, old)))
    for name in schema.get("required") or []:
        if name not in value and (properties.get(name) or {}).get("default") is None:
            result.causes.append(required(f"{path}.{name}" if path else name))


# ---- junctors


def _junctor(path: str, text: str) -> Cause:
    return Cause(NOWHERE, f'Invalid value: "": "{path}" must {text}')


def _alternatives(value: Any, schemas: list[Schema], path: str, old: Any) -> tuple[int, Result | None, Result | None]:
    """Return (how many accept the value, the first result that does, the result of the best of those that do not)."""
    good, first, best = 0, None, None
    for one in schemas:
        found = _check(value, one, path, old)
        if not found.causes:
            good += 1
            first, best = first or found, None
        elif not good and (best is None or found.count > best.count):
            best = found
    return good, first, best


def _junctors(value: Any, schema: Schema, path: str, old: Any, result: Result) -> None:
    if schema.get("anyOf"):
        good, _, best = _alternatives(value, schema["anyOf"], path, old)
        if not good:
            result.causes.append(_junctor(path, "validate at least one schema (anyOf)"))
        if best is not None:
            result.merge(best)
    if schema.get("oneOf"):
        good, first, best = _alternatives(value, schema["oneOf"], path, old)
        if good != 1:
            found = f"Found {good} valid alternatives" if good else "Found none valid"
            result.causes.append(_junctor(path, f"validate one and only one schema (oneOf). {found}"))
        if (rest := first if good == 1 else best) is not None:
            result.merge(rest)
    if schema.get("allOf"):
        all_results = [_check(value, one, path, old) for one in schema["allOf"]]
        for one in all_results:
            result.merge(one)
        if any(one.causes for one in all_results):
            none = "" if any(not one.causes for one in all_results) else ". None validated"
            result.causes.append(_junctor(path, f"validate all the schemas (allOf){none}"))
    if schema.get("not") is not None and not _check(value, schema["not"], path, UNKNOWN).causes:
        result.causes.append(_junctor(path, "not validate the schema (not)"))
    result.count += 1
