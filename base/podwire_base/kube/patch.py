"""Applies the patch types of the Kubernetes API: JSON patch (RFC 6902), merge patch (RFC 7386) and strategic merge
patch (strategic.py).
"""

from __future__ import annotations

import copy
import json
import re
from typing import Any

from . import strategic
from .errors import StatusError, bad_request
from .schema import Node

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"  # server-side apply: no patch of a document (KEP-555)
TYPES = (STRATEGIC_PATCH, MERGE_PATCH, JSON_PATCH)

# A copied value may not make the object larger than any request could: 3 MiB, as kube-apiserver's limit.
COPY_LIMIT = 3 * 1024 * 1024


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


def _index(part: str, length: int) -> int:
    """Parse an array index: decimal digits without leading zeros (RFC 6901, section 4). As kube-apiserver, a negative
    index counts from the end. Raises ValueError.
    """
    if not re.fullmatch(r"0|-?[1-9][0-9]{0,8}", part):
        raise ValueError(part)
    at = int(part)
    if at < -length:
        raise ValueError(part)
    return at + length if at < 0 else at


def _walk(doc: Any, parts: list[str], path: str) -> Any:
    for part in parts:
        try:
            doc = doc[_index(part, len(doc))] if isinstance(doc, list) else doc[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise StatusError(422, "Invalid", f"json patch: {path} does not exist") from None
    return doc


def _test(doc: Any, parts: list[str], path: str, wanted: Any) -> None:
    """An absent member equals null."""
    try:
        found = _walk(doc, parts, path)
    except StatusError:
        found = None
        if wanted is not None:
            raise
    if found != wanted or isinstance(found, bool) != isinstance(wanted, bool):
        raise StatusError(422, "Invalid", f"json patch: test of {path} failed")


def _put(doc: Any, part: str, value: Any, insert: bool, path: str) -> None:
    if isinstance(doc, list):
        if part == "-" and insert:
            doc.append(value)
            return
        try:
            at = _index(part, len(doc) + insert)
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
    del parent[_index(parts[-1], len(parent)) if isinstance(parent, list) else parts[-1]]
    return value


def _pointer(path: Any) -> list[str]:
    if not isinstance(path, str) or (path and not path.startswith("/")):
        raise StatusError(422, "Invalid", f"json patch: path {path!r} is not a JSON pointer; it starts with /")
    return [p.replace("~1", "/").replace("~0", "~") for p in path.split("/")[1:]]


def json_patch(target: Any, operations: Any) -> Any:
    """Apply a JSON patch (RFC 6902): all operations or none. Returns a new value. Raises StatusError: 400 if the patch
    is malformed, 422 if it cannot be applied.
    """
    if not isinstance(operations, list):
        raise bad_request("json patch: expected a list of operations")
    doc, copied = copy.deepcopy(target), 0
    for operation in operations:
        if not isinstance(operation, dict) or "op" not in operation:
            raise bad_request(f"json patch: {operation!r} is not an operation")
        op, path = operation["op"], str(operation.get("path", "?"))
        parts = _pointer(path)
        if op == "test":
            _test(doc, parts, path, operation.get("value"))
            continue
        if not parts:
            raise bad_request("json patch: the whole object cannot be replaced")
        if op == "remove":
            _take(doc, parts, path)
            continue
        if op in ("move", "copy"):
            source = _pointer(operation.get("from"))
            value = _take(doc, source, path) if op == "move" else copy.deepcopy(_walk(doc, source, path))
            copied += len(json.dumps(value)) if op == "copy" else 0
            if copied > COPY_LIMIT:
                raise StatusError(413, "RequestEntityTooLarge", f"json patch: copies more than {COPY_LIMIT} bytes")
        elif op in ("add", "replace"):
            value = copy.deepcopy(operation.get("value"))  # as kube-apiserver: an absent value is null
        else:
            raise bad_request(f"json patch: unknown op {op!r}")
        _put(_walk(doc, parts[:-1], path), parts[-1], value, op != "replace", path)
    return doc


def apply(kind: str, target: Any, patch: Any, node: Node | None = None) -> Any:
    """Apply a decoded patch of content type `kind`. node: the type of the target, for strategic merge patches."""
    if kind == JSON_PATCH:
        return json_patch(target, patch)
    if not isinstance(patch, dict):
        raise bad_request("patch: expected an object")
    return merge(target, patch) if kind == MERGE_PATCH else strategic.apply(target, patch, node)
