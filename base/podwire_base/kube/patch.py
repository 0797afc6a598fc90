"""Applies the patch types of the Kubernetes API: JSON patch (RFC 6902), merge patch (RFC 7386) and strategic merge
patch.

A strategic merge patch merges some lists by a key and replaces the other lists. Kubernetes marks the merged lists in
its Go types. Here the table MERGE_KEYS has them by the field's name. schema.py also uses the table, for the OpenAPI
document.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from .errors import StatusError, bad_request
from .meta import Object

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
TYPES = (STRATEGIC_PATCH, MERGE_PATCH, JSON_PATCH)

# field name -> merge key; if a name has several meanings, "parent.field" takes precedence
MERGE_KEYS: dict[str, str] = {
    "containers.ports": "containerPort",
    "initContainers.ports": "containerPort",
    "ephemeralContainers.ports": "containerPort",
    "spec.ports": "port",
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "conditions": "type",
    "podIPs": "ip",
    "hostIPs": "ip",
    "ownerReferences": "uid",
    "topologySpreadConstraints": "topologyKey",
    "status.addresses": "type",
    "secrets": "name",
    "resourceClaims": "name",
    "schedulingGates": "name",
}
PRIMITIVE_SETS = frozenset({"finalizers", "podCIDRs"})


def merge_key(parent: str, field: str) -> str | None:
    return MERGE_KEYS.get(f"{parent}.{field}") or MERGE_KEYS.get(field)


def merge(target: Any, patch: Any) -> Any:
    """Apply a merge patch (RFC 7386). Returns a new value; `target` is not changed."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value)
    return result


def _index(part: str) -> int:
    """Parse an array index: decimal digits without leading zeros (RFC 6901, section 4). Raises ValueError."""
    if not re.fullmatch(r"0|[1-9][0-9]{0,8}", part):
        raise ValueError(part)
    return int(part)


def _walk(doc: Any, parts: list[str], path: str) -> Any:
    for part in parts:
        try:
            doc = doc[_index(part)] if isinstance(doc, list) else doc[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise StatusError(422, "Invalid", f"json patch: {path} does not exist") from None
    return doc


def _put(doc: Any, part: str, value: Any, insert: bool, path: str) -> None:
    if isinstance(doc, list):
        if part == "-" and insert:
            doc.append(value)
            return
        try:
            at = _index(part)
        except ValueError:
            at = len(doc) + 1
        if at >= len(doc) + insert:
            raise StatusError(422, "Invalid", f"json patch: {path}: index {part} is outside the list")
        doc[at : at + (0 if insert else 1)] = [value]
    elif isinstance(doc, dict):
        if not insert and part not in doc:
            raise StatusError(422, "Invalid", f"json patch: {path} does not exist")
        doc[part] = value
    else:
        raise StatusError(422, "Invalid", f"json patch: {path}: its parent is not an object or list")


def _take(doc: Any, parts: list[str], path: str) -> Any:
    if not parts:
        raise bad_request("json patch: the whole object cannot be moved")
    value, parent = _walk(doc, parts, path), _walk(doc, parts[:-1], path)
    del parent[int(parts[-1]) if isinstance(parent, list) else parts[-1]]
    return value


def _pointer(path: Any) -> list[str]:
    if not isinstance(path, str) or (path and not path.startswith("/")):
        raise bad_request(f"json patch: path {path!r} is not a JSON pointer; it starts with /")
    return [p.replace("~1", "/").replace("~0", "~") for p in path.split("/")[1:]]


def json_patch(target: Any, operations: Any) -> Any:
    """Apply a JSON patch (RFC 6902): all operations or none. Returns a new value. Raises StatusError: 400 if the patch
    is malformed, 422 if it cannot be applied.
    """
    if not isinstance(operations, list):
        raise bad_request("json patch: expected a list of operations")
    doc = copy.deepcopy(target)
    for operation in operations:
        if not isinstance(operation, dict) or "op" not in operation:
            raise bad_request(f"json patch: {operation!r} is not an operation")
        op, path = operation["op"], str(operation.get("path", "?"))
        parts = _pointer(path)
        if op == "test":
            if _walk(doc, parts, path) != operation.get("value"):
                raise StatusError(422, "Invalid", f"json patch: test of {path} failed")
            continue
        if not parts:
            raise bad_request("json patch: the whole object cannot be replaced")
        if op == "remove":
            _take(doc, parts, path)
            continue
        if op in ("move", "copy"):
            source = _pointer(operation.get("from"))
            value = _take(doc, source, path) if op == "move" else copy.deepcopy(_walk(doc, source, path))
        elif op in ("add", "replace"):
            if "value" not in operation:
                raise bad_request(f"json patch: {op} of {path} has no value")
            value = copy.deepcopy(operation["value"])
        else:
            raise bad_request(f"json patch: unknown op {op!r}")
        _put(_walk(doc, parts[:-1], path), parts[-1], value, op != "replace", path)
    return doc


def _merge_list(target: list[Any], patch: list[Any], key: str, parent: str) -> list[Any]:
    result = list(target)
    for item in patch:
        if not isinstance(item, dict):
            raise bad_request(f"strategic merge patch: {parent}: expected objects with {key!r}")
        if item.get("$patch") == "replace":
            return [i for i in patch if not isinstance(i, dict) or i.get("$patch") != "replace"]
        if key not in item:
            raise bad_request(f"strategic merge patch: an item of {parent} lacks its merge key {key!r}")
        at = next((n for n, old in enumerate(result) if isinstance(old, dict) and old.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            if at is not None:
                del result[at]
        elif at is None:
            result.append(strategic(None, item, parent))
        else:
            result[at] = strategic(result[at], item, parent)
    return result


def _reorder(items: list[Any], order: list[Any], key: str | None) -> list[Any]:
    """Apply $setElementOrder: returns the named items in the given order, then the other items."""

    def identity(item: Any) -> Any:
        return item.get(key) if key and isinstance(item, dict) else item

    wanted = [identity(o) for o in order]
    return sorted(items, key=lambda item: wanted.index(identity(item)) if identity(item) in wanted else len(wanted))


def _old_list(target: Object, field: str) -> list[Any]:
    found = target.get(field)
    return found if isinstance(found, list) else []


def _members(directive: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise bad_request(f"strategic merge patch: {directive}: expected a list")
    return value


def strategic(target: Any, patch: Any, parent: str = "") -> Any:  # noqa: PLR0912 - one branch a directive
    """Apply a strategic merge patch, with the directives $patch, $retainKeys, $deleteFromPrimitiveList and
    $setElementOrder. Returns a new value. parent: the name of the field that contains `target`.
    """
    if not isinstance(patch, dict):
        return patch
    if patch.get("$patch") == "replace":
        return {k: v for k, v in patch.items() if k != "$patch"}
    result = dict(target) if isinstance(target, dict) else {}
    if "$retainKeys" in patch:
        kept = _members("$retainKeys", patch["$retainKeys"])
        result = {k: v for k, v in result.items() if k in kept}
    for name, value in patch.items():
        if name.startswith("$deleteFromPrimitiveList/"):
            field = name.split("/", 1)[1]
            gone = _members(name, value)
            if isinstance(result.get(field), list):
                result[field] = [v for v in result[field] if v not in gone]
        elif name.startswith("$"):
            continue
        elif value is None or (isinstance(value, dict) and value.get("$patch") == "delete"):
            result.pop(name, None)
        elif isinstance(value, list) and (key := merge_key(parent, name)):
            result[name] = _merge_list(_old_list(result, name), value, key, name)
        elif isinstance(value, list) and name in PRIMITIVE_SETS:
            old = _old_list(result, name)
            result[name] = old + [v for n, v in enumerate(value) if v not in old and v not in value[:n]]
        else:
            result[name] = strategic(result.get(name), value, name)
    for name, order in patch.items():
        if name.startswith("$setElementOrder/"):
            field = name.split("/", 1)[1]
            if isinstance(result.get(field), list):
                result[field] = _reorder(result[field], _members(name, order), merge_key(parent, field))
    return result


def apply(kind: str, target: Any, patch: Any) -> Any:
    """Apply a decoded patch of content type `kind`."""
    if kind == JSON_PATCH:
        return json_patch(target, patch)
    if not isinstance(patch, dict):
        raise bad_request("patch: expected an object")
    return merge(target, patch) if kind == MERGE_PATCH else strategic(target, patch)
