"""The rows of the registry that a CustomResourceDefinition makes: one for each version that is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from podwire_base.kube.meta import Object, deleting
from podwire_base.kube.registry import Custom, Resource, Subresource
from podwire_base.kube.schema import OBJECT_META, Node, builtin

from ..strategies.custom import CustomStrategy
from . import columns
from .definition import schema_of
from .values import Schema

VERBS = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")
_SUB_VERBS = ("get", "patch", "update")
_LIST_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"
_TYPE_META = {
    "apiVersion": {
        "type": "string",
        "description": "APIVersion names the group and version of the schema of this object, such as example.com/v1.",
    },
    "kind": {"type": "string", "description": "Kind names the resource that this object represents, in CamelCase."},
}


def rows(definition: Object, names: Mapping[str, Any]) -> tuple[Resource, ...]:
    """Return the rows of a definition. names: those that were accepted."""
    versions = definition["spec"]["versions"]
    storage = next(v["name"] for v in versions if v.get("storage"))
    return tuple(_row(definition, version, names, storage) for version in versions if version.get("served"))


def _row(definition: Object, version: Object, names: Mapping[str, Any], storage: str) -> Resource:
    spec, schema = definition["spec"], schema_of(version) or {}
    group, own = spec["group"], version["name"]
    subs = version.get("subresources") or {}
    paths = subs.get("scale")
    found = []
    if subs.get("status") is not None:
        found.append(Subresource("status", names["kind"], verbs=_SUB_VERBS))
    if paths is not None:
        found.append(Subresource("scale", "Scale", "autoscaling", "v1", _SUB_VERBS))
    base = Resource(
        group,
        own,
        names["kind"],
        names["plural"],
        spec["scope"] == "Namespaced",
        tuple(names.get("shortNames") or ()),
        tuple(names.get("categories") or ()),
        tuple(found),
        VERBS,
        names.get("singular") or "",
        f"{group}/{storage}",
        names.get("listKind") or "",
    )
    strategy = CustomStrategy(base, schema, paths, terminating=deleting(definition))
    definitions = _definitions(base, schema)
    custom = Custom(
        _node(schema),
        columns.of(version.get("additionalPrinterColumns") or []),
        definitions,
        next(iter(definitions)),
        tuple(one["jsonPath"].removeprefix(".") for one in version.get("selectableFields") or []),
        paths,
        _warning(base, version),
        strategy,
    )
    strategy.resource = replace(base, custom=custom)
    return strategy.resource


def _warning(row: Resource, version: Object) -> str:
    if not version.get("deprecated"):
        return ""
    return version.get("deprecationWarning") or f"{row.api_version} {row.kind} is deprecated"


# ---- the schema in the form of Kubernetes' own


def _whole(schema: Schema) -> Object:
    """Return the schema of a whole object: with its type and its metadata."""
    properties = {k: v for k, v in (schema.get("properties") or {}).items() if k not in ("metadata", *_TYPE_META)}
    return {
        **schema,
        "type": "object",
        "properties": {**_TYPE_META, "metadata": {"$ref": OBJECT_META}, **properties},
    }


def _node(schema: Schema) -> Node:
    return builtin().compile(_whole(schema))


def _definitions(row: Resource, schema: Schema) -> dict[str, Object]:
    """Return the OpenAPI definitions of the kind and of its list, under upstream's names: com.example.v1.Widget."""
    reverse = ".".join(reversed(row.group.split(".")))
    own, many = f"{reverse}.{row.version}.{row.kind}", f"{reverse}.{row.version}.{row.list_kind}"
    gvk = {"group": row.group, "version": row.version}
    items = {"type": "array", "items": {"$ref": own}, "description": f"List of {row.plural}."}
    return {
        own: {**_whole(schema), "x-kubernetes-group-version-kind": [{**gvk, "kind": row.kind}]},
        many: {
            "description": f"{row.list_kind} is a list of {row.kind}",
            "type": "object",
            "required": ["items"],
            "properties": {**_TYPE_META, "items": items, "metadata": {"$ref": _LIST_META}},
            "x-kubernetes-group-version-kind": [{**gvk, "kind": row.list_kind}],
        },
    }
