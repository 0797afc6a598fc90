"""Random values for the schemas of an OpenAPI document, right and wrong ones. Pure: the source of chance is given."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from podwire_base.kube.meta import Object

_WRONG: tuple[Any, ...] = (
    None, "", "x" * 300, "a b", "-1", "\0", -1, 0, 2**31, 2**63, 10**40, 1.5, True, [], {}, [None], {"a": 1},
)  # fmt: skip
_TEXTS = (
    "a", "web", "web-1", "a.example.com", "example.com/x", "10.96.0.7", "fd00::1", "10.0.0.0/8", "80%", "TCP", "Always",
    "ClusterIP", "100Mi", "0.5", "* * * * *", "https://a.example.com/x", "/a/b", "IPv4", "Local", "self.a > 1",
)  # fmt: skip
MAX_DEPTH = 7


class Drawer:
    """schemas: `components.schemas` of the document. mistakes: the share of values that are wrong."""

    def __init__(self, schemas: Mapping[str, Any], chance: random.Random, mistakes: float = 0.03) -> None:
        self.schemas, self.chance, self.mistakes = schemas, chance, mistakes

    def value(self, schema: Mapping[str, Any], depth: int = 0) -> Any:
        """Return a value of a schema."""
        if self.chance.random() < self.mistakes:
            return self.chance.choice(_WRONG)
        if "$ref" in schema:
            return self.value(self.schemas[schema["$ref"].rpartition("/")[2]], depth)
        for word in ("allOf", "oneOf", "anyOf"):
            if schema.get(word):
                return self.value(self.chance.choice(schema[word]), depth)
        kind = schema.get("type")
        if kind == "object" or "properties" in schema:
            return self._object(schema, depth)
        if kind == "array":
            most = 0 if depth > MAX_DEPTH else 2
            return [self.value(schema.get("items") or {}, depth + 1) for _ in range(self.chance.randint(0, most))]
        return self._scalar(schema, kind)

    def _object(self, schema: Mapping[str, Any], depth: int) -> Object:
        needed, out = schema.get("required") or (), dict[str, Any]()
        for name, inner in (schema.get("properties") or {}).items():
            share = 0.25 if depth < 2 else 0.12
            if name in needed or (depth <= MAX_DEPTH and self.chance.random() < share):
                out[name] = self.value(inner, depth + 1)
        more = schema.get("additionalProperties")
        if isinstance(more, Mapping) and self.chance.random() < 0.5:
            out[self.chance.choice(_TEXTS)] = self.value(more, depth + 1)
        return out

    def _scalar(self, schema: Mapping[str, Any], kind: str | None) -> Any:
        if schema.get("enum"):
            return self.chance.choice(schema["enum"])
        if kind == "integer":
            return self.chance.choice((0, 1, 2, 80, 443, 30001, 65535, 600))
        if kind == "number":
            return self.chance.choice((0, 1.5))
        if kind == "boolean":
            return self.chance.random() < 0.5
        form = schema.get("format")
        if form == "date-time":
            return "2027-01-15T08:00:00Z"
        if form == "byte":
            return "YQ=="
        if form == "int-or-string":
            return self.chance.choice((80, "http", "25%"))
        return self.chance.choice(_TEXTS)
