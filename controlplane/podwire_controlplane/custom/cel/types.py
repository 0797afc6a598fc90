"""Checks a CEL expression against the schema of the value that it is about: fields that do not exist, values of
different types that are compared, and loops that never end. CEL's own checker takes all fields for dynamic. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..values import INT_OR_STRING, TYPE_META, Schema, values_schema
from .ast import Expr

MAX_COST = 10_000_000  # iterations; upstream's limit of one expression's estimated cost
_REQUEST = 3 * 1024 * 1024  # bytes: no list is longer than a request
_COMPARED = ("_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_")
_KINDS = {"integer": "int", "number": "double", "string": "string", "boolean": "bool", "array": "list"}
_FORMATS = {"date": "timestamp", "date-time": "timestamp", "datetime": "timestamp", "duration": "duration",
            "byte": "bytes"}  # fmt: skip
_WORDS = (
    "true false null in as break const continue else for function if import let loop package namespace return var "
    "void while"
)
_RESERVED = frozenset(_WORDS.split())
_ESCAPES = (("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__"))
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class BadExpression(ValueError):
    """The expression does not fit the schema."""


def escaped(name: str) -> str | None:
    """Return the name of a field as CEL spells it; None for a name that no expression can spell."""
    if name in _RESERVED:
        return f"__{name}__"
    for text, escape in _ESCAPES:
        name = name.replace(text, escape)
    return name if _NAME.fullmatch(name) else None


def fields(schema: Schema, *, root: bool = False) -> dict[str, Schema]:
    """Return the fields of an object by their names in CEL. root: it is a whole object: of the metadata only names
    are seen.
    """
    found = {spelled: inner for name, inner in (schema.get("properties") or {}).items() if (spelled := escaped(name))}
    if root or schema.get("x-kubernetes-embedded-resource"):
        text = {"type": "string"}
        meta = {"type": "object", "properties": {"name": text, "generateName": text}}
        found |= dict(zip(TYPE_META, (text, text, meta), strict=True))
    return found


def kind(schema: Schema | None) -> str:
    """Return the CEL type of a value of the schema, "" if it is dynamic."""
    if schema is None or schema.get(INT_OR_STRING) or schema.get("nullable"):
        return ""
    found = _KINDS.get(schema.get("type") or "", "")
    return _FORMATS.get(schema.get("format") or "", found) if found == "string" else found


def _constant(value: Any) -> str:
    for type_, name in ((bool, "bool"), (int, "int"), (float, "double"), (str, "string"), (bytes, "bytes")):
        if isinstance(value, type_):
            return name
    return ""


class Checker:
    """scope: variable -> schema, None for a dynamic one. cost: how often the expression runs at its place."""

    def __init__(self, scope: Mapping[str, Schema | None], cost: int = 1, *, root: bool = False) -> None:
        self.scope, self.cost, self.worst = dict(scope), cost, cost
        self.roots = [schema for schema in scope.values() if root]

    def check(self, expr: Expr) -> Schema | None:
        """Return the schema of the expression's value, None for dynamic. Raises BadExpression."""
        found: Schema | None = getattr(self, "_" + expr.kind)(expr)
        return found

    def _const(self, expr: Expr) -> Schema | None:
        names = {"bool": "boolean", "int": "integer", "double": "number", "string": "string"}
        made = names.get(_constant(expr.value))
        return {"type": made} if made else None

    def _ident(self, expr: Expr) -> Schema | None:
        return self.scope.get(expr.name)

    def _field(self, owner: Schema | None, name: str) -> Schema | None:
        if owner is None or owner.get("type") != "object":
            if kind(owner) in ("int", "double", "string", "bool", "list", "bytes"):
                raise BadExpression(f"type '{kind(owner)}' does not support field selection")
            return None
        if owner.get("additionalProperties"):
            return values_schema(owner)
        known = fields(owner, root=any(owner is one for one in self.roots))
        if name not in known:
            raise BadExpression(f"undefined field '{name}'")
        return known[name]

    def _select(self, expr: Expr) -> Schema | None:
        found = self._field(self.check(expr.parts[0]), expr.name)
        return {"type": "boolean"} if expr.value else found

    def _list(self, expr: Expr) -> None:
        for part in expr.parts:
            self.check(part)

    _map = _list

    def _call(self, expr: Expr) -> Schema | None:
        if expr.name == "_?._" and expr.parts[1].kind == "const":
            self._field(self.check(expr.parts[0]), str(expr.parts[1].value))
            return None
        found = [self.check(part) for part in expr.parts]
        if expr.name == "__pairs":
            return _pairs(found[0])
        kinds = [kind(one) for one in found]
        if expr.name in _COMPARED:
            self._compare(expr.name, kinds)
            return {"type": "boolean"}
        if expr.name in ("_&&_", "_||_", "!_"):
            if odd := [one for one in kinds if one not in ("", "bool")]:
                raise BadExpression(f"found no matching overload for '{expr.name}' applied to '({odd[0]})'")
            return {"type": "boolean"}
        if expr.name == "_+_" and all(kinds) and kinds[0] != kinds[1] and not {"timestamp", "duration"} & {*kinds}:
            raise BadExpression(f"found no matching overload for '_+_' applied to '({', '.join(kinds)})'")
        if expr.name == "_[_]" and found[0] is not None:
            return found[0].get("items") if found[0].get("type") == "array" else values_schema(found[0])
        return None

    @staticmethod
    def _compare(name: str, kinds: list[str]) -> None:
        numeric = name not in ("_==_", "_!=_") and {*kinds} <= {"int", "double"}
        if all(kinds) and kinds[0] != kinds[1] and not numeric:
            raise BadExpression(f"found no matching overload for '{name}' applied to '({', '.join(kinds)})'")

    def _loop(self, expr: Expr) -> None:
        over = self.check(expr.parts[0])
        before, outer = dict(self.scope), self.cost
        item, total = expr.value
        known = over is not None and over.get("type") in ("array", "object")
        self.scope[total] = None
        self.check(expr.parts[1])
        self.scope[item] = (over.get("items") if over.get("type") == "array" else {"type": "string"}) if (
            known and over is not None
        ) else None  # fmt: skip
        self.cost = outer * (bound(over) if known and over is not None else 1)
        self.worst = max(self.worst, self.cost)
        for part in expr.parts[2:4]:
            self.check(part)
        self.cost = outer
        for part in expr.parts[4:]:
            self.check(part)
        self.scope = before


def _pairs(over: Schema | None) -> Schema | None:
    """Return the schema of the pairs of key and value of a list or map (twovariables.py)."""
    if over is None or over.get("type") not in ("array", "object"):
        return None
    key, value = ("integer", over.get("items")) if over["type"] == "array" else ("string", values_schema(over))
    pair = {"type": "object", "properties": {"k": {"type": key}, "v": value}}
    return {"type": "array", "maxItems": bound(over), "items": pair}


def bound(schema: Schema) -> int:
    """Return how many items a list or map has at most: as many as fit into a request, if the schema does not say."""
    word = "maxItems" if schema.get("type") == "array" else "maxProperties"
    told = schema.get(word)
    if told is not None:
        return int(told)
    inner = schema.get("items") if schema.get("type") == "array" else values_schema(schema)
    return _REQUEST // (least(inner) + (0 if word == "maxItems" else 6))


def least(schema: Schema | None) -> int:
    """Return how many bytes a value of the schema has at least, with the comma after it."""
    if schema is None:
        return 2
    if schema.get("type") == "string":
        return 3 + int(schema.get("minLength") or 0)
    if schema.get("type") == "object":
        properties = schema.get("properties") or {}
        wanted = [name for name in schema.get("required") or [] if name in properties]
        return 3 + sum(len(name) + 3 + least(properties[name]) for name in wanted)
    if schema.get("type") == "array":
        return 3 + int(schema.get("minItems") or 0) * least(schema.get("items"))
    return 2 if schema.get("type") != "boolean" else 5


def parts(schema: Schema, path: str, cost: int = 1) -> Iterator[tuple[str, Schema, int]]:
    """Yield (path, schema, how many values of it an object has) for the schema and every part of it."""
    yield path, schema, cost
    for name, inner in (schema.get("properties") or {}).items():
        yield from parts(inner, f"{path}.properties[{name}]", cost)
    if isinstance(schema.get("items"), Mapping):
        yield from parts(schema["items"], f"{path}.items", cost * bound(schema))
    if (values := values_schema(schema)) is not None:
        yield from parts(values, f"{path}.additionalProperties", cost * bound(schema))
