"""Validates objects and makes OpenAPI v3 documents. The schemas of the served kinds come from lightkube-models, which
is generated from Kubernetes' published schemas.
"""

from __future__ import annotations

import importlib
import re
import types
import typing
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from typing import Any

import msgspec

from . import patch
from .errors import Cause
from .meta import Object
from .registry import GROUPS, RESOURCES, Resource

_MODULES = {
    "": "core_v1",
    "apps": "apps_v1",
    "discovery.k8s.io": "discovery_v1",
    "coordination.k8s.io": "coordination_v1",
}
_PACKAGES = {
    "core_v1": "io.k8s.api.core.v1",
    "apps_v1": "io.k8s.api.apps.v1",
    "discovery_v1": "io.k8s.api.discovery.v1",
    "coordination_v1": "io.k8s.api.coordination.v1",
    "meta_v1": "io.k8s.apimachinery.pkg.apis.meta.v1",
}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_MISSING = "is required and missing"


@cache
def model(resource: Resource) -> type[Any]:
    """Returns the lightkube-models class of a kind."""
    module = importlib.import_module(f"lightkube.models.{_MODULES[resource.group]}")
    found: type[Any] = getattr(module, resource.kind)
    return found


@cache
def _fields(cls: Any) -> dict[str, tuple[Any, bool]]:
    """Returns JSON name of a field -> (type, whether the field is required)."""
    return {f.encode_name: (f.type, f.required) for f in msgspec.structs.fields(cls)}


def _strip_optional(kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(kind) if a is not type(None)]
        return rest[0] if len(rest) == 1 else typing.Union[tuple(rest)]  # noqa: UP007 - built at run time
    return kind


def check(resource: Resource, obj: Object) -> tuple[list[str], list[Cause]]:
    """Check an object from a client. Returns (unknown fields, type errors), both with the field's full path.

    Unknown fields are separate, because the request parameter `fieldValidation` decides whether they are errors
    (KEP-2885).
    """
    unknown: list[str] = []
    causes: list[Cause] = []
    for path, message in _check(model(resource), obj, ""):
        if message is None:
            unknown.append(path)
        else:
            causes.append(
                Cause(path, message, "FieldValueRequired" if message == _MISSING else "FieldValueTypeInvalid")
            )
    return unknown, causes


def drop_nulls(value: Any) -> None:
    """Remove null members from `value` and all nested objects, in place, because the Kubernetes API treats such members
    as absent.
    """
    if isinstance(value, dict):
        for name in [n for n, item in value.items() if item is None]:
            del value[name]
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        drop_nulls(item)


def _check(kind: Any, value: Any, path: str) -> Iterator[tuple[str, str | None]]:  # noqa: PLR0912 - one branch a JSON type
    kind = _strip_optional(kind)
    if value is None:
        yield path, "is null; give a value or leave it out"
        return
    origin = typing.get_origin(kind)
    if origin is list:
        if not isinstance(value, list):
            yield path, f"expected a list, got {_name(value)}"
            return
        for index, item in enumerate(value):
            yield from _check(typing.get_args(kind)[0], item, f"{path}[{index}]")
    elif origin is typing.Union:
        if not isinstance(value, typing.get_args(kind)) or isinstance(value, bool):
            yield path, f"expected a number or a string, got {_name(value)}"
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if not isinstance(value, dict):
            yield path, f"expected an object, got {_name(value)}"
            return
        fields = _fields(kind)
        for name, item in value.items():
            inner = f"{path}.{name}" if path else name
            if name in fields:
                yield from _check(fields[name][0], item, inner)
            else:
                yield inner, None
        # for top-level objects, other code sets defaults or has stricter rules
        if "[" in path and not path.startswith("status"):
            yield from (
                (f"{path}.{name}", _MISSING) for name, (_, required) in fields.items() if required and name not in value
            )
    elif kind is dict or origin is dict:
        if not isinstance(value, dict):
            yield path, f"expected an object, got {_name(value)}"
        elif path.rsplit(".", 1)[-1] in ("labels", "annotations", "selector", "matchLabels", "nodeSelector", "data"):
            for name, item in value.items():
                if not isinstance(item, str):
                    yield f"{path}.{name}", f"expected a string, got {_name(item)}; put it in quotes"
    elif kind is datetime:
        if not isinstance(value, str) or not _TIME.fullmatch(value):
            yield path, f"expected a time such as 2026-01-31T12:00:00Z, got {value!r}"
    elif kind is bool:
        if not isinstance(value, bool):
            yield path, f"expected true or false, got {_name(value)}"
    elif kind is int:
        if isinstance(value, bool) or not isinstance(value, int):
            yield path, f"expected a whole number, got {_name(value)}"
    elif kind is str and not isinstance(value, str) and not _number_as_quantity(path, value):
        yield path, f"expected a string, got {_name(value)}; put it in quotes"


def _number_as_quantity(path: str, value: Any) -> bool:
    """Whether this is a quantity given as a number. Quantities are strings in the model, and plain numbers in many
    manifests (`cpu: 1`).
    """
    return isinstance(value, int | float) and re.search(r"(limits|requests|capacity|allocatable)", path) is not None


def _name(value: Any) -> str:
    names = {
        str: "the string",
        int: "the number",
        float: "the number",
        bool: "the boolean",
        list: "a list",
        dict: "an object",
    }
    shown = "" if isinstance(value, dict | list) else f" {value!r}"
    return names.get(type(value), type(value).__name__) + shown


def known_field(resource: Resource, path: str) -> bool:
    """Whether the dotted path names a field of the kind with a single value. Only such a field may be in a field
    selector.
    """
    kind: Any = model(resource)
    for part in path.split("."):
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)) or part not in _fields(kind):
            return False
        kind = _strip_optional(_fields(kind)[part][0])
    return kind in (str, int, bool)


# ---- OpenAPI v3
# -------------------------------------------------------------------------------------------------------

_PARAM = re.compile(r"^\* \*\*(?P<name>\S+?)\*\* ``.*?`` - (?P<text>.*)$")


@cache
def _docs(cls: Any) -> tuple[str, dict[str, str]]:
    """Returns (description of the type, field -> description), from the docstring of the lightkube-models class."""
    head, _, rest = (cls.__doc__ or "").partition("**parameters**")
    fields: dict[str, str] = {}
    current = ""
    for line in (raw.strip() for raw in rest.splitlines()):
        if match := _PARAM.match(line):
            current = match["name"]
            fields[current] = match["text"]
        elif line and current:
            fields[current] += " " + line
    return " ".join(head.split()), fields


def _ref_name(cls: type[Any]) -> str:
    module = cls.__module__.rsplit(".", 1)[-1]
    return f"{_PACKAGES.get(module, 'io.k8s.api.' + module.replace('_', '.'))}.{cls.__name__}"


def _schema(kind: Any, out: dict[str, Object]) -> Object:
    kind = _strip_optional(kind)
    origin = typing.get_origin(kind)
    if origin is list:
        return {"type": "array", "items": _schema(typing.get_args(kind)[0], out)}
    if origin is typing.Union:
        return {"x-kubernetes-int-or-string": True, "oneOf": [{"type": "integer"}, {"type": "string"}]}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        _define(kind, out)
        return {"allOf": [{"$ref": f"#/components/schemas/{_ref_name(kind)}"}]}
    if kind is dict or origin is dict:
        return {"type": "object", "additionalProperties": {"type": "string"}}
    return {
        int: {"type": "integer"},
        bool: {"type": "boolean"},
        datetime: {"type": "string", "format": "date-time"},
    }.get(kind, {"type": "string"})


def _define(cls: Any, out: dict[str, Object]) -> None:
    name = _ref_name(cls)
    if name in out:
        return
    text, docs = _docs(cls)
    entry: Object = {"type": "object", "description": text, "properties": {}}
    out[name] = entry
    for field, (kind, required) in _fields(cls).items():
        prop = _schema(kind, out)
        prop["description"] = docs.get(field, "")
        if prop.get("type") == "array":
            parent = {"Container": "containers", "ServiceSpec": "spec", "NodeStatus": "status"}.get(cls.__name__, "")
            if key := patch.merge_key(parent, field):
                prop |= {"x-kubernetes-patch-strategy": "merge", "x-kubernetes-patch-merge-key": key}
        entry["properties"][field] = prop
        if required:
            entry.setdefault("required", []).append(field)


def _operation(resource: Resource, verb: str) -> Object:
    gvk = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    ref = {"$ref": f"#/components/schemas/{_ref_name(model(resource))}"}
    operation: Object = {
        "x-kubernetes-group-version-kind": gvk,
        "x-kubernetes-action": verb,
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": ref}}}},
    }
    if verb in ("post", "put", "patch"):
        operation["parameters"] = [
            {"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": True}}
            for name in ("dryRun", "fieldManager", "fieldValidation")
        ]
        types_ = patch.TYPES if verb == "patch" else ("application/json",)
        operation["requestBody"] = {"content": {t: {"schema": ref} for t in types_}}
    return operation


@cache
def openapi_v3(group: str, version: str) -> Object | None:
    """Returns the OpenAPI v3 document of one group version; None if the API does not serve the group version."""
    if (group, version) not in GROUPS:
        return None
    schemas: dict[str, Object] = {}
    paths: Object = {}
    for resource in (r for r in RESOURCES if (r.group, r.version) == (group, version)):
        cls = model(resource)
        _define(cls, schemas)
        gvk = {"group": resource.group, "version": resource.version, "kind": resource.kind}
        schemas[_ref_name(cls)]["x-kubernetes-group-version-kind"] = [gvk]
        scope = "{namespace}" if resource.namespaced else ""
        paths[resource.path(scope)] = {"get": _operation(resource, "list"), "post": _operation(resource, "post")}
        paths[resource.path(scope, "{name}")] = {
            "get": _operation(resource, "get"),
            "put": _operation(resource, "put"),
            "patch": _operation(resource, "patch"),
            "delete": _operation(resource, "delete"),
        }
    return {
        "openapi": "3.0.0",
        "info": {"title": "podwire", "version": "v1"},
        "paths": paths,
        "components": {"schemas": schemas},
    }
