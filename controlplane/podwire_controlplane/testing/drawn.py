"""Generates random valid and invalid values for OpenAPI schemas. Pure: the caller passes the random generator."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from podwire_base.kube.meta import Object

_ARBITRARY: tuple[Any, ...] = (
    None, "", "x" * 300, "a b", "-1", "\0", -1, 0, 2**31, 2**63, 10**40, 1.5, True, [], {}, [None], {"a": 1},
)  # fmt: skip
_TEXTS = (
    "a", "web", "web-1", "a.example.com", "example.com/x", "10.96.0.7", "fd00::1", "10.0.0.0/8", "80%", "TCP", "Always",
    "ClusterIP", "100Mi", "0.5", "* * * * *", "https://a.example.com/x", "/a/b", "IPv4", "Local", "self.a > 1",
)  # fmt: skip
MAX_DEPTH = 7  # deeper objects have only required properties and map entries, and deeper lists are empty


class Drawer:
    """Generates random values. schemas: `components.schemas` of the document. mistakes: the probability with which one
    call of `value` returns an element of _ARBITRARY without regard to the schema. Nested values are calls of their own.
    """

    def __init__(self, schemas: Mapping[str, Any], rng: random.Random, mistakes: float = 0.03) -> None:
        self.schemas, self.rng, self.mistakes = schemas, rng, mistakes

    def value(self, schema: Mapping[str, Any], depth: int = 0) -> Any:
        """Return a random value for a schema, mostly a valid one. It uses one subschema of allOf. depth: of nesting."""
        if self.rng.random() < self.mistakes:
            return self.rng.choice(_ARBITRARY)
        if "$ref" in schema:
            return self.value(self.schemas[schema["$ref"].rpartition("/")[2]], depth)
        for word in ("allOf", "oneOf", "anyOf"):
            if schema.get(word):
                return self.value(self.rng.choice(schema[word]), depth)
        kind = schema.get("type")
        if kind == "object" or "properties" in schema:
            return self._object(schema, depth)
        if kind == "array":
            longest = 0 if depth > MAX_DEPTH else 2
            return [self.value(schema.get("items") or {}, depth + 1) for _ in range(self.rng.randint(0, longest))]
        return self._scalar(schema, kind)

    def _object(self, schema: Mapping[str, Any], depth: int) -> Object:
        required, out = schema.get("required") or (), dict[str, Any]()
        for name, inner in (schema.get("properties") or {}).items():
            probability = 0.25 if depth < 2 else 0.12
            if name in required or (depth <= MAX_DEPTH and self.rng.random() < probability):
                out[name] = self.value(inner, depth + 1)
        more = schema.get("additionalProperties")
        if isinstance(more, Mapping) and self.rng.random() < 0.5:
            out[self.rng.choice(_TEXTS)] = self.value(more, depth + 1)
        return out

    def _scalar(self, schema: Mapping[str, Any], kind: str | None) -> Any:
        if schema.get("enum"):
            return self.rng.choice(schema["enum"])
        if kind == "integer":
            return self.rng.choice((0, 1, 2, 80, 443, 30001, 65535, 600))
        if kind == "number":
            return self.rng.choice((0, 1.5))
        if kind == "boolean":
            return self.rng.random() < 0.5
        form = schema.get("format")
        if form == "date-time":
            return "2027-01-15T08:00:00Z"
        if form == "byte":
            return "YQ=="
        if form == "int-or-string":
            return self.rng.choice((80, "http", "25%"))
        return self.rng.choice(_TEXTS)
