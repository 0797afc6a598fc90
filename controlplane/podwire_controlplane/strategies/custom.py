"""The write path of custom kinds: what a CustomResourceDefinition says, at the points where a Strategy is asked
(apiextensions-apiserver, pkg/registry/customresource).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from podwire_base.kube.errors import Cause, StatusError, bad_request
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import Resource

from ..custom import scale, values
from ..custom.cel import rules
from ..custom.check import UNKNOWN, check
from ..custom.lists import check_embedded, check_lists
from ..custom.values import Schema
from ..rules import fields, meta
from .base import Strategy

Causes = Iterator[Cause]
_BLOCKING = (
    "FieldValueNotSupported",
    "FieldValueRequired",
    "FieldValueTooLong",
    "FieldValueTooMany",
    "FieldValueTypeInvalid",
)
_UNCHECKED = (
    "some validation rules were not checked because the object was invalid; correct the existing errors to complete "
    "validation"
)


class CustomStrategy(Strategy):
    """One version of a custom kind. terminating: the definition is being deleted, so that nothing more is created."""

    generation: ClassVar[bool] = True

    def __init__(
        self,
        resource: Resource,
        schema: Schema,
        paths: Mapping[str, str] | None = None,
        *,
        terminating: bool = False,
    ) -> None:
        self.resource, self.schema, self.paths, self.terminating = resource, schema, paths, terminating
        self.has_rules = _has_rules(schema)

    # ---- reading

    def decode(self, obj: Object) -> tuple[Object, list[str]]:
        for field in ("kind", "apiVersion"):
            if not obj.get(field):
                raise bad_request(f"Object '{field[0].upper() + field[1:]}' is missing in the body")
        unknown: list[str] = []
        metadata = values.object_meta(obj.get("metadata"), "metadata", unknown)
        values.numbers(obj)
        values.coerce_embedded(obj, self.schema, "", unknown)
        values.prune(obj, self.schema, "", unknown, root=True)
        return {**obj, "metadata": metadata}, sorted(unknown)

    def served(self, obj: Object) -> Object:
        """Return a stored object as this version shows it: conversion changes only apiVersion."""
        obj["apiVersion"] = self.resource.api_version
        values.prune(obj, self.schema, "", [], root=True)
        values.fill(obj, self.schema)
        return obj

    def stored(self, obj: Object) -> Object:
        return {**obj, "apiVersion": self.resource.stored}

    def defaults(self, obj: Object) -> None:
        values.fill(obj, self.schema)

    # ---- what a write may set

    def prepare_create(self, obj: Object) -> None:
        if self.terminating:
            why = "create not allowed while custom resource definition is terminating"
            raise StatusError(405, "MethodNotAllowed", why, resource=self.resource)
        super().prepare_create(obj)

    def prepare_status(self, obj: Object, before: Object) -> None:
        """Only the status is taken; all metadata stays."""
        status, managed = obj.get("status"), obj["metadata"].get("managedFields")
        obj.clear()
        obj |= {field: value for field, value in before.items() if field != "status"}
        obj["metadata"] = dict(before["metadata"])
        if managed is not None:
            obj["metadata"]["managedFields"] = managed
        if status is not None:
            obj["status"] = status

    def changed(self, obj: Object, before: Object) -> bool:
        """Whether anything but the metadata differs: a status without a URL of its own counts too."""
        fields_ = obj.keys() | before.keys()
        return any(obj.get(f) != before.get(f) for f in fields_ if f != "metadata")

    # ---- what it refuses

    def validate(self, obj: Object) -> Causes:
        found = [
            *meta.check(self.resource, obj, fields.subdomain),
            *check(obj, self.schema),
            *scale.check_spec(obj, self.paths),
            *scale.check_status(obj, self.paths),
            *check_embedded(obj, self.schema),
            *check_lists(obj, self.schema),
        ]
        yield from self._with_rules(found, obj, None)

    def validate_update(self, obj: Object, before: Object) -> Causes:
        found = [
            *meta.check_update(obj, before),
            *meta.check_update(obj, before),
            *check(obj, self.schema, before),
            *scale.check_spec(obj, self.paths),
            *scale.check_status(obj, self.paths),
            *check_embedded(obj, self.schema),
            *self._new_lists(obj, before),
        ]
        yield from self._with_rules(found, obj, before)

    def validate_status(self, obj: Object, before: Object) -> Causes:
        found = [*meta.check_update(obj, before), *meta.check_update(obj, before)]
        schema = (self.schema.get("properties") or {}).get("status")
        if "status" in obj and schema is not None:
            for cause in check(obj["status"], schema, before.get("status", UNKNOWN), "status"):
                found.append(cause if cause.field != "<nil>" else Cause("status", cause.message, cause.reason))
        found += [*scale.check_status(obj, self.paths), *self._new_lists(obj, before)]
        yield from self._with_rules(found, obj, before)

    def _new_lists(self, obj: Object, before: Object) -> list[Cause]:
        """Return what is wrong with sets and map lists, unless the old object had such errors too."""
        found = list(check_lists(obj, self.schema))
        return [] if found and any(check_lists(before, self.schema)) else found

    def _with_rules(self, found: list[Cause], obj: Object, before: Object | None) -> Causes:
        yield from found
        if not self.has_rules:
            return
        if any(cause.reason in _BLOCKING for cause in found):
            yield Cause("<nil>", f"Invalid value: null: {_UNCHECKED}")
        else:
            yield from rules.evaluate(obj, self.schema, UNKNOWN if before is None else before)

    def warnings(self, obj: Object, before: Object | None) -> list[str]:
        old = (before or {"metadata": {}})["metadata"].get("finalizers") or []
        found = []
        for n, one in enumerate(obj["metadata"].get("finalizers") or []):
            if one in old:
                continue
            if "/" not in one and one not in meta.STANDARD_FINALIZERS:
                path = " including a path (/)" if "." in one else ""
                why = f"prefer a domain-qualified finalizer name{path} to avoid accidental conflicts"
                found.append(f'metadata.finalizers[{n}]: "{one}": {why} with other finalizer writers')
        return found


def _has_rules(schema: Any) -> bool:
    if not isinstance(schema, Mapping):
        return False
    if schema.get("x-kubernetes-validations"):
        return True
    inner = [schema.get("items"), schema.get("additionalProperties"), *(schema.get("properties") or {}).values()]
    return any(map(_has_rules, inner))
