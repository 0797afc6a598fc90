"""Kubernetes' own schema as data: which fields a kind has, of which type, and how lists and maps are merged.

`Schema` holds OpenAPI definitions and compiles them, on demand, into `Node`s. Everything that must know how lists and
maps are merged walks the same nodes: strategic merge patches, field sets, OpenAPI. The definitions come from Kubernetes
(tools/kubeschema writes them into the wheel); a custom resource's structural schema is compiled by the same function.

    schema = builtin()
    pod = schema.kind("v1", "Pod")                         # Node; None if the kind is unknown
    env = schema.walk("v1", "Pod", "spec.containers.env")  # the Node of a field, through lists and maps
    env.list_type, env.list_keys, env.merge_key            # "map", ("name",), "name"
    env.item.fields["valueFrom"]                           # the Node of an item's field
"""

from __future__ import annotations

import gzip
import json
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

OBJECT, MAP, LIST, STRING, INTEGER, NUMBER, BOOLEAN = "object", "map", "list", "string", "integer", "number", "boolean"
QUANTITY, INT_OR_STRING, TIME, MICROTIME, BYTES, ANY = "quantity", "int-or-string", "time", "microtime", "bytes", "any"
_META = "io.k8s.apimachinery.pkg.apis.meta.v1."
_SPECIAL: Final = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": QUANTITY,
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": INT_OR_STRING,
    _META + "Time": TIME,
    _META + "MicroTime": MICROTIME,
    _META + "FieldsV1": ANY,
    "io.k8s.apimachinery.pkg.runtime.RawExtension": ANY,
}
_SCALARS = {"string": STRING, "integer": INTEGER, "number": NUMBER, "boolean": BOOLEAN}
OBJECT_META: Final = _META + "ObjectMeta"


class Node:
    """One type. type: one of the constants above; ANY is free JSON.

    fields: those of an OBJECT. item: the type of a LIST's items or a MAP's values. required: names of an OBJECT's
    fields. name: the definition's name, "" for a type that has none. bits: 32 or 64, of an INTEGER.

    list_type: "atomic", "set" or "map" (x-kubernetes-list-type), "" where the schema says nothing, which means atomic.
    list_keys: of list_type "map". atomic: the map or object is replaced as a whole (x-kubernetes-map-type).
    merge, merge_key, retain_keys: how a strategic merge patch treats the field (x-kubernetes-patch-strategy): a list is
    merged, by this key where items are objects; "retainKeys" for a union.
    keep_unknown: fields that `fields` lacks are kept (x-kubernetes-preserve-unknown-fields). raw: the schema as given.
    """

    __slots__ = (
        "atomic",
        "bits",
        "fields",
        "item",
        "keep_unknown",
        "list_keys",
        "list_type",
        "merge",
        "merge_key",
        "name",
        "nullable",
        "raw",
        "required",
        "retain_keys",
        "type",
    )

    def __init__(self, type_: str, raw: Mapping[str, Any], name: str = "") -> None:
        self.type, self.raw, self.name = type_, raw, name
        self.fields: dict[str, Node] = {}
        self.item: Node | None = None
        self.required: tuple[str, ...] = tuple(raw.get("required", ()))
        self.bits = 64 if raw.get("format") == "int64" else 32
        self.list_type = str(raw.get("x-kubernetes-list-type", ""))
        self.list_keys: tuple[str, ...] = tuple(raw.get("x-kubernetes-list-map-keys", ()))
        self.atomic = raw.get("x-kubernetes-map-type") == "atomic"
        strategy = str(raw.get("x-kubernetes-patch-strategy", "")).split(",")
        self.merge, self.retain_keys = "merge" in strategy, "retainKeys" in strategy
        self.merge_key = str(raw.get("x-kubernetes-patch-merge-key", ""))
        self.keep_unknown = bool(raw.get("x-kubernetes-preserve-unknown-fields"))
        self.nullable = bool(raw.get("nullable"))

    def __repr__(self) -> str:
        return f"Node({self.type}{' ' + self.name if self.name else ''})"

    def child(self, name: str) -> Node | None:
        """Returns the type of a field, or of a map's values; None if there is no such field."""
        if self.type == MAP:
            return self.item
        return self.fields.get(name)


class Schema:
    """definitions: name -> OpenAPI schema; a $ref is the name of another definition. Nodes of definitions are shared
    and may form cycles (JSONSchemaProps).
    """

    def __init__(self, definitions: Mapping[str, Mapping[str, Any]]) -> None:
        self.definitions = definitions
        self._nodes: dict[str, Node] = {}
        self._kinds: dict[tuple[str, str], str] = {}
        for name, raw in definitions.items():
            kinds = raw.get("x-kubernetes-group-version-kind", ())
            # one that many groups share (DeleteOptions, WatchEvent) belongs to meta/v1, and is found as "v1"
            for gvk in kinds if len(kinds) < 10 else [k for k in kinds if not k["group"]]:
                version = f"{gvk['group']}/{gvk['version']}" if gvk["group"] else gvk["version"]
                self._kinds.setdefault((version, gvk["kind"]), name)

    def name_of(self, api_version: str, kind: str) -> str | None:
        """Returns the name of a kind's definition, such as io.k8s.api.core.v1.Pod."""
        return self._kinds.get((api_version, kind))

    def kind(self, api_version: str, kind: str) -> Node | None:
        name = self._kinds.get((api_version, kind))
        return self.node(name) if name else None

    def node(self, name: str) -> Node:
        """Returns the node of a definition. Raises KeyError."""
        found = self._nodes.get(name)
        if found is None:
            raw = self.definitions[name]
            found = self._nodes[name] = Node(_type_of(raw, name), raw, name)
            self._fill(found)
        return found

    def compile(self, raw: Mapping[str, Any]) -> Node:
        """Returns the node of one schema. A field that refers to a definition keeps its own merge rules."""
        ref = raw.get("$ref")
        if isinstance(ref, str):
            target = self.node(ref)
            if not any(word.startswith("x-kubernetes-") for word in raw):
                return target
            node = Node(target.type, {**target.raw, **raw}, target.name)
            node.fields, node.item = target.fields, target.item
            return node
        node = Node(_type_of(raw, ""), raw)
        self._fill(node)
        return node

    def _fill(self, node: Node) -> None:
        raw = node.raw
        for field, inner in (raw.get("properties") or {}).items():
            node.fields[field] = self.compile(inner)
        if node.type == LIST:
            node.item = self.compile(raw.get("items") or {})
        elif node.type == MAP:
            values = raw["additionalProperties"]
            node.item = self.compile(values if isinstance(values, Mapping) else {})

    def walk(self, api_version: str, kind: str, path: str) -> Node | None:
        """Returns the type at a dotted path, passing through lists; None if the kind or the path is unknown."""
        node = self.kind(api_version, kind)
        for part in filter(None, path.split(".")):
            while node is not None and node.type == LIST:
                node = node.item
            node = node.child(part) if node is not None else None
        return node


def _type_of(raw: Mapping[str, Any], name: str) -> str:
    if name in _SPECIAL:
        return _SPECIAL[name]
    if raw.get("x-kubernetes-int-or-string") or raw.get("format") == INT_OR_STRING:
        return INT_OR_STRING
    kind = raw.get("type")
    if kind == "array":
        return LIST
    if "properties" in raw:
        return OBJECT
    if kind == "object":
        if "additionalProperties" in raw:
            return MAP
        return OBJECT if name else ANY
    if kind == "string" and raw.get("format") == "byte":
        return BYTES
    return _SCALARS.get(str(kind), ANY)


def _load(file: str) -> Any:
    try:
        raw = pkgutil.get_data("podwire_base.kube", f"generated/{file}.json.gz")
    except FileNotFoundError as err:  # a source tree that was never built, or only before this file existed
        raise RuntimeError(f"{err.filename} is missing: `make install` (or pip install) writes it") from err
    assert raw is not None
    return json.loads(gzip.decompress(raw))


@cache
def builtin() -> Schema:
    """Returns Kubernetes' schema, without descriptions. The first call takes some 10 ms."""
    return Schema(_load("schema"))


@cache
def descriptions() -> dict[str, dict[str, str]]:
    """Returns definition name -> {"": its text, field: its text}. 700 kB of text: only OpenAPI and explain need it."""
    loaded: dict[str, dict[str, str]] = _load("descriptions")
    return loaded
