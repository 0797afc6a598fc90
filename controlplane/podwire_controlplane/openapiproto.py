"""An OpenAPI 2 document as a protobuf message: kubectl asks for nothing else at /openapi/v2. Pure.

The messages are those of gnostic's OpenAPIv2.proto (package openapi.v2): each has a row here that says, for each key of
the JSON, the number of its field and how its value is written. Keys that begin with `x-` are vendor extensions, with
their value as JSON. A key without a row has no place in the message and is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from podwire_base.kube.meta import Object

from .protobuf import message

MEDIA = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
ASKED = (MEDIA, MEDIA.replace("v2.v1", "v2@v1"))  # clients use the old name, which is no media type by RFC 6838
Value = bytes | int | float
Write = Callable[[Any], Value]
Row = Mapping[str, tuple[int, Write]]


def encode(document: Object) -> bytes:
    """Return the message `Document`."""
    return _fields(document, _DOCUMENT, 16)


def _fields(obj: Object, row: Row, extensions: int) -> bytes:
    """extensions: the number of the field for vendor extensions."""
    parts: list[tuple[int, Value]] = []
    for key, value in obj.items():
        if key.startswith("x-"):
            parts.append((extensions, _named(key, _any(value))))
        elif key in row:
            number, write = row[key]
            # a list is repeated, but for `items`, which is one schema here
            parts += [(number, write(one)) for one in (value if isinstance(value, list) else [value])]
    return message(*parts)


def _any(value: Any) -> bytes:
    """Return an `Any`: its field `yaml` may hold JSON, which is YAML."""
    return message((2, json.dumps(value, ensure_ascii=False).encode()))


def _named(name: str, value: Value) -> bytes:
    return message((1, name.encode()), (2, value))


def _map(number: int, write: Write) -> Write:
    """Return the writer of a message that is a map: an entry of name and value for each key."""
    return lambda found: message(*((number, _named(name, write(value))) for name, value in found.items()))


def _text(value: Any) -> bytes:
    return str(value).encode()


def _schema(obj: Object) -> bytes:
    return _fields(obj, _SCHEMA, 31)


def _additional(value: Any) -> bytes:
    return message((2, value)) if isinstance(value, bool) else message((1, _schema(value)))


_SCHEMA: Row = {
    "$ref": (1, _text),
    "format": (2, _text),
    "title": (3, _text),
    "description": (4, _text),
    "default": (5, _any),
    "multipleOf": (6, float),
    "maximum": (7, float),
    "exclusiveMaximum": (8, int),
    "minimum": (9, float),
    "exclusiveMinimum": (10, int),
    "maxLength": (11, int),
    "minLength": (12, int),
    "pattern": (13, _text),
    "maxItems": (14, int),
    "minItems": (15, int),
    "uniqueItems": (16, int),
    "maxProperties": (17, int),
    "minProperties": (18, int),
    "required": (19, _text),
    "enum": (20, _any),
    "additionalProperties": (21, _additional),
    "type": (22, lambda value: message((1, _text(value)))),
    "items": (23, lambda value: message((1, _schema(value)))),
    "allOf": (24, _schema),
    "properties": (25, _map(1, _schema)),
    "discriminator": (26, _text),
    "readOnly": (27, int),
    "example": (30, _any),
}
_BODY: Row = {
    "description": (1, _text),
    "name": (2, _text),
    "in": (3, _text),
    "required": (4, int),
    "schema": (5, _schema),
}
_QUERY: Row = {
    "required": (1, int),
    "in": (2, _text),
    "description": (3, _text),
    "name": (4, _text),
    "type": (6, _text),
    "uniqueItems": (20, int),
}
_PATH: Row = {
    "required": (1, int),
    "in": (2, _text),
    "description": (3, _text),
    "name": (4, _text),
    "type": (5, _text),
    "uniqueItems": (19, int),
}
_PLACES: dict[str, tuple[int, Row, int]] = {"query": (3, _QUERY, 23), "path": (4, _PATH, 22)}


def _parameter(obj: Object) -> bytes:
    """Return a `ParametersItem`, which is one of two forms of a `Parameter`."""
    if obj["in"] == "body":
        return message((1, message((1, _fields(obj, _BODY, 6)))))
    number, row, extensions = _PLACES[obj["in"]]
    return message((1, message((2, message((number, _fields(obj, row, extensions)))))))


def _response(obj: Object) -> bytes:
    """Return a `ResponseValue` with a `Response`."""
    return message((1, _fields(obj, _RESPONSE, 5)))


_RESPONSE: Row = {"description": (1, _text), "schema": (2, lambda value: message((1, _schema(value))))}
_OPERATION: Row = {
    "tags": (1, _text),
    "description": (3, _text),
    "operationId": (5, _text),
    "produces": (6, _text),
    "consumes": (7, _text),
    "parameters": (8, _parameter),
    "responses": (9, _map(1, _response)),
    "schemes": (10, _text),
}
_ITEM: Row = {
    **{
        name: (number, lambda value: _fields(value, _OPERATION, 13))
        for name, number in (("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8))
    },
    "parameters": (9, _parameter),
}
_INFO: Row = {"title": (1, _text), "version": (2, _text), "description": (3, _text)}
_DOCUMENT: Row = {
    "swagger": (1, _text),
    "info": (2, lambda value: _fields(value, _INFO, 7)),
    "paths": (8, _map(2, lambda value: _fields(value, _ITEM, 10))),
    "definitions": (9, _map(1, _schema)),
}
