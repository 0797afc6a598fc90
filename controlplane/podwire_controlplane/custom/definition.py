"""Validates CustomResourceDefinitions, with kube-apiserver's causes and field paths (apiextensions-apiserver,
pkg/apis/apiextensions/validation).

Upstream validates the internal form of a definition: there, what all versions have in common stands once, outside of
`versions`. So the path of an error in the schema of a single version begins with spec.validation.openAPIV3Schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from podwire_base.kube.errors import Cause
from podwire_base.kube.meta import Object

from ..rules import fields, meta
from ..rules.fields import duplicate, forbidden, invalid, not_supported, one_of, required, too_many
from . import names
from .schemas import check_schema
from .values import Schema

Causes = Iterator[Cause]
_APPROVED = "api-approved.kubernetes.io"
_COLUMN_TYPES = ("boolean", "date", "integer", "number", "string")
_COLUMN_FORMATS = ("byte", "date", "date-time", "double", "float", "int32", "int64", "password")
_MAX_FIELDS = 8
_MAX_WARNING = 256
_FIELD_NAME = re.compile(r"\.[A-Za-z_][A-Za-z0-9_]*|\['[^']+'\]")

# a part of a version -> where it stands in the internal form if all versions have the same
_HOISTED = {
    "schema": "spec.validation",
    "subresources": "spec.subresources",
    "additionalPrinterColumns": "spec.additionalPrinterColumns",
    "selectableFields": "spec.selectableFields",
}


def create(obj: Object) -> Causes:
    """Yield every wrong field of a CustomResourceDefinition."""
    yield from _name(obj)
    yield from _spec(obj["spec"])
    yield from _status(obj)
    yield from _approval(obj, None)
    yield from _preserve(obj)


def update(obj: Object, before: Object) -> Causes:
    """Yield every wrong field of an update. Scope and kind are fixed once the definition was established."""
    new, old = obj["spec"], before["spec"]
    yield from _spec(new)
    if names.holds(before, names.ESTABLISHED):
        for label, one, other in (
            ("spec.scope", new.get("scope"), old.get("scope")),
            ("spec.names.kind", (new.get("names") or {}).get("kind"), (old.get("names") or {}).get("kind")),
        ):
            if one != other:
                yield meta.immutable(label, one)
    if new.get("group") != old.get("group"):
        yield meta.immutable("spec.group", new.get("group"))
    if (new.get("names") or {}).get("plural") != (old.get("names") or {}).get("plural"):
        yield meta.immutable("spec.names.plural", (new.get("names") or {}).get("plural"))
    yield from _status(obj)
    yield from _approval(obj, before)
    if not old.get("preserveUnknownFields"):
        yield from _preserve(obj)


def update_status(obj: Object, _before: Object) -> Causes:
    yield from _check_names((obj.get("status") or {}).get("acceptedNames") or {}, "status.acceptedNames")


def _name(obj: Object) -> Causes:
    spec, own = obj["spec"], obj["metadata"].get("name") or ""
    wanted = f"{(spec.get('names') or {}).get('plural') or ''}.{spec.get('group') or ''}"
    if own and own != wanted:
        yield invalid("metadata.name", own, 'must be spec.names.plural+"."+spec.group')


def _preserve(obj: Object) -> Causes:
    if obj["spec"].get("preserveUnknownFields"):
        why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"
        yield invalid("spec.preserveUnknownFields", True, why)


def _approval(obj: Object, before: Object | None) -> Causes:
    group = obj["spec"].get("group") or ""
    if not group.endswith((".k8s.io", ".kubernetes.io")) and group not in ("k8s.io", "kubernetes.io"):
        return
    note, old = ((o["metadata"].get("annotations") or {}).get(_APPROVED) if o else None for o in (obj, before))
    if before is not None and note == old:
        return
    path = f"metadata.annotations[{_APPROVED}]"
    if not note:
        yield required(path, f"protected groups must have approval annotation {_APPROVED}")
    elif not re.match(r"https?://[^/]|unapproved", note):
        yield invalid(path, note, "must be the URL of the approval, or begin with 'unapproved'")


def _status(obj: Object) -> Causes:
    status, path = obj.get("status") or {}, "status.storedVersions"
    yield from _check_names(status.get("acceptedNames") or {}, "status.acceptedNames")
    stored, versions = status.get("storedVersions") or [], obj["spec"].get("versions") or []
    if not stored:
        yield invalid(path, stored, "must have at least one stored version")
        return
    for version in versions:
        if version.get("storage") and version.get("name") not in stored:
            yield invalid(path, stored, f"must have the storage version {version.get('name')}")
    known = [version.get("name") for version in versions]
    for n, one in enumerate(stored):
        if one not in known:
            why = "missing from spec.versions; it was a storage version, and stays until no object is stored in it"
            yield invalid(f"{path}[{n}]", one, why)


# ---- spec


def _spec(spec: Object) -> Causes:
    group, versions = spec.get("group") or "", spec.get("versions") or []
    if not group:
        yield required("spec.group")
    elif problems := fields.subdomain(group):
        yield invalid("spec.group", group, ",".join(problems))
    elif "." not in group:
        yield invalid("spec.group", group, "should be a domain with at least one dot")
    if not spec.get("scope"):
        yield required("spec.scope")
    else:
        yield from one_of("spec.scope", spec["scope"], ("Cluster", "Namespaced"))
    yield from _schemas_there(versions)
    yield from _versions(versions)
    yield from _parts(versions)
    for field in ("plural", "singular", "kind", "listKind"):
        if not (spec.get("names") or {}).get(field):
            yield required(f"spec.names.{field}")
    yield from _check_names(spec.get("names") or {}, "spec.names")
    yield from _conversion(spec.get("conversion"))


def schema_of(version: Object) -> Schema | None:
    found: Schema | None = (version.get("schema") or {}).get("openAPIV3Schema")
    return found


def _schemas_there(versions: list[Object]) -> Causes:
    for n, version in enumerate(versions):
        if schema_of(version) is None:
            yield required(f"spec.versions[{n}].schema.openAPIV3Schema", "schemas are required")


def _versions(versions: list[Object]) -> Causes:
    own = [version.get("name") or "" for version in versions]
    for n, name in enumerate(own):
        if problems := fields.label_1035(name):
            yield invalid(f"spec.versions[{n}].name", name, ",".join(problems))
        yield from _deprecation(versions[n], f"spec.versions[{n}].deprecationWarning")
    if len(set(own)) < len(own):
        yield invalid("spec.versions", own, "must contain unique version names")
    if sum(bool(version.get("storage")) for version in versions) != 1:
        yield invalid("spec.versions", own, "must have exactly one version marked as storage version")
    if own and (problems := fields.label_1035(own[0])):  # the internal form names its first version twice
        yield invalid("spec.version", own[0], ",".join(problems))


def _deprecation(version: Object, path: str) -> Causes:
    text = version.get("deprecationWarning")
    if text is None:
        return
    if not version.get("deprecated"):
        yield invalid(path, text, "can only be set for deprecated versions")
        return
    if len(text) > _MAX_WARNING:
        yield invalid(path, text, f"must be <= {_MAX_WARNING} characters long")
    if not text:
        yield invalid(path, text, "must not be an empty string")
    if not text.isprintable():
        yield invalid(path, text, "must only contain printable UTF-8 characters")


def _parts(versions: list[Object]) -> Causes:
    """Check what each version has, once where all have the same."""
    checks: dict[str, Callable[[Object, str], Causes]] = {
        "schema": _schema,
        "subresources": lambda version, path: _subresources(version.get("subresources") or {}, path),
        "additionalPrinterColumns": _columns,
        "selectableFields": _selectable,
    }
    for part, check in checks.items():
        found = [version.get(part) or None for version in versions]
        if found and all(one == found[0] for one in found):
            status = any((v.get("subresources") or {}).get("status") is not None for v in versions)
            shared = {**versions[0], "subresources": {"status": {}} if part == "schema" and status else
                      versions[0].get("subresources")}  # fmt: skip
            yield from check(shared, _HOISTED[part])
        else:
            for n, version in enumerate(versions):
                yield from check(version, f"spec.versions[{n}].{part}")


def _schema(version: Object, path: str) -> Causes:
    schema = schema_of(version)
    if schema is not None:
        status = (version.get("subresources") or {}).get("status") is not None
        yield from check_schema(schema, f"{path}.openAPIV3Schema", status=status)


def _path_problem(text: str) -> str:
    return "" if text.startswith(".") else "must be a simple json path starting with ."


def _subresources(found: Object, path: str) -> Causes:
    scale = found.get("scale")
    if scale is None:
        return
    for field, heads in (("specReplicasPath", (".spec.",)), ("statusReplicasPath", (".status.",))):
        text = scale.get(field) or ""
        yield from _scale_path(text, heads, f"{path}.scale.{field}") if text else [required(f"{path}.scale.{field}")]
    if scale.get("labelSelectorPath"):
        where = f"{path}.scale.labelSelectorPath"
        yield from _scale_path(scale["labelSelectorPath"], (".spec.", ".status."), where)


def _scale_path(text: str, heads: tuple[str, ...], path: str) -> Causes:
    if why := _path_problem(text):
        yield invalid(path, text, why)
    elif not text.startswith(heads):
        yield invalid(path, text, f"should be a json path under {' or '.join(h.strip('.') for h in heads)}")


def _columns(version: Object, path: str) -> Causes:
    for n, column in enumerate(version.get("additionalPrinterColumns") or []):
        where = f"{path}[{n}]"
        if not column.get("name"):
            yield required(f"{where}.name")
        kind, text = column.get("type") or "", column.get("jsonPath") or ""
        if not kind:
            yield required(f"{where}.type", f"must be one of {','.join(_COLUMN_TYPES)}")
        elif kind not in _COLUMN_TYPES:
            yield invalid(f"{where}.type", kind, f"must be one of {','.join(_COLUMN_TYPES)}")
        if column.get("format") and column["format"] not in _COLUMN_FORMATS:
            yield invalid(f"{where}.format", column["format"], f"must be one of {','.join(_COLUMN_FORMATS)}")
        if not text:
            yield required(f"{where}.JSONPath")
        elif why := _path_problem(text):
            yield invalid(f"{where}.JSONPath", text, why)


def field_names(path: str) -> list[str] | None:
    """Return the names of a simple path such as .spec.size or .spec['a b']; None if it has another form."""
    if not path or _FIELD_NAME.sub("", path):
        return None
    return [part[1:] if part[0] == "." else part[2:-2] for part in _FIELD_NAME.findall(path)]


def _selectable(version: Object, path: str) -> Causes:
    seen = set[str]()
    for n, one in enumerate(version.get("selectableFields") or []):
        text, where = one.get("jsonPath") or "", f"{path}[{n}].jsonPath"
        if not text:
            yield required(where)
            continue
        parts = field_names(text)
        schema: Any = schema_of(version)
        for part in parts or []:
            schema = (schema.get("properties") or {}).get(part) if isinstance(schema, Mapping) else None
        if parts is None or schema is None:
            yield invalid(where, text, "is an invalid path: the schema has no such field")
            continue
        if parts[0] == "metadata":
            yield invalid(where, text, "must not point to fields in metadata")
        if schema.get("type") not in ("string", "boolean", "integer"):
            yield invalid(where, text, "must point to a field of type string, boolean or integer")
        if text in seen:
            yield duplicate(where, text)
        seen.add(text)
    if len(seen) > _MAX_FIELDS:
        yield too_many(path, len(seen), _MAX_FIELDS)


def _check_names(found: Object, path: str) -> Causes:
    for field in ("plural", "singular"):
        if found.get(field):
            yield from _label(f"{path}.{field}", found[field], found[field])
    for field in ("kind", "listKind"):
        if found.get(field):
            yield from _label(f"{path}.{field}", found[field], found[field].lower())
    for field in ("shortNames", "categories"):
        for n, one in enumerate(found.get(field) or []):
            yield from _label(f"{path}.{field}[{n}]", one, one)
    if found.get("kind") and found["kind"] == found.get("listKind"):
        yield invalid(f"{path}.listKind", found["listKind"], "kind and listKind may not be the same")


def _label(path: str, value: str, text: str) -> Causes:
    if problems := fields.label_1035(text):
        yield invalid(path, value, ",".join(problems))


def _conversion(conversion: Object | None) -> Causes:
    """Refuse what upstream refuses, and conversion by a webhook, which this server does not call."""
    if conversion is None:
        return
    path, strategy = "spec.conversion", conversion.get("strategy") or ""
    if strategy == "Webhook":
        yield not_supported(
            f"{path}.strategy", f"{strategy} (podwire converts between versions by None only)", ("None",)
        )
    elif not strategy:
        yield required(f"{path}.strategy")
    elif strategy != "None":
        yield not_supported(f"{path}.strategy", strategy, ("None", "Webhook"))
    elif conversion.get("webhook"):
        yield forbidden(f"{path}.webhookClientConfig", "should not be set when strategy is not set to Webhook")
