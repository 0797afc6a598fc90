"""The CustomResourceDefinition of the recorded answers, for tests that share it."""

from __future__ import annotations

import copy
from typing import Any

from podwire_base.kube.meta import Object

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WIDGETS = "/apis/example.com/v1/namespaces/team-a/widgets"
_PART = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "count": {"type": "integer", "default": 1},
        "port": {"x-kubernetes-int-or-string": True},
    },
}
SPEC: Object = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "integer", "minimum": 0, "maximum": 100},
        "colour": {"type": "string", "enum": ["red", "green", "blue"], "default": "red"},
        "note": {"type": "string", "maxLength": 20, "pattern": "^[a-z ]*$", "nullable": True},
        "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
        "parts": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": _PART,
        },
        "plain": {"type": "array", "items": {"type": "integer"}},
        "whole": {
            "type": "object",
            "x-kubernetes-map-type": "atomic",
            "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
        },
        "limits": {"type": "object", "additionalProperties": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "min": {"type": "integer"},
        "max": {"type": "integer"},
    },
    "x-kubernetes-validations": [
        {"rule": "!has(self.min) || !has(self.max) || self.min <= self.max", "message": "min must not exceed max"}
    ],
}
STATUS: Object = {
    "type": "object",
    "properties": {"size": {"type": "integer"}, "selector": {"type": "string"}, "phase": {"type": "string"}},
}
_SCALE = {
    "specReplicasPath": ".spec.size",
    "statusReplicasPath": ".status.size",
    "labelSelectorPath": ".status.selector",
}


def schema(spec: Object | None = None) -> Object:
    return {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec or SPEC, "status": STATUS}}}


def definition(plural: str = "widgets", kind: str = "Widget", *, group: str = "example.com", **spec: Any) -> Object:
    """Return a definition. spec: fields of its spec, in the place of the usual ones."""
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}, "scale": _SCALE},
        "additionalPrinterColumns": [
            {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
            {"name": "Colour", "type": "string", "jsonPath": ".spec.colour", "priority": 1},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
        "selectableFields": [{"jsonPath": ".spec.colour"}],
        "schema": schema(),
    }
    usual = {
        "group": group,
        "scope": "Namespaced",
        "names": {"plural": plural, "kind": kind, "shortNames": [plural[0] + plural[2]], "categories": ["all"]},
        "versions": [version],
    }
    return copy.deepcopy(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.{group}"},
            "spec": {**usual, **spec},
        }
    )


def widget(own: str, *, version: str = "v1", **spec: Any) -> Object:
    return {
        "apiVersion": f"example.com/{version}",
        "kind": "Widget",
        "metadata": {"name": own},
        "spec": {"size": 1, **spec},
    }
