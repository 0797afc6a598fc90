"""OpenAPI documents of the served kinds: v3 for each group version, v2 for all. kubectl validates and explains by them.

The schemas are Kubernetes' own (schema.py). The rows of custom kinds bring the definitions of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from podwire_base.kube import patch
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import Registry, Resource, Subresource
from podwire_base.kube.schema import builtin, descriptions

Definitions = Mapping[str, Mapping[str, Any]]
TITLE = {"title": "Kubernetes", "version": "v1.36.2"}
_BODIES = ("application/json", "application/yaml", "application/vnd.kubernetes.protobuf")
_WRITES = {"create": "post", "update": "put", "patch": "patch", "delete": "delete", "deletecollection": "delete"}
_ACTION = {"create": "post", "update": "put", "deletecollection": "deletecollection"}
_LIST_OPTIONS = {
    "allowWatchBookmarks": "boolean",
    "continue": "string",
    "fieldSelector": "string",
    "labelSelector": "string",
    "limit": "integer",
    "resourceVersion": "string",
    "resourceVersionMatch": "string",
    "sendInitialEvents": "boolean",
    "timeoutSeconds": "integer",
    "watch": "boolean",
}
_WRITE_OPTIONS = ("dryRun", "fieldManager", "fieldValidation")
_DELETE_OPTIONS = {"dryRun": "string", "gracePeriodSeconds": "integer", "propagationPolicy": "string"}
_DELETE, _STATUS = ("io.k8s.apimachinery.pkg.apis.meta.v1." + kind for kind in ("DeleteOptions", "Status"))


def _described(schema: Mapping[str, Any], text: str) -> Object:
    return {"description": text, **schema} if text else dict(schema)


def _v3(schema: Mapping[str, Any]) -> Object:
    """Returns a schema in the form of OpenAPI 3: references stand in allOf, so that they may have a description."""
    out = dict(schema)
    if ref := out.pop("$ref", None):
        out["allOf"] = [{"$ref": f"#/components/schemas/{ref}"}]
        out.setdefault("default", {})
    return _deep(out, _v3)


def _v2(schema: Mapping[str, Any]) -> Object:
    out = dict(schema)
    if "$ref" in out:
        out["$ref"] = f"#/definitions/{out['$ref']}"
    return _deep(out, _v2)


def _plain(schema: Mapping[str, Any]) -> Object:
    """Returns a custom schema without what OpenAPI 2 has no words for. A value that may be null has no type there."""
    out = {k: v for k, v in schema.items() if k not in ("allOf", "anyOf", "oneOf", "not", "nullable", "default")}
    if schema.get("nullable") or schema.get("x-kubernetes-preserve-unknown-fields"):
        for word in ("items", "properties") + (("type",) if schema.get("nullable") else ()):
            out.pop(word, None)
    return _deep(out, _plain)


def _deep(out: Object, convert: Callable[[Mapping[str, Any]], Object]) -> Object:
    for word in ("items", "additionalProperties"):
        if isinstance(out.get(word), Mapping):
            out[word] = convert(out[word])
    if "properties" in out:
        out["properties"] = {name: convert(inner) for name, inner in out["properties"].items()}
    return out


def _components(names: Iterable[str], known: Definitions, convert: Callable[[Mapping[str, Any]], Object]) -> Object:
    """Returns the schemas with these names and all that they refer to, with their descriptions."""
    texts, out = descriptions(), dict[str, Object]()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in out or name not in known:
            continue
        raw, rows = known[name], texts.get(name, {})
        todo += _references(raw)
        made = convert(_described(raw, rows.get("", "")))
        for field, inner in made.get("properties", {}).items():
            if rows.get(field):
                made["properties"][field] = _described(inner, rows[field])
        out[name] = made
    return dict(sorted(out.items()))


def _references(raw: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(raw.get("$ref"), str):
        yield raw["$ref"]
    for word in ("items", "additionalProperties"):
        if isinstance(raw.get(word), Mapping):
            yield from _references(raw[word])
    for inner in (raw.get("properties") or {}).values():
        yield from _references(inner)


def _query(name: str, kind: str) -> Object:
    return {"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": True}}


def _operation(verb: str, gvk: Object, answer: str, body: str) -> Object:
    operation: Object = {
        "x-kubernetes-action": _ACTION.get(verb, verb),
        "x-kubernetes-group-version-kind": gvk,
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": _reference(answer)}}}},
    }
    options: dict[str, str] = {}
    if verb in ("list", "deletecollection"):
        options |= _LIST_OPTIONS
    if verb in ("delete", "deletecollection"):
        options |= _DELETE_OPTIONS
    elif verb in _WRITES:
        options |= dict.fromkeys(_WRITE_OPTIONS, "string")
    if options:
        operation["parameters"] = [_query(name, kind) for name, kind in sorted(options.items())]
    if body:
        types = patch.TYPES if verb == "patch" else _BODIES
        operation["requestBody"] = {"content": {t: {"schema": _reference(body)} for t in types}}
    return operation


def _reference(name: str) -> Object:
    return {"$ref": f"#/components/schemas/{name}"}


def custom_definitions(registry: Registry) -> dict[str, Mapping[str, Any]]:
    """Returns the definitions that custom kinds bring."""
    found: dict[str, Mapping[str, Any]] = {}
    for resource in registry.resources:
        if resource.custom is not None:
            found |= resource.custom.definitions or {}
    return found


def _name(resource: Resource, sub: Subresource | None, kind: str) -> str:
    """Returns the definition of a kind that a resource, or its subresource, speaks."""
    if resource.custom is not None and (sub is None or not sub.version):
        own = resource.custom.name
        return own.removesuffix(resource.kind) + kind if kind == resource.list_kind else own
    version = resource.api_version
    if sub is not None and sub.version:
        version = f"{sub.group}/{sub.version}" if sub.group else sub.version
    return builtin().name_of(version, kind) or builtin().name_of("v1", kind) or _STATUS


def _paths(resource: Resource) -> Iterator[tuple[str, str, str, str]]:
    """Yields (path, verb, definition of the answer, definition of the body) of every operation of a kind."""
    scope = "{namespace}" if resource.namespaced else ""
    own, many = (_name(resource, None, kind) for kind in (resource.kind, resource.list_kind))
    rows = (("list", "get"), ("create", "post"), ("deletecollection", "delete"))
    for verb, method in (r for r in rows if r[0] in resource.verbs):
        body = {"create": own, "deletecollection": _DELETE}.get(verb, "")
        yield resource.path(scope), f"{verb} {method}", {"list": many, "create": own}.get(verb, _STATUS), body
    if resource.namespaced and "list" in resource.verbs:
        yield resource.path(), "list get", many, ""
    for verb, method in (("get", "get"), ("update", "put"), ("patch", "patch"), ("delete", "delete")):
        if verb in resource.verbs:
            body = {"get": "", "delete": _DELETE}.get(verb, own)
            yield resource.path(scope, "{name}"), f"{verb} {method}", _STATUS if verb == "delete" else own, body
    for sub in resource.subs:
        inner = _name(resource, sub, sub.kind)
        for verb, method in (("create", "post"), ("get", "get"), ("update", "put"), ("patch", "patch")):
            if verb in sub.verbs:
                yield (
                    resource.path(scope, "{name}", sub.name),
                    f"{verb} {method}",
                    inner,
                    "" if verb == "get" else inner,
                )


def v3(registry: Registry, group: str, version: str) -> Object | None:
    """Returns the document of one group version; None if the registry does not have it."""
    if (group, version) not in registry.groups:
        return None
    paths: dict[str, Object] = {}
    wanted: set[str] = set()
    for resource in (r for r in registry.resources if (r.group, r.version) == (group, version)):
        gvk = {"group": group, "version": version, "kind": resource.kind}
        for path, words, answer, body in _paths(resource):
            verb, method = words.split()
            paths.setdefault(path, _parameters(path))[method] = _operation(verb, gvk, answer, body)
            wanted |= {answer, body} - {""}
        wanted.add(_name(resource, None, resource.kind))
    known = {**builtin().definitions, **custom_definitions(registry)}
    return {
        "openapi": "3.0.0",
        "info": TITLE,
        "paths": paths,
        "components": {"schemas": _components(wanted, known, _v3)},
    }


def _parameters(path: str) -> Object:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    rows = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
    return {"parameters": rows} if rows else {}


def v2(registry: Registry) -> Object:
    """Returns the document of all kinds in the form of OpenAPI 2."""
    paths: dict[str, Object] = {}
    wanted: set[str] = set()
    for resource in registry.resources:
        gvk = {"group": resource.group, "version": resource.version, "kind": resource.kind}
        for path, words, answer, body in _paths(resource):
            verb, method = words.split()
            paths.setdefault(path, {})[method] = _operation_v2(_operation(verb, gvk, answer, body))
            wanted |= {answer, body} - {""}
        wanted.add(_name(resource, None, resource.kind))
    known = {**builtin().definitions, **{k: _plain(v) for k, v in custom_definitions(registry).items()}}
    return {"swagger": "2.0", "info": TITLE, "paths": paths, "definitions": _components(wanted, known, _v2)}


def _operation_v2(operation: Object) -> Object:
    def moved(content: Object) -> Object:
        return {"$ref": next(iter(content.values()))["schema"]["$ref"].replace("components/schemas", "definitions")}

    rows = [{"name": p["name"], "in": "query", **p["schema"]} for p in operation.get("parameters", ())]
    out = {k: v for k, v in operation.items() if k.startswith("x-")}
    if body := operation.get("requestBody"):
        rows.append({"name": "body", "in": "body", "required": True, "schema": moved(body["content"])})
        out["consumes"] = list(body["content"])
    answer = operation["responses"]["200"]
    out["responses"] = {"200": {"description": "OK", "schema": moved(answer["content"])}}
    return {**out, "parameters": rows} if rows else out


def digest(document: Object) -> str:
    """Returns the hash that names one state of a document: an ETag."""
    return hashlib.sha512(json.dumps(document, sort_keys=True).encode()).hexdigest().upper()


def index(registry: Registry) -> Object:
    """Returns the index of the v3 documents. A hash stands for the rows and the custom definitions that a document is
    made of, so that clients keep what has not changed.
    """
    paths = {}
    for group, version in registry.groups:
        own = [r for r in registry.resources if (r.group, r.version) == (group, version)]
        rows, extra = [repr(replace(r, custom=None)) for r in own], [r.custom.definitions for r in own if r.custom]
        path = f"apis/{group}/{version}" if group else f"api/{version}"
        hashed = digest({"rows": rows, "title": TITLE, "extra": extra})
        paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={hashed}"}
    return {"paths": paths}
